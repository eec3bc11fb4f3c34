"""Metrics of a finished evaluation, computed from exact counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation counted. N records in, N counted, whatever the batch size or device count.

    Attributes:
      n: records counted.
      undecodable: records that could not be decoded, and are in no other number here.
      loss: mean cross-entropy in nats, without label smoothing.
      top1: share of records whose most probable class is the label, 0 to 1.
      top5: share of records whose label is among the five most probable classes; 1 with five classes or fewer.
      confusion: [classes, classes] counts; rows are labels, columns predictions.
      class_names: in the order of the model's outputs.
    """

    n: int
    undecodable: int
    loss: float
    top1: float
    top5: float
    confusion: np.ndarray
    class_names: tuple[str, ...]

    def summary(self) -> dict[str, float | int]:
        """The numbers that fit on a line, for tables and JSON; `balanced` is the mean recall of present classes."""
        rows = per_class(self.confusion, self.class_names)
        present = [row for row in rows if row.support]
        return {
            "n": self.n,
            "undecodable": self.undecodable,
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "balanced": float(np.mean([row.recall for row in present])) if present else 0.0,
            "macro_f1": float(np.mean([row.f1 for row in present])) if present else 0.0,
        }


@dataclass(frozen=True)
class ClassRow:
    """Precision, recall and F1 of one class, each 0 to 1, and how many records carry its label."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


def per_class(confusion: np.ndarray, class_names: Sequence[str]) -> list[ClassRow]:
    """Reads the per-class rates off a confusion matrix.

    Args:
      confusion: [classes, classes] counts; rows are labels, columns predictions.
      class_names: one name a class.

    Returns:
      One row a class. A rate without a denominator (class never predicted, class absent) is 0.
    """
    hits = np.diag(confusion).astype(np.float64)
    support = confusion.sum(axis=1)
    predicted = confusion.sum(axis=0)
    # A count of 0 has 0 hits too, so dividing by 1 there gives the 0 that is wanted.
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(predicted + support, 1)
    return [
        ClassRow(name, float(p), float(r), float(f), int(s), int(c))
        for name, p, r, f, s, c in zip(class_names, precision, recall, f1, support, predicted, strict=True)
    ]
