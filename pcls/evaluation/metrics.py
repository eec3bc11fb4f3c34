"""Metrics of a finished evaluation, computed from exact counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from pcls.evaluation.intervals import Interval, f1_interval, wilson
from pcls.evaluation.quality import Quality

# Classes by their training records. Source: Liu et al. 2019.
MANY_SHOT_ABOVE, FEW_SHOT_BELOW = 100, 20


class Evaluated(Protocol):
    """What a run needs to know of an evaluation, whatever was counted."""

    score_name: ClassVar[str]

    @property
    def score(self) -> float:
        """What the best of a run goes by, the higher the better."""

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Of each label, from which probability on a prediction gives it; empty: each record has one label."""

    def summary(self) -> dict[str, float | int]:
        """The numbers that fit on a line, for tables and JSON."""

    def facts(self) -> dict[str, Any]:
        """What is kept in the run's folder."""


@dataclass(frozen=True)
class Counted:
    """Some records, and how many of them are right.

    Attributes:
      n: records counted.
      hits: of them right.
    """

    n: int
    hits: int

    @property
    def top1(self) -> float:
        """The share that is right; 0 of none."""
        return self.hits / max(self.n, 1)

    @property
    def interval(self) -> Interval:
        """Of `top1`."""
        return wilson(self.hits, self.n)


@dataclass(frozen=True)
class Subset(Counted):
    """The records that share a value of some column.

    Attributes:
      value: that they share.
      balanced: the mean recall of the classes among them.
    """

    value: str
    balanced: float


@dataclass(frozen=True)
class Listed(Counted):
    """Records with one right answer or more; right is a prediction that is one of them.

    Attributes:
      left_out: records without any.
    """

    left_out: int


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation counted. N records in, N counted, whatever the batch size or device count.

    Attributes:
      n: records counted.
      undecodable: records that could not be decoded, and are in no other number here.
      loss: mean cross-entropy in nats, without label smoothing, of the model as it was trained.
      top1: share of records whose most probable class is the label, 0 to 1.
      top5: share of records whose label is among the five most probable classes; 1 with five classes or fewer.
      confusion: [classes, classes] counts; rows are labels, columns predictions.
      class_names: in the order of the model's outputs.
      quality: of the probabilities, calibrated where `calibration` says so; None: of nothing.
      train_counts: training records of each class; empty: not known.
      calibration: how the probabilities were calibrated, in words; empty: not at all.
      column, subsets: the column of the manifest by whose values the records were parted, and the parts.
      listed: by lists of right answers, where there are some.
      notices: what else the reader has to know, a line each.
    """

    n: int
    undecodable: int
    loss: float
    top1: float
    top5: float
    confusion: np.ndarray
    class_names: tuple[str, ...]
    quality: Quality | None = None
    train_counts: tuple[int, ...] = ()
    calibration: str = ""
    column: str = ""
    subsets: tuple[Subset, ...] = ()
    listed: Listed | None = None
    notices: tuple[str, ...] = ()

    score_name: ClassVar[str] = "top-1"
    thresholds: ClassVar[tuple[float, ...]] = ()

    @property
    def score(self) -> float:
        """What the best of a run goes by."""
        return self.top1

    def facts(self) -> dict[str, Any]:
        """What is kept in the run's folder."""
        return self.summary() | {
            "class_names": list(self.class_names),
            "confusion": self.confusion.tolist(),
            "quality": None if self.quality is None else asdict(self.quality),
            "train_counts": list(self.train_counts),
            "calibration": self.calibration,
            "notices": list(self.notices),
        }

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
    hits: int

    @property
    def precision_interval(self) -> Interval:
        """95 %; (0, 1) where the class was never predicted."""
        return wilson(self.hits, self.predicted)

    @property
    def recall_interval(self) -> Interval:
        """95 %; (0, 1) where the class is absent."""
        return wilson(self.hits, self.support)

    @property
    def f1_interval(self) -> Interval:
        """95 %."""
        return f1_interval(self.hits, self.support, self.predicted)


def per_class(confusion: np.ndarray, class_names: Sequence[str]) -> list[ClassRow]:
    """Reads the per-class rates off a confusion matrix.

    Args:
      confusion: [classes, classes] counts; rows are labels, columns predictions.
      class_names: one name a class.

    Returns:
      One row a class. A rate without a denominator (class never predicted, class absent) is 0.
    """
    counts = np.diag(confusion)
    hits = counts.astype(np.float64)
    support = confusion.sum(axis=1)
    predicted = confusion.sum(axis=0)
    # A count of 0 has 0 hits too, so dividing by 1 there gives the 0 that is wanted.
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(predicted + support, 1)
    return [
        ClassRow(name, float(p), float(r), float(f), int(s), int(c), int(h))
        for name, p, r, f, s, c, h in zip(class_names, precision, recall, f1, support, predicted, counts, strict=True)
    ]


@dataclass(frozen=True)
class Averages:
    """Rates of all classes together, each 0 to 1.

    Attributes:
      micro: precision, recall and F1 over all records, which are one number where each record has one label.
      macro_precision, macro_recall, macro_f1: means over the classes that are there.
      recall_gmean: the geometric mean of their recalls; 0 as soon as one class is never found. Source: Kubat & Matwin
        1997.
    """

    micro: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    recall_gmean: float


def averages(rows: Sequence[ClassRow]) -> Averages:
    """Over the classes that have records; 0 without any."""
    present = [row for row in rows if row.support]
    if not present:
        return Averages(0.0, 0.0, 0.0, 0.0, 0.0)
    recalls = np.array([row.recall for row in present])
    # A recall of 0 makes the mean 0; its logarithm would warn.
    gmean = float(np.exp(np.mean(np.log(recalls)))) if recalls.all() else 0.0
    return Averages(
        micro=sum(row.hits for row in present) / sum(row.support for row in present),
        macro_precision=float(np.mean([row.precision for row in present])),
        macro_recall=float(recalls.mean()),
        macro_f1=float(np.mean([row.f1 for row in present])),
        recall_gmean=gmean,
    )


@dataclass(frozen=True)
class Shots:
    """The classes that had many, a medium number of, or few training records.

    Attributes:
      name: `many`, `medium` or `few`.
      classes: of that kind that have records in the set.
      n: records of these classes.
      accuracy: the mean recall of these classes; 0 of none.
    """

    name: str
    classes: int
    n: int
    accuracy: float


def by_shots(rows: Sequence[ClassRow], train_counts: Sequence[int]) -> list[Shots]:
    """Accuracy of many-shot (more than 100 training records), medium and few-shot (fewer than 20) classes.

    Args:
      rows: one a class.
      train_counts: training records of each class.

    Source: Liu et al. 2019.
    """
    kinds: dict[str, list[ClassRow]] = {"many": [], "medium": [], "few": []}
    for row, count in zip(rows, train_counts, strict=True):
        if row.support:
            kinds["many" if count > MANY_SHOT_ABOVE else "few" if count < FEW_SHOT_BELOW else "medium"].append(row)
    return [
        Shots(
            name,
            len(some),
            sum(row.support for row in some),
            float(np.mean([row.recall for row in some])) if some else 0.0,
        )
        for name, some in kinds.items()
    ]


def by_lists(answers: Sequence[frozenset[int]], predicted: np.ndarray) -> Listed:
    """Accuracy by lists of right answers: a prediction is right if it is in the list; empty lists count for nothing.

    Args:
      answers: one set of classes a record.
      predicted: [n] class numbers.

    Source: Beyer et al. 2020 (ImageNet-ReaL).
    """
    right = [int(own) in some for own, some in zip(predicted, answers, strict=True) if some]
    return Listed(len(right), sum(right), len(answers) - len(right))


def by_value(values: Sequence[str], labels: np.ndarray, predicted: np.ndarray) -> tuple[Subset, ...]:
    """Accuracy for each value of a column, in their lexical order.

    Args:
      values: one a record.
      labels, predicted: [n] class numbers.
    """
    names, which = np.unique(np.array(values, str), return_inverse=True)
    right = labels == predicted
    found = []
    for number, name in enumerate(names):
        own = which == number
        classes, place = np.unique(labels[own], return_inverse=True)
        recalls = np.bincount(place, right[own], len(classes)) / np.bincount(place, minlength=len(classes))
        found.append(Subset(int(own.sum()), int(right[own].sum()), str(name), float(recalls.mean())))
    return tuple(found)
