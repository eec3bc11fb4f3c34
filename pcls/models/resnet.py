"""Residual networks. Source: He et al. 2015, with the stride on the 3 x 3 convolution (version 1.5)."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.nn.norm import BatchNorm
from pcls.nn.pooling import global_mean_pool, max_pool_3x3_stride_2

STAGE_WIDTHS = (64, 128, 256, 512)


def _conv(inputs: int, outputs: int, kernel: int, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Conv:
    # Explicit padding: SAME pads strided convolutions on the other side than every public weight expects.
    pad = kernel // 2
    return nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=dtype,
        rngs=rngs,
    )


class Shortcut(nnx.Module):
    """Brings the input to the shape of the block's output."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = _conv(inputs, outputs, 1, stride, dtype, rngs)
        self.bn = BatchNorm(outputs, rngs=rngs)

    def __call__(self, x: Array, *, train: bool) -> Array:
        """[batch, height, width, inputs] to [batch, height / stride, width / stride, outputs]."""
        return self.bn(self.conv(x), train=train)


class BasicBlock(nnx.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv1 = _conv(inputs, width, 3, stride, dtype, rngs)
        self.bn1 = BatchNorm(width, rngs=rngs)
        self.conv2 = _conv(width, width, 3, 1, dtype, rngs)
        # A zero scale starts the block as the identity. Source: Goyal et al. 2017.
        self.bn2 = BatchNorm(width, scale_init=nnx.initializers.zeros_init(), rngs=rngs)
        changes = stride != 1 or inputs != width
        self.shortcut = Shortcut(inputs, width, stride, dtype=dtype, rngs=rngs) if changes else None

    def __call__(self, x: Array, *, train: bool) -> Array:
        """[batch, height, width, inputs] to [batch, height / stride, width / stride, width]."""
        y = nnx.relu(self.bn1(self.conv1(x), train=train))
        y = self.bn2(self.conv2(y), train=train)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, train=train)))


class Bottleneck(nnx.Module):
    """1 x 1 down, 3 x 3, 1 x 1 up to four times the width, beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        outputs = width * self.expansion
        self.conv1 = _conv(inputs, width, 1, 1, dtype, rngs)
        self.bn1 = BatchNorm(width, rngs=rngs)
        self.conv2 = _conv(width, width, 3, stride, dtype, rngs)
        self.bn2 = BatchNorm(width, rngs=rngs)
        self.conv3 = _conv(width, outputs, 1, 1, dtype, rngs)
        self.bn3 = BatchNorm(outputs, scale_init=nnx.initializers.zeros_init(), rngs=rngs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = Shortcut(inputs, outputs, stride, dtype=dtype, rngs=rngs) if changes else None

    def __call__(self, x: Array, *, train: bool) -> Array:
        """[batch, height, width, inputs] to [batch, height / stride, width / stride, 4 * width]."""
        y = nnx.relu(self.bn1(self.conv1(x), train=train))
        y = nnx.relu(self.bn2(self.conv2(y), train=train))
        y = self.bn3(self.conv3(y), train=train)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, train=train)))


class ResNet(nnx.Module):
    """A 7 x 7 stem, four stages of blocks, global mean, the head; for any image size from 32."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        *,
        channels: int,
        classes: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.conv1 = _conv(channels, STAGE_WIDTHS[0], 7, 2, dtype, rngs)
        self.bn1 = BatchNorm(STAGE_WIDTHS[0], rngs=rngs)
        stages, inputs = [], STAGE_WIDTHS[0]
        for index, (width, depth) in enumerate(zip(STAGE_WIDTHS, depths, strict=True)):
            blocks = []
            for place in range(depth):
                stride = 2 if index > 0 and place == 0 else 1
                blocks.append(block(inputs, width, stride, dtype=dtype, rngs=rngs))
                inputs = width * block.expansion
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.head = nnx.Linear(inputs, classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, *, train: bool) -> Array:
        """[batch, height, width, channels] to [batch, classes] logits."""
        x = max_pool_3x3_stride_2(nnx.relu(self.bn1(self.conv1(images), train=train)))
        for stage in self.stages:
            for block in stage:
                x = block(x, train=train)
        return self.head(global_mean_pool(x))


resnet18 = partial(ResNet, BasicBlock, (2, 2, 2, 2))
resnet50 = partial(ResNet, Bottleneck, (3, 4, 6, 3))
