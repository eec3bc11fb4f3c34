"""The report of a run: one HTML page that needs nothing but a browser.

Python computes what is drawn (places, paths, words); `report.html.j2` says how it looks. Everything that comes from
the user's data (class names, record names, facts) reaches the page only through the template, which escapes it.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pcls.evaluation.charts import charts, percent, step_axis
from pcls.evaluation.metrics import ClassRow, Evaluation, per_class
from pcls.observe.pages import page_template

MAX_FIGURES = 30  # Classes up to which counts fit on a screen.
MAX_HEAT = 250  # Dots a side of the heat map; with more classes a dot stands for several.
MAX_PAIRS = 20
MAX_MISTAKES = 48
MAX_THUMBNAIL = 112  # Pixels, the size on the page: 48 thumbnails of noise, the worst case, stay below 3 MB.
SCROLL_ABOVE = 100  # Classes above which the per-class table scrolls inside the page.


@dataclass(frozen=True)
class Mistake:
    """A record whose most probable class is not its label.

    Attributes:
      thumbnail: uint8 [height, width, 1 or 3], as the model's preprocessing sees it or smaller.
      record: the record's name, as its source gives it.
      label: class number.
      predicted: class number.
      probability: of the predicted class, 0 to 1.
    """

    thumbnail: np.ndarray
    record: str
    label: int
    predicted: int
    probability: float

    def __post_init__(self) -> None:
        shape = self.thumbnail.shape
        if self.thumbnail.dtype != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape:
            raise ValueError(
                f"thumbnail of {self.record} is {self.thumbnail.dtype} {list(shape)}; "
                "uint8 [height, width, 1 or 3] is needed"
            )


@dataclass(frozen=True)
class Table:
    """A table of ready-made text. A column is set as numbers where each of its cells reads as one."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: row {number} has {len(row)} cells; "
                    f"{len(self.columns)} are needed, one a column"
                )


@dataclass(frozen=True)
class RunReport:
    """What a report shows. A part that is empty or None leaves its section out.

    Attributes:
      title: heading of the page, usually the run's name.
      subtitle: one line below it.
      evaluation: None for a run that was not evaluated.
      history: rows of metrics.jsonl, of kind "train" or "eval"; other kinds are passed over. Values may be missing,
        null or not finite, and become gaps. Of two rows of one kind and step the later holds (a resumed run).
      mistakes: any order; the page shows the `MAX_MISTAKES` most confident.
      facts: section name -> key -> value, such as "Recipe" -> "optimizer" -> "adamw".
      tables: shown near the top, such as a comparison of candidates.
      records: what was trained on: `images` or `sequences`.
    """

    title: str
    subtitle: str
    evaluation: Evaluation | None
    history: Sequence[Mapping[str, Any]]
    mistakes: Sequence[Mistake]
    facts: Mapping[str, Mapping[str, str]]
    tables: Sequence[Table] = ()
    records: str = "images"


def render(report: RunReport) -> str:
    """Returns the report as one self-contained HTML page that loads nothing and runs no script."""
    page = page_template("pcls.evaluation", "report.html.j2").render(
        title=report.title,
        subtitle=report.subtitle,
        tables=[_table_view(table) for table in report.tables],
        charts=charts(report.history, report.records),
        facts={section: dict(facts) for section, facts in report.facts.items() if facts},
        **_evaluation_view(report.evaluation, report.mistakes),
    )
    # File names that are not UTF-8 reach Python as lone surrogates, which no HTML file can hold.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def write(report: RunReport, path: Path) -> Path:
    """Writes the report to `path`, whole or not at all, and returns `path`. Makes the folder if it is missing."""
    page = render(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, because a rename is atomic only within a file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


# The evaluation.


def _evaluation_view(evaluation: Evaluation | None, mistakes: Sequence[Mistake]) -> dict[str, Any]:
    if evaluation is None:
        return {"headline": [], "confusion": None, "pairs": [], "classes": [], "scroll": False, "mistakes": []}
    many = len(evaluation.class_names) > MAX_FIGURES
    return {
        "headline": headline(evaluation),
        "confusion": heat_map(evaluation) if many else matrix(evaluation),
        "pairs": confused_pairs(evaluation),
        "classes": [_class_view(number, row) for number, row in weakest_first(evaluation)],
        "scroll": len(evaluation.class_names) > SCROLL_ABOVE,
        "mistakes": [_mistake_view(mistake, evaluation.class_names) for mistake in most_confident(mistakes)],
    }


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share measured on n records. Source: Wilson 1927."""
    z = 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


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
    n, lost, top1 = evaluation.n, evaluation.undecodable, evaluation.top1
    low, high = wilson(top1, n) if n and 0 <= top1 <= 1 else (math.nan, math.nan)
    interval = f"95\u00a0%: {100 * low:.1f}–{percent(high, 1)}" if math.isfinite(low) else ""
    return [
        Headline("Top-1 accuracy", percent(top1), top1, interval),
        Headline("Top-5 accuracy", percent(evaluation.top5), evaluation.top5),
        Headline("Balanced accuracy", percent(numbers["balanced"]), numbers["balanced"], "mean class recall"),
        Headline("Macro F1", percent(numbers["macro_f1"]), numbers["macro_f1"]),
        Headline("Loss", f"{evaluation.loss:.4f}" if math.isfinite(evaluation.loss) else "–", evaluation.loss, "nats"),
        Headline("Records counted", f"{n:,}", n, f"{len(evaluation.class_names):,} classes"),
        Headline("Undecodable", f"{lost:,}", lost, "in no other number here" if lost else "", alarming=lost > 0),
    ]


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix; `shade` is the opacity of its colour, 0 to 1."""

    count: int
    hit: bool
    shade: float
    title: str


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix with its counts: one row of cells a label."""

    names: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    upright: bool  # Whether the column headings are short enough to stand side by side.


@dataclass(frozen=True)
class HeatMap:
    """The confusion matrix of many classes as a picture. Ticks are (place from 0 to 100, class number)."""

    image: str
    classes: int
    group: int
    ticks: tuple[tuple[float, str], ...]


def shades(share: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Opacity of each cell, given its share of the label's records and whether it lies on the diagonal.

    Errors go by the square root, and never below what can be seen: a report is read for its few errors. No colour gets
    so strong that text on it is hard to read in light or dark.
    """
    errors = np.maximum(0.14, 0.75 * np.sqrt(share))
    return np.where(share > 0, np.where(hit, 0.6 * share, errors), 0.0)


def _shares(confusion: np.ndarray) -> np.ndarray:
    """Each count as a share of its label's records; 0 for a label without records."""
    return np.asarray(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1))


def matrix(evaluation: Evaluation) -> Matrix:
    """The confusion matrix for an HTML table."""
    names = evaluation.class_names
    share = _shares(evaluation.confusion)
    shade = shades(share, np.eye(len(names), dtype=bool))

    def cell(i: int, j: int) -> Cell:
        count = int(evaluation.confusion[i, j])
        title = f"label {names[i]}, predicted {names[j]}: {count:,} ({percent(share[i, j], 1)} of the label)"
        return Cell(count, i == j, round(float(shade[i, j]), 3), title)

    rows = tuple(tuple(cell(i, j) for j in range(len(names))) for i in range(len(names)))
    return Matrix(names, rows, upright=max(map(len, names), default=0) <= 4)


def heat_map(evaluation: Evaluation) -> HeatMap:
    """The confusion matrix as a picture of at most MAX_HEAT dots a side."""
    classes = len(evaluation.class_names)
    group = math.ceil(classes / MAX_HEAT)
    starts = np.arange(0, classes, group)
    counts = np.add.reduceat(np.add.reduceat(evaluation.confusion, starts, axis=0), starts, axis=1)
    hit = np.eye(len(starts), dtype=bool)
    # Opacity instead of mixed colours: the same picture lies on a light and on a dark page. Nothing is written on it,
    # so it may be stronger than a table's cell. The colours are Okabe and Ito's: all kinds of sight tell them apart.
    alpha = np.minimum(1.0, shades(_shares(counts), hit) / 0.6)
    colour = np.where(hit[..., None], np.array([0, 114, 178]), np.array([213, 94, 0]))
    pixels = np.concatenate([colour, np.round(255 * alpha[..., None])], axis=-1).astype(np.uint8)
    axis = step_axis(0.0, classes - 1.0)
    ticks = tuple((round(100 * (tick + 0.5) / (group * len(starts)), 2), f"{tick:.0f}") for tick in axis.ticks)
    return HeatMap(png_uri(pixels), classes, group, ticks)


@dataclass(frozen=True)
class Pair:
    """How often records of one class were taken for another; `share` is of the label's records."""

    label: str
    predicted: str
    count: int
    share: str


def confused_pairs(evaluation: Evaluation, limit: int = MAX_PAIRS) -> list[Pair]:
    """The pairs with the most errors, in class order where equal."""
    names, confusion = evaluation.class_names, evaluation.confusion
    errors = np.where(np.eye(len(names), dtype=bool), 0, confusion)
    order = np.argsort(-errors, axis=None, kind="stable")[:limit]
    share = _shares(confusion)
    return [
        Pair(names[i], names[j], int(errors[i, j]), percent(share[i, j], 1))
        for i, j in zip(*np.unravel_index(order, errors.shape), strict=True)
        if errors[i, j] > 0
    ]


def weakest_first(evaluation: Evaluation) -> list[tuple[int, ClassRow]]:
    """(class number, rates), the lowest F1 first: where work pays. Classes without records come last."""
    rows = list(enumerate(per_class(evaluation.confusion, evaluation.class_names)))
    return sorted(rows, key=lambda numbered: (numbered[1].support == 0, numbered[1].f1))


def _class_view(number: int, row: ClassRow) -> dict[str, Any]:
    # A rate without a denominator is 0 in `ClassRow`; a reader would take that 0 for a measurement.
    return {
        "number": number,
        "name": row.name,
        "precision": percent(row.precision if row.predicted else math.nan, 1),
        "recall": percent(row.recall if row.support else math.nan, 1),
        "f1": percent(row.f1 if row.support else math.nan, 1),
        "bar": round(row.f1, 3),
        "support": f"{row.support:,}",
        "predicted": f"{row.predicted:,}",
    }


def most_confident(mistakes: Sequence[Mistake], limit: int = MAX_MISTAKES) -> list[Mistake]:
    """The mistakes of which the model was surest: mislabelled records and blind spots show there first."""
    known = [math.isfinite(mistake.probability) for mistake in mistakes]
    order = sorted(range(len(mistakes)), key=lambda i: -mistakes[i].probability if known[i] else 1.0)
    return [mistakes[i] for i in order[:limit]]


def _mistake_view(mistake: Mistake, names: Sequence[str]) -> dict[str, Any]:
    label, predicted = (
        names[number] if 0 <= number < len(names) else str(number) for number in (mistake.label, mistake.predicted)
    )
    return {
        "image": png_uri(mistake.thumbnail),
        # A 28x28 digit is clearer as squares than as a blur; a photograph is not.
        "coarse": max(mistake.thumbnail.shape) <= 64,
        "record": mistake.record,
        "label": label,
        "predicted": predicted,
        "probability": percent(mistake.probability, 1),
    }


def png_uri(pixels: np.ndarray) -> str:
    """A data: URI of a PNG of uint8 [height, width, 1, 3 or 4]; those without opacity are shrunk to MAX_THUMBNAIL."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if picture.mode != "RGBA":
        picture.thumbnail((MAX_THUMBNAIL, MAX_THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# Tables.

_NUMERIC = re.compile(r"[-+−±]?\s?[\d.,]+(e[-+]?\d+)?(\s?±\s?[\d.,]+)?(\s?(%|[a-zA-Zµ]{1,3}(/s)?))?|[-–—]|")


def _table_view(table: Table) -> dict[str, Any]:
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    numeric = [bool(cells) and all(_NUMERIC.fullmatch(cell.strip()) for cell in cells) for cells in columns]
    return {"title": table.title, "note": table.note, "columns": table.columns, "rows": table.rows, "numeric": numeric}
