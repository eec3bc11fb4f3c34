"""Numbers of the report: the headline, each class, classes by their training records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcls.evaluation.charts import percent
from pcls.evaluation.intervals import Interval, wilson
from pcls.evaluation.metrics import (
    FEW_SHOT_BELOW,
    MANY_SHOT_ABOVE,
    ClassRow,
    Evaluation,
    by_shots,
    per_class,
)

RESAMPLES, SEED = 1000, 0


@dataclass(frozen=True)
class Headline:
    """A number of the top of the page; `exact` is for programs that read the page."""

    name: str
    text: str
    exact: float | int
    note: str = ""
    alarming: bool = False


def headline(evaluation: Evaluation) -> list[Headline]:
    """The numbers that say how good the model is, the most asked for first."""
    numbers = evaluation.summary()
    n, lost = evaluation.n, evaluation.undecodable
    top1, top5 = (f"95\u00a0%: {interval_text(_of_share(share, n))}" for share in (evaluation.top1, evaluation.top5))
    balanced = f"95\u00a0%: {interval_text(balanced_interval(evaluation.confusion))}"
    # Of five classes or fewer one of five is always right.
    among_five = [Headline("Top-5 accuracy", percent(evaluation.top5), evaluation.top5, top5 if n else "")]
    return [
        Headline("Top-1 accuracy", percent(evaluation.top1), evaluation.top1, top1 if n else ""),
        *(among_five if len(evaluation.class_names) > 5 else ()),
        Headline("Balanced accuracy", percent(numbers["balanced"]), numbers["balanced"], balanced if n else ""),
        Headline("Macro F1", percent(numbers["macro_f1"]), numbers["macro_f1"], "mean of the classes"),
        Headline("Loss", f"{evaluation.loss:.4f}" if math.isfinite(evaluation.loss) else "–", evaluation.loss, "nats"),
        Headline("Records counted", f"{n:,}", n, f"{len(evaluation.class_names):,} classes"),
        Headline("Undecodable", f"{lost:,}", lost, "in no other number here" if lost else "", alarming=lost > 0),
    ]


def _of_share(share: float, n: int) -> Interval:
    return wilson(round(share * n), n) if 0 <= share <= 1 else (0.0, 1.0)


def interval_text(interval: Interval) -> str:
    """`91.2–93.4 %`."""
    return f"{100 * interval[0]:.1f}–{percent(interval[1], 1)}"


def balanced_interval(confusion: np.ndarray, seed: int = SEED) -> Interval:
    """The 95 % percentile interval of the mean recall, over resamples of each class's records; (0, 1) of nothing.

    Args:
      confusion: [classes, classes] counts; rows are labels.
      seed: of the resamples.
    """
    support = confusion.sum(1)
    hits, n = np.diag(confusion)[support > 0], support[support > 0]
    if not len(n):
        return 0.0, 1.0
    # One success and one failure more: a class that was always right is not sure to be so in other records.
    likely = (hits + 1) / (n + 2)
    drawn = np.random.default_rng(seed).binomial(n, likely, (RESAMPLES, len(n))) / n
    # The added counts move the middle; what is wanted is the spread around what was measured.
    spread = np.percentile(drawn.mean(1) - likely.mean(), [2.5, 97.5])
    low, high = (hits / n).mean() + spread
    return float(max(0.0, low)), float(min(1.0, high))


def weakest_first(evaluation: Evaluation) -> list[tuple[int, ClassRow]]:
    """(class number, rates), the lowest F1 first: where work pays. Classes without records come last."""
    rows = list(enumerate(per_class(evaluation.confusion, evaluation.class_names)))
    return sorted(rows, key=lambda numbered: (numbered[1].support == 0, numbered[1].f1))


def class_view(number: int, row: ClassRow, train_counts: tuple[int, ...]) -> dict[str, Any]:
    """A class as the page prints it."""
    # A rate without a denominator is 0 in `ClassRow`; a reader would take that 0 for a measurement.
    known, seen = row.support > 0, row.predicted > 0
    return {
        "number": number,
        "name": row.name,
        "precision": percent(row.precision if seen else math.nan, 1),
        "precision_interval": interval_text(row.precision_interval) if seen else "",
        "recall": percent(row.recall if known else math.nan, 1),
        "recall_interval": interval_text(row.recall_interval) if known else "",
        "f1": percent(row.f1 if known else math.nan, 1),
        "f1_interval": interval_text(row.f1_interval) if known else "",
        "bar": round(row.f1, 3),
        "support": f"{row.support:,}",
        "predicted": f"{row.predicted:,}",
        "trained": f"{train_counts[number]:,}" if train_counts else "",
    }


def shot_rows(evaluation: Evaluation) -> list[tuple[str, str, str, str]]:
    """Classes by their training records: kind, classes, held-out records, mean recall; empty: those are not known."""
    if not evaluation.train_counts:
        return []
    ranges = {
        "many": f"more than {MANY_SHOT_ABOVE}",
        "medium": f"{FEW_SHOT_BELOW} to {MANY_SHOT_ABOVE}",
        "few": f"fewer than {FEW_SHOT_BELOW}",
    }
    rows = per_class(evaluation.confusion, evaluation.class_names)
    return [
        (
            f"{own.name} ({ranges[own.name]})",
            f"{own.classes:,}",
            f"{own.n:,}",
            percent(own.accuracy, 1),
        )
        for own in by_shots(rows, evaluation.train_counts)
        if own.classes
    ]
