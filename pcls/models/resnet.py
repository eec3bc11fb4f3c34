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
      inputs: channels.
      width: of the stage.
      stride: of the first convolution.
      drop: of the branch.
      mean: of the shortcut.
    """

    expansion = 1

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        drop: Dropout,
        *,
        mean: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.conv1 = _conv(inputs, width, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, rngs=rngs)
        self.conv2 = _conv(width, width, 3, dtype=dtype, rngs=rngs)
        self.bn2 = _zero_norm(width, rngs=rngs)
        changes = stride != 1 or inputs != width
        self.shortcut = Shortcut(inputs, width, stride, mean=mean, dtype=dtype, rngs=rngs) if changes else None
        self.drop = drop

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, height / stride, width / stride, width]."""
        y = nnx.relu(self.bn1(self.conv1(x), training))
        y = self.drop(self.bn2(self.conv2(y), training), training)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, training)))


class Bottleneck(nnx.Module):
    """1 x 1 down, 3 x 3, 1 x 1 up to four times the stage's width, beside a shortcut.

    Args:
      inputs: channels.
      width: of the stage.
      stride: of the 3 x 3 convolution.
      drop: of the branch.
      mean: of the shortcut.
      groups, group_width: of the 3 x 3 convolution, whose channels are `groups * group_width` where the stage's width
        is 64, and grow with it.
    """

    expansion = 4

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        drop: Dropout,
        *,
        mean: bool = False,
        groups: int = 1,
        group_width: int = 64,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        outputs = width * self.expansion
        width = width * group_width // 64 * groups
        self.conv1 = _conv(inputs, width, 1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, rngs=rngs)
        self.conv2 = _conv(width, width, 3, stride=stride, groups=groups, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(width, rngs=rngs)
        self.conv3 = _conv(width, outputs, 1, dtype=dtype, rngs=rngs)
        self.bn3 = _zero_norm(outputs, rngs=rngs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = Shortcut(inputs, outputs, stride, mean=mean, dtype=dtype, rngs=rngs) if changes else None
        self.drop = drop

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, height / stride, width / stride, 4 * width]."""
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
    """Three 3 x 3 convolutions, the first with stride 2, in place of one of 7 x 7."""

    def __init__(self, channels: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = outputs // 2
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
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        size, stride = (3, 1) if small_images else (7, 2)
        stem: Any = DeepStem if deep else partial(_conv, size=size, stride=stride)
        self.conv1 = stem(channels, STAGE_WIDTHS[0], dtype=dtype, rngs=rngs)
        self.bn1: BatchNorm | Folded = BatchNorm(STAGE_WIDTHS[0], rngs=rngs)
        self.small_images = small_images
        self.deep, self.pool = deep, pool
        make = partial(block, mean=deep, dtype=dtype, rngs=rngs)
        drops = iter(stochastic_depth(drop_path, sum(depths)))
        stages, inputs = [], STAGE_WIDTHS[0]
        for index, (width, depth) in enumerate(zip(STAGE_WIDTHS, depths, strict=True)):
            blocks = []
            for position, drop in enumerate(islice(drops, depth)):
                blocks.append(make(inputs, width, 2 if index > 0 and position == 0 else 1, drop))
                inputs = width * blocks[-1].expansion
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
