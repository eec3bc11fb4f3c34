"""Public weights by name: what is published of them, and what they cost here.

Names, preprocessing, licences and accuracies are timm's (https://github.com/huggingface/pytorch-image-models,
Apache-2.0); the first line of weights.csv has its version and the date. benchmarks/catalogue.py writes that file.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pcls.data.preprocessing import Preprocessing, TrainingSize
from pcls.errors import UserError

TABLE = Path(__file__).parent / "weights.csv"
FIELDS = (
    *("name", "hub", "task", "classes", "train_size", "test_size", "crop_pct", "test_crop_pct", "crop_mode"),
    *("interpolation", "mean", "std", "licence", "top1", "top5", "published_size", "published_crop_pct"),
    *("real_top1", "real_top5", "parameters", "flops", "activations"),
)
# Where accuracies were published, as `pcls models info` names it.
RESULTS, REAL = "timm's results-imagenet.csv", "labels of Beyer et al. 2020 (timm's results-imagenet-real.csv)"


@dataclass(frozen=True)
class Weight:
    """A published weight.

    Attributes:
      name: `architecture.tag`.
      hub: its repository on the Hugging Face hub.
      task: `classification`, or `features`: its outputs, if any, are no classes.
      classes: outputs; 0: it has no head.
      preprocessing: what it expects of an image.
      licence: as timm states it; empty: it does not.
      top1, top5: published accuracy on ImageNet-1k, in %; None: none is, at the size of tests.
      real_top1, real_top5: the same with the labels of Beyer et al. 2020.
      published_size, published_crop_pct: of the images of those.
      parameters: trained numbers.
      flops: of one image of the size of tests, two for each multiply-add of convolutions and matrix products, as
        `pcls.nn.flops.analytic_flops` counts. Publications that count multiply-adds say half.
      activations: numbers that those put out.
    """

    name: str
    hub: str
    task: Literal["classification", "features"]
    classes: int
    preprocessing: Preprocessing
    licence: str
    top1: float | None
    top5: float | None
    real_top1: float | None
    real_top5: float | None
    published_size: int | None
    published_crop_pct: float | None
    parameters: int
    flops: int
    activations: int

    @property
    def architecture(self) -> str:
        """A name of the registry."""
        return self.name.partition(".")[0]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return vars(self) | {"architecture": self.architecture, "preprocessing": self.preprocessing.to_json()}


@cache
def catalogue() -> dict[str, Weight]:
    """Name to weight, of the architectures that pcls has."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        file.readline()
        # What has no costs is of an architecture that pcls lacked when they were counted.
        rows = [row for row in csv.DictReader(file) if row["parameters"]]
    return {row["name"]: _weight(row) for row in rows}


def made_from() -> str:
    """`timm 1.0.31 (Apache-2.0), 2026-11-30`."""
    with TABLE.open(encoding="utf-8") as file:
        return file.readline().strip("# \n")


def _weight(row: dict[str, str]) -> Weight:
    return Weight(
        name=row["name"],
        hub=row["hub"],
        task="features" if row["task"] == "features" else "classification",
        classes=int(row["classes"]),
        preprocessing=_preprocessing(row),
        licence=row["licence"],
        top1=_number(row["top1"]),
        top5=_number(row["top5"]),
        real_top1=_number(row["real_top1"]),
        real_top5=_number(row["real_top5"]),
        published_size=int(row["published_size"]) if row["published_size"] else None,
        published_crop_pct=_number(row["published_crop_pct"]),
        parameters=int(row["parameters"]),
        flops=int(row["flops"]),
        activations=int(row["activations"]),
    )


def _preprocessing(row: dict[str, str]) -> Preprocessing:
    train, test = int(row["train_size"]), int(row["test_size"])
    evaluation = Preprocessing(
        height=test,
        width=test,
        channels=3,
        mean=tuple(map(float, row["mean"].split())),
        std=tuple(map(float, row["std"].split())),
        crop_pct=float(row["test_crop_pct"]),
        crop_mode=row["crop_mode"],
        interpolation=row["interpolation"],
    )
    return evaluation.trained_at(TrainingSize(train, train, float(row["crop_pct"])))


def _number(text: str) -> float | None:
    return float(text) if text else None


def find_weight(name: str) -> Weight:
    """A weight by its name; UserError with the nearest names."""
    if name in catalogue():
        return catalogue()[name]
    close = difflib.get_close_matches(name, catalogue(), n=3, cutoff=0.4)
    hint = f"the nearest are {', '.join(close)}" if close else "pcls models search lists all"
    raise UserError(f"there is no weight {name!r}; {hint}")


def search_weights(
    text: str = "",
    *,
    max_parameters: float = float("inf"),
    max_flops: float = float("inf"),
    min_top1: float = 0.0,
    licence: str = "",
    task: str = "",
    sort: Literal["name", "top1", "params"] = "name",
) -> list[Weight]:
    """The weights that fit.

    Args:
      text: that the name holds.
      max_parameters, max_flops: at most.
      min_top1: on ImageNet-1k, in %; above 0 leaves out those of which none is published.
      licence: that the licence holds, whatever its case.
      task: of `Weight`; empty: any.
      sort: by name, by top-1 from the best on, or by parameters from the fewest on.
    """
    found = [
        weight
        for weight in catalogue().values()
        if text in weight.name
        and weight.parameters <= max_parameters
        and weight.flops <= max_flops
        and (weight.top1 or 0.0) >= min_top1
        and licence.lower() in weight.licence.lower()
        and task in ("", weight.task)
    ]
    if sort == "top1":
        return sorted(found, key=lambda weight: -(weight.top1 or 0.0))
    return sorted(found, key=lambda weight: weight.parameters) if sort == "params" else found


def weights_of(architecture: str) -> Sequence[Weight]:
    """The published weights of a model of the registry."""
    return [weight for weight in catalogue().values() if weight.architecture == architecture]
