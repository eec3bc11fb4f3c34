"""Which channels of a network are one and the same: they can be removed together only, with every layer they pass."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import nnx

from pcls.models.classic import Cnn28
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

    Networks of two or three convolutions and residual ones are known. Blocks of a stage add to the same channels, and
    what the shortcut makes of the stage before it: these are one.

    Args:
      definition: of the registry.

    Returns:
      Empty: none can be removed.
    """
    model: Any = nnx.eval_shape(definition.build, jax.random.key(0))
    if isinstance(model, Cnn28):
        layers = ["conv1", "conv2", *(["dense"] if model.dense is not None else []), "head"]
        return [Channels({made: ""}, [read]) for made, read in itertools.pairwise(layers)]
    if isinstance(model, ResNet) and not model.deep and model.stages[0][0].conv2.groups == 1:
        return _of_resnet(model)
    return []


def _of_resnet(model: Any) -> list[Channels]:
    stem = Channels({"conv1": "bn1"})
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
