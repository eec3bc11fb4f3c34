"""Calibration on the report: reliability diagrams and proper scores, before and after."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pcls.evaluation.charts import percent
from pcls.evaluation.quality import Quality

# The plot of a reliability diagram within its view box, and the strip of counts below it.
LEFT, TOP, SIDE, STRIP = 40.0, 8.0, 200.0, 36.0

SCORES = (
    ("NLL", "nll", "nats, of all proper scores the strictest"),
    ("Brier score", "brier", "squared error of the probabilities, 0 to 2"),
    ("ECE", "ece", "distance of confidence and accuracy, 15 bins of equal width"),
    ("ECE, equal mass", "ece_equal_mass", "the same, bins of equally many records"),
    ("AURC", "aurc", "error rate among the surest records, over all shares of them"),
)


@dataclass(frozen=True)
class BeforeAfter:
    """What a calibration does, on held-out records that it was not fitted to.

    Attributes:
      method: in words.
      before, after: the probabilities' quality.
      measured: records.
    """

    method: str
    before: Quality
    after: Quality
    measured: int


@dataclass(frozen=True)
class Bar:
    """A bin of a reliability diagram in units of the SVG: its bar, where confidence would be, its count's bar."""

    x: float
    width: float
    y: float
    height: float
    ideal: float
    count_y: float
    count_height: float
    title: str


@dataclass(frozen=True)
class Diagram:
    """A reliability diagram."""

    title: str
    summary: str
    bars: tuple[Bar, ...]


def diagram(title: str, quality: Quality) -> Diagram:
    """Draws a reliability table. Bins without records are left out."""
    most = max((part.count for part in quality.bins), default=1)
    bars = []
    for part in quality.bins:
        if not part.count:
            continue
        x, width = LEFT + SIDE * part.low, SIDE * (part.high - part.low)
        height, count = SIDE * part.accuracy, (STRIP - 6) * math.sqrt(part.count / most)
        bars.append(
            Bar(
                x=round(x, 1),
                width=round(width - 1, 1),
                y=round(TOP + SIDE - height, 1),
                height=round(height, 1),
                ideal=round(TOP + SIDE * (1 - part.confidence), 1),
                count_y=round(TOP + SIDE + STRIP - count, 1),
                count_height=round(count, 1),
                title=f"confidence {part.low:.2f} to {part.high:.2f}, {percent(part.confidence, 1)} on average: "
                f"{part.count:,} records, {percent(part.accuracy, 1)} right",
            )
        )
    return Diagram(title, f"{title}: accuracy by confidence. ECE {quality.ece:.4f}.", tuple(bars))


def calibration_view(quality: Quality | None, calibrated: str, fit: BeforeAfter | None) -> dict[str, Any] | None:
    """The section; None without probabilities.

    Args:
      quality: of all held-out records, as the model is delivered.
      calibrated: how it was calibrated, in words; empty: not at all.
      fit: what that did.
    """
    if quality is None:
        return None
    shown = "All records, calibrated" if calibrated else "All records"
    columns = [(shown, quality)]
    if fit is not None:
        columns = [("Before", fit.before), ("After", fit.after), *columns]
    rows = [(name, note, [f"{getattr(own, key):.4f}" for _, own in columns]) for name, key, note in SCORES]
    return {
        "diagrams": [diagram(name, own) for name, own in (columns[:2] if fit else columns)],
        "columns": [name for name, _ in columns],
        "scores": rows,
        "calibrated": calibrated,
        "fit": fit,
        "thresholds": [
            (
                f"{row.threshold:g}",
                percent(row.coverage, 1),
                "–" if row.accuracy is None else percent(row.accuracy, 1),
                f"{row.kept:,}",
            )
            for row in quality.thresholds
        ],
    }
