"""Predictions as a table for people, and as CSV, JSON lines and Parquet for programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pcls.atomic import atomic_path
from pcls.data.sources.folder import shown
from pcls.data.sources.targets import SEPARATOR
from pcls.deliver.classifier import Classifier, Prediction
from pcls.errors import UserError

ROWS_AT_ONCE = 10_000
# What makes a spreadsheet take a cell for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")

Row = dict[str, str | float | None]
Write = Callable[[Prediction], None]


@dataclass(frozen=True)
class Layout:
    """What is told of each file.

    Attributes:
      class_names: in the order of the probabilities.
      several: whether a record may have several labels, or none.
      top: how many of the most probable classes.
      width: of the longest path, as it is shown.
    """

    class_names: Sequence[str]
    several: bool
    top: int
    width: int

    @classmethod
    def of(cls, classifier: Classifier, files: Sequence[str], top: int) -> Layout:
        """For the answers to some files."""
        width = max((len(shown(file)) for file in files), default=0)
        return cls(classifier.class_names, bool(classifier.thresholds), top, width)

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Of a flat table."""
        numbers = ["", *(f"_{place}" for place in range(2, self.top + 1))]
        ranked = {f"{what}{number}": kind for number in numbers for what, kind in RANKED.items()}
        labels = {"labels": pa.string()} if self.several else {}
        return {"path": pa.string(), **labels, **ranked, "error": pa.string()}

    def ranked(self, answer: Prediction) -> list[tuple[str, float]]:
        """The most probable classes with their probabilities; none of a file that could not be read."""
        falling = np.argsort(-np.asarray(answer.probabilities), kind="stable")[: self.top]
        return [(self.class_names[number], answer.probabilities[number]) for number in falling]

    def given(self, answer: Prediction) -> dict[str, float]:
        """The labels that a record is given, with their probabilities."""
        of_all = dict(zip(self.class_names, answer.probabilities, strict=False))
        return {name: of_all[name] for name in answer.labels}


RANKED = {"label": pa.string(), "probability": pa.float64()}


def table_line(answer: Prediction, layout: Layout) -> str:
    """A line for people: nothing in it moves a terminal's cursor or breaks the line."""
    path = f"{shown(answer.path):<{layout.width}}"
    if answer.error:
        return f"{path}  cannot be read: {shown(answer.error)}"
    if not layout.several:
        return f"{path}  {'   '.join(f'{share:6.1%}  {shown(name)}' for name, share in layout.ranked(answer))}"
    labels = ", ".join(f"{shown(name)} {share:.1%}" for name, share in layout.given(answer).items())
    ranked = ", ".join(f"{shown(name)} {share:.1%}" for name, share in layout.ranked(answer))
    return f"{path}  {labels or 'no label'}{f'; most probable: {ranked}' if layout.top > 1 else ''}"


def json_line(answer: Prediction, layout: Layout) -> str:
    """One JSON object."""
    row: dict[str, Any] = {"path": answer.path}
    one = {"label": answer.label, "probability": answer.probability}
    told = {"labels": layout.given(answer)} if layout.several else one
    # None given, or a probability of 0, is not the same as not known.
    row |= dict.fromkeys(told) if answer.error else told
    if layout.top > 1:
        row["top"] = [{"label": name, "probability": share} for name, share in layout.ranked(answer)]
    row["error"] = answer.error
    line = json.dumps(row, ensure_ascii=False)
    # A name may hold what is no text, or what a terminal obeys.
    return line if line.isprintable() else json.dumps(row)


def flat_row(answer: Prediction, layout: Layout) -> Row:
    """The values of `layout.columns`; None: there is none."""
    row: Row = dict.fromkeys(layout.columns)
    row |= {"path": _text(answer.path), "error": _text(answer.error)}
    if layout.several and not answer.error:
        row["labels"] = SEPARATOR.join(map(_text, answer.labels))
    for number, (name, share) in enumerate(layout.ranked(answer), 1):
        end = f"_{number}" if number > 1 else ""
        row |= {f"label{end}": _text(name), f"probability{end}": share}
    return row


@contextmanager
def lines(stream: TextIO, layout: Layout, line: Callable[[Prediction, Layout], str]) -> Iterator[Write]:
    """Writes a line for each prediction."""

    def write(answer: Prediction) -> None:
        print(line(answer, layout), file=stream)

    yield write


@contextmanager
def comma_separated(stream: TextIO, layout: Layout) -> Iterator[Write]:
    """Writes CSV with a header. Text that a spreadsheet would take for a formula gets an apostrophe before it."""
    writer = csv.DictWriter(stream, list(layout.columns), lineterminator="\n")
    writer.writeheader()

    def write(answer: Prediction) -> None:
        writer.writerow({key: _cell(value) for key, value in flat_row(answer, layout).items()})

    yield write


@contextmanager
def parquet(path: Path, layout: Layout) -> Iterator[Write]:
    """Writes a Parquet file, some thousand rows at a time."""
    schema, rows = pa.schema(layout.columns), list[Row]()
    with pq.ParquetWriter(path, schema) as writer:

        def write(answer: Prediction) -> None:
            rows.append(flat_row(answer, layout))
            if len(rows) == ROWS_AT_ONCE:
                flush()

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        yield write
        flush()


def writer_of(form: str, layout: Layout, path: Path | None) -> AbstractContextManager[Write]:
    """What writes predictions.

    Args:
      form: `table`, `csv`, `jsonl`, or `parquet`, which needs a path.
      layout: of the rows.
      path: the file; it is there when all is written, and not before. None: standard output.
    """
    if path is None:
        return _to_stream(form, sys.stdout, layout)
    return _to_file(form, layout, path)


def _to_stream(form: str, stream: TextIO, layout: Layout) -> AbstractContextManager[Write]:
    if form == "csv":
        return comma_separated(stream, layout)
    return lines(stream, layout, json_line if form == "jsonl" else table_line)


@contextmanager
def _to_file(form: str, layout: Layout, path: Path) -> Iterator[Write]:
    try:
        with atomic_path(path) as part:
            to = parquet(part, layout) if form == "parquet" else _to_text_file(form, part, layout)
            with to as write:
                yield write
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def _to_text_file(form: str, path: Path, layout: Layout) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="") as stream, _to_stream(form, stream, layout) as write:
        yield write


def _text(text: str) -> str:
    """A name of bytes that are no text, fit for a file that holds text only."""
    return text.encode("utf-8", "backslashreplace").decode()


def _cell(value: str | float | None) -> str | float | None:
    if isinstance(value, str) and value.startswith(FORMULA) and not _is_number(value):
        return f"'{value}"
    return value


def _is_number(text: str) -> bool:
    """Classes may be called -1 and +1."""
    try:
        float(text)
    except ValueError:
        return False
    return True
