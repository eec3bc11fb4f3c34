"""Which channels of a network are one and the same: they can be removed together only, with every layer they pass."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import nnx

from pcls.models.classic import Cnn28
from pcls.models.efficientnet import EfficientNet
from pcls.models.inverted import Inverted, Single, Trunk
from pcls.models.resnet import Bottleneck, ResNet
from pcls.nn.module import ModelDef


@dataclass(frozen=True)
class Channels:
    """Channels that are kept or removed together. Where nothing makes one of them any more, it is 0.

    Attributes:
      makers: layers whose outputs they are: path to that of the BatchNorm which follows; empty: none does.
      readers: paths of the layers that they enter. A dense layer that reads several positions has them innermost.
    """

    makers: dict[str, str] = field(default_factory=dict)
    readers: list[str] = field(default_factory=list)


def channels_of(definition: ModelDef) -> list[Channels]:
    """All channels of a network that can be removed, in the order of its option `widths`, written in full.

    `cnn28`, residual networks and those of inverted residual blocks are known. Blocks of a stage add to the same
    channels, and what the shortcut makes of the stage before it: these are one. So are those before and after a
    depthwise convolution, which the gates of squeeze-excite multiply. What that squeezes to, and the first two
    convolutions of a deep stem, stay as they are.

    Args:
      definition: of the registry.

    Returns:
      Empty: none can be removed.
    """
    model: Any = nnx.eval_shape(definition.build, jax.random.key(0))
    if isinstance(model, Cnn28):
        layers = ["conv1", "conv2", *(["dense"] if model.dense is not None else []), "head"]
        return [Channels({made: ""}, [read]) for made, read in itertools.pairwise(layers)]
    if isinstance(model, ResNet) and model.stages[0][0].conv2.groups == 1:
        return _of_resnet(model)
    if isinstance(model, Trunk):
        return _of_trunk(model)
    return []


def _of_resnet(model: Any) -> list[Channels]:
    stem = Channels({"conv1/conv3" if model.deep else "conv1": "bn1"})
    streams, within, entering = [stem], [], stem
    for number, stage in enumerate(model.stages):
        for position, block in enumerate(stage):
            path = f"stages/{number}/{position}"
            entering.readers.append(f"{path}/conv1")
            if block.shortcut is not None:
                entering.readers.append(f"{path}/shortcut/conv")
                entering = Channels({f"{path}/shortcut/conv": f"{path}/shortcut/bn"})
                streams.append(entering)
            count = 3 if isinstance(block, Bottleneck) else 2
            for layer in range(1, count):
                within.append(Channels({f"{path}/conv{layer}": f"{path}/bn{layer}"}, [f"{path}/conv{layer + 1}"]))
            entering.makers[f"{path}/conv{count}"] = f"{path}/bn{count}"
    entering.readers.append("head")
    return [*streams, *within]


def _of_trunk(model: Any) -> list[Channels]:
    entering = Channels(_conv_norm("stem"))
    streams, within = [entering], []
    for number, stage in enumerate(model.stages):
        for position, block in enumerate(stage):
            path = f"stages/{number}/{position}"
            last = f"{path}/single" if isinstance(block, Single) else f"{path}/project"
            between = _between(block, path, entering)
            between.readers.append(f"{last}/conv")
            if between is not entering:
                within.append(between)
            if not block.residual:
                entering = Channels()
                streams.append(entering)
            entering.makers.update(_conv_norm(last))
    last, norm = ("last/conv", "last/bn") if isinstance(model, EfficientNet) else ("hidden", "")
    entering.readers.append(last)
    return [*streams, Channels({last: norm}, ["head"]), *within]


def _between(block: Any, path: str, entering: Channels) -> Channels:
    """What the last convolution of a block reads: channels of the block's own, or those that enter it."""
    between = entering
    for first in ("fused", "expand"):
        if getattr(block, first, None) is not None:
            entering.readers.append(f"{path}/{first}/conv")
            between = Channels(_conv_norm(f"{path}/{first}"))
    if isinstance(block, Inverted):
        between.makers.update(_conv_norm(f"{path}/depthwise"))
        if block.squeeze is not None:
            between.makers[f"{path}/squeeze/expand"] = ""
            between.readers.append(f"{path}/squeeze/reduce")
    return between


def _conv_norm(path: str) -> dict[str, str]:
    """A `ConvNorm` among the makers."""
    return {f"{path}/conv": f"{path}/bn"}
