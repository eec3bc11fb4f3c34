"""Inverted residual blocks, and the trunk that EfficientNet and MobileNetV3 make of them.

Source: Sandler et al. 2018; squeeze-excite: Hu et al. 2018; the fused block: Tan & Le 2021.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
      squeeze: from a block's inputs and the channels between to what makes its squeeze-excite; None: there is none.
    """

    block: Callable[..., nnx.Module]
    width: int
    expansions: Sequence[float]
    size: int = 3
    stride: int = 1
    act: Activation = "silu"
    squeeze: Callable[[int, int], Callable[..., SqueezeExcite]] | None = None


@dataclass(frozen=True)
class Block:
    """Numbers of one block.

    Attributes:
      kind: `Inverted`, `Fused` or `Single`.
      inputs, between, outputs: channels that enter it, between its convolutions, and leave it.
      expansion: customary channels between, by those that enter it.
      size, stride: of its kernel that is not 1 x 1.
      act: within it.
      residual: it is added to what enters it.
      squeeze: makes the squeeze-excite for so many channels; None: there is none.
    """

    kind: Callable[..., nnx.Module]
    inputs: int
    between: int
    outputs: int
    expansion: float
    size: int
    stride: int
    act: Activation
    residual: bool
    squeeze: Callable[..., SqueezeExcite] | None

    @property
    def expands(self) -> bool:
        """Whether the channels between are its own; else they are those that enter it, or there are none."""
        return self.kind is Fused or (self.kind is Inverted and self.expansion != 1)


@dataclass(frozen=True)
class Plan:
    """Numbers of a network of such blocks.

    Attributes:
      stem: channels of the first convolution.
      stages: blocks of each.
      last: width of the layer before the head.
    """

    stem: int
    stages: tuple[tuple[Block, ...], ...]
    last: int

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Of all stages."""
        return tuple(itertools.chain.from_iterable(self.stages))

    @property
    def streams(self) -> tuple[int, ...]:
        """Channels of the stem, of each block that is not added to what enters it, and of the last layer."""
        return (self.stem, *(block.outputs for block in self.blocks if not block.residual), self.last)

    @property
    def within(self) -> tuple[int, ...]:
        """Channels within blocks, where they are a block's own."""
        return tuple(block.between for block in self.blocks if block.expands)


def plan_of(stem: int, stages: Sequence[Stage], last: int, widths: Sequence[int] = ()) -> Plan:
    """A network in numbers.

    Args:
      stem, last: channels of the first layer, and of the one before the head.
      stages: blocks between them.
      widths: `Plan.streams` in place of the customary ones, and then, if they are written, `Plan.within`; empty: the
        customary ones. What a squeeze-excite squeezes to stays customary.
    """
    built, inputs = [], stem
    for stage in stages:
        blocks = []
        for position, expansion in enumerate(stage.expansions):
            stride, between = stage.stride if position == 0 else 1, round(inputs * expansion)
            blocks.append(
                Block(
                    kind=stage.block,
                    inputs=inputs,
                    between=between,
                    outputs=stage.width,
                    expansion=expansion,
                    size=stage.size,
                    stride=stride,
                    act=stage.act,
                    residual=stride == 1 and inputs == stage.width,
                    squeeze=stage.squeeze(inputs, between) if stage.squeeze else None,
                )
            )
            inputs = stage.width
        built.append(tuple(blocks))
    plan = Plan(stem, tuple(built), last)
    return _of_widths(plan, widths) if widths else plan


def _of_widths(plan: Plan, widths: Sequence[int]) -> Plan:
    streams, within = iter(widths[: len(plan.streams)]), iter(widths[len(plan.streams) :])
    stem = inputs = next(streams)
    stages = []
    for stage in plan.stages:
        blocks = []
        for block in stage:
            # In a pruned network two widths may be the same by chance: whether a block is residual is asked before.
            outputs = inputs if block.residual else next(streams)
            usual = round(inputs * block.expansion)
            between = next(within, usual) if block.expands else usual
            blocks.append(replace(block, inputs=inputs, between=between, outputs=outputs))
            inputs = outputs
        stages.append(tuple(blocks))
    return Plan(stem, tuple(stages), next(streams))


class Inverted(nnx.Module):
    """1 x 1 convolution to more channels, depthwise convolution, squeeze-excite, 1 x 1 convolution to few channels.

    Without the first one where the channels stay as many; beside the identity where the shape stays.

    Args:
      block: its numbers.
      drop: of the branch.
      style: as in `ConvNorm`.
      dtype: of the computation.
    """

    def __init__(self, block: Block, drop: Dropout, *, style: Style, dtype: jnp.dtype, rngs: nnx.Rngs):
        layer = partial(ConvNorm, style=style, dtype=dtype, rngs=rngs)
        between, size, stride, act = block.between, block.size, block.stride, block.act
        self.expand = layer(block.inputs, between, 1, act=act) if block.expands else None
        self.depthwise = layer(between, between, size, stride=stride, depthwise=True, act=act)
        self.squeeze = block.squeeze(between, dtype=dtype, rngs=rngs) if block.squeeze else None
        self.project = layer(between, block.outputs, 1)
        self.residual, self.drop = block.residual, drop

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, ceil(height / stride), ceil(width / stride), outputs]."""
        y = x if self.expand is None else self.expand(x, training)
        y = self.depthwise(y, training)
        y = self.project(y if self.squeeze is None else self.squeeze(y), training)
        return x + self.drop(y, training) if self.residual else y


class Fused(nnx.Module):
    """One dense convolution in place of the first two: faster where channels are few. Arguments as `Inverted` has."""

    def __init__(self, block: Block, drop: Dropout, *, style: Style, dtype: jnp.dtype, rngs: nnx.Rngs):
        layer = partial(ConvNorm, style=style, dtype=dtype, rngs=rngs)
        self.fused = layer(block.inputs, block.between, block.size, stride=block.stride, act=block.act)
        self.project = layer(block.between, block.outputs, 1)
        self.residual, self.drop = block.residual, drop

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, ceil(height / stride), ceil(width / stride), outputs]."""
        y = self.project(self.fused(x, training), training)
        return x + self.drop(y, training) if self.residual else y


class Single(nnx.Module):
    """One dense convolution, with its activation. Arguments as `Inverted` has; the expansion is 1."""

    def __init__(self, block: Block, drop: Dropout, *, style: Style, dtype: jnp.dtype, rngs: nnx.Rngs):
        layer = partial(ConvNorm, style=style, dtype=dtype, rngs=rngs)
        self.single = layer(block.inputs, block.outputs, block.size, stride=block.stride, act=block.act)
        self.residual, self.drop = block.residual, drop

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, inputs] to [batch, ceil(height / stride), ceil(width / stride), outputs]."""
        y = self.single(x, training)
        return x + self.drop(y, training) if self.residual else y


class Trunk(nnx.Module):
    """The stem, a 3 x 3 convolution with stride 2, and stages of blocks.

    Args:
      plan: their numbers.
      act: of the stem.
      style: as in `ConvNorm`.
      channels: of images.
      drop_path: stochastic depth of the last block; it rises linearly from 0.
      remat: of each stage's blocks, as `run_block` names it; empty: `none`.
      dtype: of the computation.
    """

    def __init__(
        self,
        plan: Plan,
        act: Activation,
        *,
        style: Style,
        channels: int,
        drop_path: float,
        remat: Sequence[str],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = {"style": style, "dtype": dtype, "rngs": rngs}
        self.stem = ConvNorm(channels, plan.stem, 3, stride=2, act=act, **common)
        drops = iter(stochastic_depth(drop_path, len(plan.blocks)))
        self.stages = nnx.List(
            nnx.List(block.kind(block, next(drops), **common) for block in stage) for stage in plan.stages
        )
        self.strides = tuple(stage[0].stride for stage in plan.stages)
        self.remat = tuple(remat) or ("none",) * len(plan.stages)

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
