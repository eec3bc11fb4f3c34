"""Residual networks.

Source: He et al. 2015, with the stride on the 3 x 3 convolution (version 1.5); `d`: He et al. 2019; ResNeXt: Xie et al.
2017; wide: Zagoruyko & Komodakis 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.nn.conv import Conv
from pcls.nn.dropout import Dropout, stochastic_depth
from pcls.nn.norm import BatchNorm, Folded, affine
from pcls.nn.platform import target_platform
from pcls.nn.pooling import Pool, global_pool, max_pool_3x3_stride_2, mean_pool_2x2, pooled_width
from pcls.nn.remat import run_block
from pcls.nn.training import TrainingPass

STAGE_WIDTHS = (64, 128, 256, 512)

_conv = partial(Conv, kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"))
# A zero scale starts the block as the identity. Source: Goyal et al. 2017.
_zero_norm = partial(BatchNorm, scale_init=nnx.initializers.zeros_init())


class Shortcut(nnx.Module):
    """Brings the input to the shape of the block's output.

    Args:
      inputs, outputs: channels.
      stride: 1 or 2.
      mean: a mean over 2 x 2 halves the size, where a stride would leave out three positions of four.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, mean: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.mean = mean and stride == 2
        self.conv = _conv(inputs, outputs, 1, stride=1 if self.mean else stride, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(outputs, rngs=rngs)

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, height / stride, width / stride, outputs]."""
        return self.bn(self.conv(mean_pool_2x2(x) if self.mean else x), training)


class BasicBlock(nnx.Module):
    """Two 3 x 3 convolutions beside a shortcut.

    Args:
      inputs, outputs: channels.
      stride: of the first convolution.
      drop: of the branch.
      inner: channels between the convolutions; empty: as many as `outputs`.
      shortcut: whether the input goes through a convolution, as it must where the shape changes.
      mean: of the shortcut.
    """

    expansion = 1

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        drop: Dropout,
        *,
        inner: Sequence[int] = (),
        shortcut: bool = False,
        mean: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        (between,) = inner or (outputs,)
        self.conv1 = _conv(inputs, between, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(between, rngs=rngs)
        self.conv2 = _conv(between, outputs, 3, dtype=dtype, rngs=rngs)
        self.bn2 = _zero_norm(outputs, rngs=rngs)
        self.shortcut = Shortcut(inputs, outputs, stride, mean=mean, dtype=dtype, rngs=rngs) if shortcut else None
        self.drop = drop

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, height / stride, width / stride, outputs]."""
        y = nnx.relu(self.bn1(self.conv1(x), training))
        y = self.drop(self.bn2(self.conv2(y), training), training)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, training)))


class Bottleneck(nnx.Module):
    """1 x 1 down to a quarter of the outputs, 3 x 3, 1 x 1 up, beside a shortcut.

    Args:
      inputs, outputs: channels.
      stride: of the 3 x 3 convolution.
      drop: of the branch.
      inner: channels before and after the 3 x 3 convolution; empty: as the last line says.
      shortcut: whether the input goes through a convolution, as it must where the shape changes.
      mean: of the shortcut.
      groups, group_width: of the 3 x 3 convolution, whose channels are `groups * group_width` where the outputs are
        256, and grow with them.
    """

    expansion = 4

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        drop: Dropout,
        *,
        inner: Sequence[int] = (),
        shortcut: bool = False,
        mean: bool = False,
        groups: int = 1,
        group_width: int = 64,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        width = max(1, outputs // self.expansion * group_width // 64) * groups
        before, after = inner or (width, width)
        self.conv1 = _conv(inputs, before, 1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(before, rngs=rngs)
        self.conv2 = _conv(before, after, 3, stride=stride, groups=groups, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(after, rngs=rngs)
        self.conv3 = _conv(after, outputs, 1, dtype=dtype, rngs=rngs)
        self.bn3 = _zero_norm(outputs, rngs=rngs)
        self.shortcut = Shortcut(inputs, outputs, stride, mean=mean, dtype=dtype, rngs=rngs) if shortcut else None
        self.drop = drop

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, height / stride, width / stride, outputs]."""
        y = nnx.relu(self.bn1(self.conv1(x), training))
        y = nnx.relu(self.bn2(self.conv2(y), training))
        y = self.drop(self._expanded(y, training), training)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, training)))

    def _expanded(self, y: Array, training: TrainingPass | None) -> Array:
        if training is None or self.bn3.frozen:
            return self.bn3(self.conv3(y))
        if training.group_a_device and target_platform() == "tpu":
            return self.bn3.of_pointwise(y, self.conv3.kernel[...][0, 0], training)
        return self.bn3(self.conv3(y), training)


class DeepStem(nnx.Module):
    """Three 3 x 3 convolutions, the first with stride 2, in place of one of 7 x 7.

    Args:
      channels, outputs: of images, and of the last one.
      width: channels of the others.
      dtype: of the computation.
    """

    def __init__(self, channels: int, outputs: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv1 = _conv(channels, width, 3, stride=2, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, rngs=rngs)
        self.conv2 = _conv(width, width, 3, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(width, rngs=rngs)
        self.conv3 = _conv(width, outputs, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to [batch, height / 2, width / 2, outputs]."""
        x = nnx.relu(self.bn1(self.conv1(x), training))
        return self.conv3(nnx.relu(self.bn2(self.conv2(x), training)))


class ResNet(nnx.Module):
    """The stem, four stages of blocks, the mean over positions, the head.

    Args:
      block, depths: kind and number of blocks of each stage.
      small_images: a stem of one 3 x 3 convolution instead of 7 x 7, stride 2 and pooling, for images of about 32.
      deep: a `DeepStem`, and shortcuts that take means.
      channels, classes: of images and logits.
      pool: over positions.
      dropout: before the head.
      drop_path: stochastic depth of the last block; it rises linearly from 0.
      remat: of each stage's blocks, as `run_block` names it.
      widths: channels after the stem, unless the first block keeps them, and after each stage; then those within each
        block, one number or, of bottlenecks, two. Without the latter they are as is customary for these stages; empty:
        all are.
      dtype: of the computation.
    """

    def __init__(
        self,
        block: Callable[..., BasicBlock | Bottleneck],
        depths: Sequence[int],
        *,
        small_images: bool = False,
        deep: bool = False,
        channels: int,
        classes: int,
        pool: Pool = "avg",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        remat: Sequence[str] = ("none",) * 4,
        widths: Sequence[int] = (),
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        usual = stage_widths(block)
        widths = widths or usual
        stem_width, streams, within = widths[0], widths[len(usual) - len(depths) : len(usual)], widths[len(usual) :]
        size, stride = (3, 1) if small_images else (7, 2)
        stem: Any = partial(DeepStem, width=usual[0] // 2) if deep else partial(_conv, size=size, stride=stride)
        self.conv1 = stem(channels, stem_width, dtype=dtype, rngs=rngs)
        self.bn1: BatchNorm | Folded = BatchNorm(stem_width, rngs=rngs)
        self.small_images = small_images
        self.deep, self.pool = deep, pool
        make = partial(block, mean=deep, dtype=dtype, rngs=rngs)
        drops = iter(stochastic_depth(drop_path, sum(depths)))
        per_block = inner_widths(block)
        inner = iter([within[at : at + per_block] for at in range(0, len(within), per_block)] or sum(depths) * [()])
        stages, inputs = [], stem_width
        for index, (outputs, depth) in enumerate(zip(streams, depths, strict=True)):
            blocks = []
            for position, drop in enumerate(islice(drops, depth)):
                # By its place, not by widths: in a pruned network two of them may be the same by chance.
                shortcut = position == 0 and (index > 0 or len(usual) > len(depths))
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(make(inputs, outputs, stride, drop, inner=next(inner), shortcut=shortcut))
                inputs = outputs
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.remat = tuple(remat)
        self.dropout = Dropout(dropout, sum(depths))
        self.head = nnx.Linear(pooled_width(inputs, pool), classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to [batch, classes] logits."""
        return self.head(self.dropout(self.embed(images, training), training))

    def embed(self, images: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to the input of the head [batch, features], before dropout."""
        return self.pooled(self.features(images, training)[-1])

    def pooled(self, last: Array) -> Array:
        """The map after the last stage to the input of the head [batch, features]."""
        return global_pool(last, self.pool)

    def features(self, images: Array, training: TrainingPass | None = None) -> list[Array]:
        """[batch, height, width, channels] to the map after each stage, of 1/4, 1/8, 1/16 and 1/32 of the size."""
        x = self._stem(self.conv1(images, training) if self.deep else self.conv1(images), training)
        maps = []
        for stage, remat in zip(self.stages, self.remat, strict=True):
            for block in stage:
                x = run_block(block, x, training, remat)
            maps.append(x)
        return maps

    def _stem(self, x: Array, training: TrainingPass | None) -> Array:
        """Normalisation, ReLU and pooling."""
        if self.small_images:
            return nnx.relu(self.bn1(x, training))
        if isinstance(self.bn1, Folded):
            return nnx.relu(max_pool_3x3_stride_2(x))
        assert self.bn1.scale is not None
        # Normalisation and ReLU rise with their input where the scale is positive, so they can follow the maximum, on
        # a quarter of the positions; channels with a negative scale are turned for it.
        sign = jnp.where(self.bn1.scale[...] < 0, -1, 1).astype(x.dtype)
        turned = x * sign
        gain, shift = self.bn1.coefficients(turned * sign, training)
        return nnx.relu(affine(max_pool_3x3_stride_2(turned), gain * sign, shift))


def stage_widths(block: Callable[..., BasicBlock | Bottleneck]) -> tuple[int, ...]:
    """Channels after the stem, where the first block changes them, and after each stage; the customary ones."""
    expansion = _class_of(block).expansion
    streams = tuple(width * expansion for width in STAGE_WIDTHS)
    return streams if expansion == 1 else (STAGE_WIDTHS[0], *streams)


def inner_widths(block: Callable[..., BasicBlock | Bottleneck]) -> int:
    """How many widths there are within a block."""
    return 1 if _class_of(block) is BasicBlock else 2


def _class_of(block: Any) -> Any:
    return block.func if isinstance(block, partial) else block


RESNETS = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
}
DEEP_RESNETS = {f"{name}d": partial(build, deep=True) for name, build in RESNETS.items()}
resnext50_32x4d = partial(ResNet, partial(Bottleneck, groups=32, group_width=4), (3, 4, 6, 3))
wide_resnet50_2 = partial(ResNet, partial(Bottleneck, group_width=128), (3, 4, 6, 3))
resnet18_cifar = partial(RESNETS["resnet18"], small_images=True)
