"""Residual networks. Source: He et al. 2015, with the stride on the 3 x 3 convolution (version 1.5)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.nn.conv import Conv
from pcls.nn.dropout import Dropout, stochastic_depth
from pcls.nn.norm import BatchNorm, affine
from pcls.nn.platform import target_platform
from pcls.nn.pooling import global_mean_pool, max_pool_3x3_stride_2
from pcls.nn.remat import run_block
from pcls.nn.training import TrainingPass

STAGE_WIDTHS = (64, 128, 256, 512)

_conv = partial(Conv, kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"))
# A zero scale starts the block as the identity. Source: Goyal et al. 2017.
_zero_norm = partial(BatchNorm, scale_init=nnx.initializers.zeros_init())


class Shortcut(nnx.Module):
    """Brings the input to the shape of the block's output."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = _conv(inputs, outputs, 1, stride=stride, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(outputs, rngs=rngs)

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, height / stride, width / stride, outputs]."""
        return self.bn(self.conv(x), training)


class BasicBlock(nnx.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, drop: Dropout, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv1 = _conv(inputs, width, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, rngs=rngs)
        self.conv2 = _conv(width, width, 3, dtype=dtype, rngs=rngs)
        self.bn2 = _zero_norm(width, rngs=rngs)
        changes = stride != 1 or inputs != width
        self.shortcut = Shortcut(inputs, width, stride, dtype=dtype, rngs=rngs) if changes else None
        self.drop = drop

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, height / stride, width / stride, width]."""
        y = nnx.relu(self.bn1(self.conv1(x), training))
        y = self.drop(self.bn2(self.conv2(y), training), training)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, training)))


class Bottleneck(nnx.Module):
    """1 x 1 down, 3 x 3, 1 x 1 up to four times the width, beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, drop: Dropout, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        outputs = width * self.expansion
        self.conv1 = _conv(inputs, width, 1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, rngs=rngs)
        self.conv2 = _conv(width, width, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(width, rngs=rngs)
        self.conv3 = _conv(width, outputs, 1, dtype=dtype, rngs=rngs)
        self.bn3 = _zero_norm(outputs, rngs=rngs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = Shortcut(inputs, outputs, stride, dtype=dtype, rngs=rngs) if changes else None
        self.drop = drop

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, height / stride, width / stride, 4 * width]."""
        y = nnx.relu(self.bn1(self.conv1(x), training))
        y = nnx.relu(self.bn2(self.conv2(y), training))
        y = self.drop(self._expanded(y, training), training)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, training)))

    def _expanded(self, y: Array, training: TrainingPass | None) -> Array:
        if training is not None and training.group_a_device and target_platform() == "tpu":
            return self.bn3.of_pointwise(y, self.conv3.kernel[...][0, 0], training)
        return self.bn3(self.conv3(y), training)


class ResNet(nnx.Module):
    """The stem, four stages of blocks, global mean, the head.

    Args:
      block, depths: kind and number of blocks of each stage.
      small_images: a stem of one 3 x 3 convolution instead of 7 x 7, stride 2 and pooling, for images of about 32.
      channels, classes: of images and logits.
      dropout: before the head.
      drop_path: stochastic depth of the last block; it rises linearly from 0.
      remat: of each stage's blocks, as `run_block` names it.
      dtype: of the computation.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        small_images: bool = False,
        channels: int,
        classes: int,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        remat: Sequence[str] = ("none",) * 4,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        size, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = _conv(channels, STAGE_WIDTHS[0], size, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(STAGE_WIDTHS[0], rngs=rngs)
        self.small_images = small_images
        drops = iter(stochastic_depth(drop_path, sum(depths)))
        stages, inputs = [], STAGE_WIDTHS[0]
        for index, (width, depth) in enumerate(zip(STAGE_WIDTHS, depths, strict=True)):
            blocks = []
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(block(inputs, width, stride, next(drops), dtype=dtype, rngs=rngs))
                inputs = width * block.expansion
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.remat = tuple(remat)
        self.dropout = Dropout(dropout, sum(depths))
        self.head = nnx.Linear(inputs, classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to [batch, classes] logits."""
        x = self._stem(self.conv1(images), training)
        for stage, remat in zip(self.stages, self.remat, strict=True):
            for block in stage:
                x = run_block(block, x, training, remat)
        return self.head(self.dropout(global_mean_pool(x), training))

    def _stem(self, x: Array, training: TrainingPass | None) -> Array:
        """Normalisation, ReLU and pooling."""
        if self.small_images:
            return nnx.relu(self.bn1(x, training))
        # Normalisation and ReLU rise with their input where the scale is positive, so they can follow the maximum, on
        # a quarter of the positions; channels with a negative scale are turned for it.
        sign = jnp.where(self.bn1.scale[...] < 0, -1, 1).astype(x.dtype)
        turned = x * sign
        gain, shift = self.bn1.coefficients(turned * sign, training)
        return nnx.relu(affine(max_pool_3x3_stride_2(turned), gain * sign, shift))


resnet18 = partial(ResNet, BasicBlock, (2, 2, 2, 2))
resnet18_cifar = partial(resnet18, small_images=True)
resnet50 = partial(ResNet, Bottleneck, (3, 4, 6, 3))
