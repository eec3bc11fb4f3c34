"""Inverted residual blocks, and the trunk that EfficientNet and MobileNetV3 make of them.

Source: Sandler et al. 2018; squeeze-excite: Hu et al. 2018; the fused block: Tan & Le 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.nn.conv import Conv
from pcls.nn.dropout import Dropout, stochastic_depth
from pcls.nn.norm import BatchNorm
from pcls.nn.pooling import global_mean_pool
from pcls.nn.remat import named_product, run_block
from pcls.nn.training import TrainingPass

# Who made the weights.
Style = Literal["timm", "tensorflow", "torchvision"]
Activation = Literal["relu", "silu", "hard_swish", "sigmoid", "hard_sigmoid"]
ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "relu": nnx.relu,
    "silu": nnx.silu,
    "hard_swish": nnx.hard_swish,
    "sigmoid": nnx.sigmoid,
    "hard_sigmoid": nnx.hard_sigmoid,
}

dense_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
# The fan-out of one channel's kernel; flax would count those of all channels.
_depthwise_init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


class ConvNorm(nnx.Module):
    """Convolution, BatchNorm, activation.

    Args:
      inputs, outputs: channels.
      size, stride: of the convolution.
      depthwise: one kernel for each channel.
      act: None: no activation.
      style: whose weights it suits: `timm` (PyTorch's padding, epsilon 1e-5), `tensorflow` (SAME, 1e-3) or
        `torchvision` (PyTorch's padding, 1e-3).
      dtype: of the computation.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        depthwise: bool = False,
        act: Activation | None = None,
        style: Style,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(
            inputs,
            outputs,
            size,
            stride=stride,
            pad="same" if style == "tensorflow" else None,
            groups=inputs if depthwise else 1,
            kernel_init=_depthwise_init if depthwise else dense_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn = BatchNorm(outputs, eps=1e-5 if style == "timm" else 1e-3, rngs=rngs)
        self.act = act

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, ceil(height / stride), ceil(width / stride), outputs]."""
        y = self.bn(self.conv(x), training)
        return y if self.act is None else ACTIVATIONS[self.act](y)


class SqueezeExcite(nnx.Module):
    """Scales every channel by a gate that sees the means of all channels.

    Args:
      width: channels.
      squeezed: of the layer between.
      act, gate: after the first layer, and after the second.
      dtype: of the computation.
    """

    def __init__(
        self, width: int, squeezed: int, act: Activation, gate: Activation, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.reduce = nnx.Linear(width, squeezed, kernel_init=dense_init, dtype=dtype, rngs=rngs)
        self.expand = nnx.Linear(squeezed, width, kernel_init=dense_init, dtype=dtype, rngs=rngs)
        self.act, self.gate = act, gate

    def __call__(self, x: Array) -> Array:
        """[batch, height, width, channels] to the same shape."""
        y = ACTIVATIONS[self.act](named_product(self.reduce(global_mean_pool(x))))
        return x * ACTIVATIONS[self.gate](named_product(self.expand(y)))[:, None, None]


@dataclass(frozen=True)
class Stage:
    """Blocks of one width.

    Attributes:
      block: `Inverted`, `Fused` or `Single`.
      width: channels that leave a block.
      expansions: of each block: channels between its convolutions, by those that enter it.
      size: of the kernels that are not 1 x 1.
      stride: of the first block.
      act: within blocks.
      squeeze: makes the squeeze-excite of a block, from its inputs and the channels between; None: there is none.
    """

    block: Callable[..., nnx.Module]
    width: int
    expansions: Sequence[float]
    size: int = 3
    stride: int = 1
    act: Activation = "silu"
    squeeze: Callable[..., SqueezeExcite] | None = None


class Inverted(nnx.Module):
    """1 x 1 convolution to more channels, depthwise convolution, squeeze-excite, 1 x 1 convolution to few channels.

    Without the first one where the channels stay as many; beside the identity where the shape stays.

    Args:
      inputs: channels.
      stage: that the block is of.
      expansion: of the block.
      stride: of the depthwise convolution.
      drop: of the branch.
      style: as in `ConvNorm`.
      dtype: of the computation.
    """

    def __init__(
        self,
        inputs: int,
        stage: Stage,
        expansion: float,
        stride: int,
        drop: Dropout,
        *,
        style: Style,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        width = round(inputs * expansion)
        layer = partial(ConvNorm, style=style, dtype=dtype, rngs=rngs)
        self.expand = layer(inputs, width, 1, act=stage.act) if width != inputs else None
        self.depthwise = layer(width, width, stage.size, stride=stride, depthwise=True, act=stage.act)
        self.squeeze = stage.squeeze(inputs, width, dtype=dtype, rngs=rngs) if stage.squeeze else None
        self.project = layer(width, stage.width, 1)
        self.residual = stride == 1 and inputs == stage.width
        self.drop = drop

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, ceil(height / stride), ceil(width / stride), the stage's width]."""
        y = x if self.expand is None else self.expand(x, training)
        y = self.depthwise(y, training)
        y = self.project(y if self.squeeze is None else self.squeeze(y), training)
        return x + self.drop(y, training) if self.residual else y


class Fused(nnx.Module):
    """One dense convolution in place of the first two: faster where channels are few. Arguments as `Inverted` has."""

    def __init__(
        self,
        inputs: int,
        stage: Stage,
        expansion: float,
        stride: int,
        drop: Dropout,
        *,
        style: Style,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        width = round(inputs * expansion)
        layer = partial(ConvNorm, style=style, dtype=dtype, rngs=rngs)
        self.fused = layer(inputs, width, stage.size, stride=stride, act=stage.act)
        self.project = layer(width, stage.width, 1)
        self.residual = stride == 1 and inputs == stage.width
        self.drop = drop

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, ceil(height / stride), ceil(width / stride), the stage's width]."""
        y = self.project(self.fused(x, training), training)
        return x + self.drop(y, training) if self.residual else y


class Single(nnx.Module):
    """One dense convolution, with its activation. Arguments as `Inverted` has; the expansion is 1."""

    def __init__(
        self,
        inputs: int,
        stage: Stage,
        expansion: float,
        stride: int,
        drop: Dropout,
        *,
        style: Style,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        layer = partial(ConvNorm, style=style, dtype=dtype, rngs=rngs)
        self.single = layer(inputs, stage.width, stage.size, stride=stride, act=stage.act)
        self.residual = stride == 1 and inputs == stage.width
        self.drop = drop

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, ceil(height / stride), ceil(width / stride), the stage's width]."""
        y = self.single(x, training)
        return x + self.drop(y, training) if self.residual else y


class Trunk(nnx.Module):
    """The stem, a 3 x 3 convolution with stride 2, and stages of blocks.

    Args:
      stem: its channels.
      act: its activation.
      stages: their blocks.
      style: as in `ConvNorm`.
      channels: of images.
      drop_path: stochastic depth of the last block; it rises linearly from 0.
      remat: of each stage's blocks, as `run_block` names it; empty: `none`.
      dtype: of the computation.
    """

    def __init__(
        self,
        stem: int,
        act: Activation,
        stages: Sequence[Stage],
        *,
        style: Style,
        channels: int,
        drop_path: float,
        remat: Sequence[str],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = {"style": style, "dtype": dtype, "rngs": rngs}
        self.stem = ConvNorm(channels, stem, 3, stride=2, act=act, **common)
        drops = iter(stochastic_depth(drop_path, block_count(stages)))
        built, inputs = [], stem
        for stage in stages:
            blocks = []
            for position, expansion in enumerate(stage.expansions):
                stride = stage.stride if position == 0 else 1
                blocks.append(stage.block(inputs, stage, expansion, stride, next(drops), **common))
                inputs = stage.width
            built.append(nnx.List(blocks))
        self.stages = nnx.List(built)
        self.strides = tuple(stage.stride for stage in stages)
        self.remat = tuple(remat) or ("none",) * len(stages)

    def features(self, images: Array, training: TrainingPass | None = None) -> list[Array]:
        """[batch, height, width, channels] to the last map of each size: 1/2, 1/4, 1/8, 1/16 and 1/32."""
        x = self.stem(images, training)
        maps = []
        for stage, stride, remat in zip(self.stages, self.strides, self.remat, strict=True):
            if stride == 2:
                maps.append(x)
            for block in stage:
                x = run_block(block, x, training, remat)
        return [*maps, x]


def block_count(stages: Sequence[Stage]) -> int:
    """Of all stages."""
    return sum(len(stage.expansions) for stage in stages)
