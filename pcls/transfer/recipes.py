"""How weights are fine-tuned: named recipes, and the rules that choose one by the number of images.

docs/finetuning.md has the rules as a table, with what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pcls.transfer.groups import HEAD, HIDDEN, TOP, pattern_of

BATCH_SIZE = 32
# Few images need many epochs, many need few: whichever of the two is longer.
MIN_STEPS, EPOCHS = 300, 10
# The rate of each group is that of the one above it times this. Source: Howard & Ruder 2018, there 1 / 2.6 a layer.
LAYER_DECAY = 0.65
# Share of a run in which all groups are set free one after the other, and how many programs that may take.
UNFREEZING, MOST_PHASES = 0.5, 4
WARMUP = 0.05
# Images a class below which only the head is fitted, and images below which the layers are set free one by one.
FEW_A_CLASS, FEW = 10, 2_000
# So many that weights from elsewhere gain nothing any more. Source: He et al. 2019.
MANY = 1_000_000

Settings = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """What the recipes look at.

    Attributes:
      groups: of its layers, to their paths, from the input to the head.
      head: `transfer.head` where all layers are trained.
      steps: of the run.
      trained: height and channels of the images that the weights were trained with; None: sequences.
    """

    groups: dict[str, tuple[str, ...]]
    head: str
    steps: int
    trained: tuple[int, int] | None

    @property
    def has_stages(self) -> bool:
        """Whether it is one of those that public weights are for: stages of blocks, then the head on their mean."""
        return any(name.startswith("stages/") for name in self.groups)

    @property
    def redrawn(self) -> list[str]:
        """Patterns of what is drawn anew with the head: a hidden dense layer above the features knows old classes only.

        Measured on `cnn28`; where it is kept, five images a class are learned worse than from scratch.
        """
        hidden = any(path.startswith(HIDDEN) for path in self.groups.get(TOP, ()))
        return [f"^{HIDDEN}"] if hidden and self.head != "auto" else []


def probe(network: Network) -> Settings:
    """The head alone, as the best linear classifier of the features."""
    return {
        "transfer.head": "probe",
        "optimizer.freeze": [{"match": f"^(?!{HEAD}/)"}],
        "train.duration": "0 steps",
    }


def gradual(network: Network) -> Settings:
    """The head, then the layers from the top by schedule, the lower the slower.

    Source: Howard & Ruder 2018.
    """
    # What is drawn anew learns with the head.
    from_the_start = {HEAD, TOP} if network.redrawn else {HEAD}
    below = [name for name in reversed(network.groups) if name not in from_the_start]
    # As many together as leaves so few phases that compiling is worth its time.
    together = math.ceil(len(below) / (MOST_PHASES - 1))
    chunks = [below[start : start + together] for start in range(0, len(below), together)]
    freeze = []
    for number, chunk in enumerate(chunks, 1):
        until = f"{max(1, round(network.steps * UNFREEZING * number / len(chunks)))} steps"
        freeze += [{"match": pattern_of(name, network.groups[name]), "until": until} for name in chunk]
    return full(network) | {"optimizer.freeze": freeze}


def full(network: Network) -> Settings:
    """All layers from the start, the lower the slower.

    Source: a fitted head first: Kumar et al. 2022.
    """
    names = [name for name in reversed(network.groups) if name != HEAD]
    scales = [
        {"match": pattern_of(name, network.groups[name]), "scale": LAYER_DECAY**depth}
        for depth, name in enumerate(names, 1)
    ]
    weights = {"transfer.head": "new" if network.redrawn else network.head, "transfer.skip": network.redrawn}
    return {**weights, "optimizer.lr_scale": scales, "optimizer.warmup": _warmup(network)}


def scratch(network: Network) -> Settings:
    """The same network from random weights."""
    images = {}
    if network.trained:
        images = dict(zip(("data.image_size", "data.channels"), network.trained, strict=True))
    return {"model.init": "", "optimizer.warmup": _warmup(network), **images}


def _warmup(network: Network) -> str:
    return f"{round(WARMUP * network.steps)} steps"


RECIPES: dict[str, Callable[[Network], Settings]] = {
    "probe": probe,
    "gradual": gradual,
    "full": full,
    "scratch": scratch,
}


def choose(images: int, classes: int, *, has_stages: bool, head_alone: bool = True) -> tuple[str, str]:
    """The recipe for so many images to train on, and why.

    Args:
      images, classes: of the training set.
      has_stages: of the network.
      head_alone: whether a head can be fitted by itself, as it can where each image has one label.
    """
    if images >= MANY:
        return "scratch", f"{images:,} images need no weights from elsewhere"
    if not has_stages:
        return "full", "a small network; all its layers learn at once"
    if head_alone and images < FEW_A_CLASS * classes:
        return "probe", f"{images / classes:.0f} images a class are too few to move the layers below the head"
    if images < FEW:
        return "gradual", f"{images:,} images: the lower layers are left alone until the upper ones fit"
    return "full", f"{images:,} images are enough to move all layers at once"
