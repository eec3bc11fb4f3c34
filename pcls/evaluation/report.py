"""The report of a run, or of several: one HTML page that needs nothing but a browser, and the same as JSON.

Python computes what is drawn (places, paths, words); the templates in `sections` say how it looks. Everything that
comes from the user's data (class names, record names, facts) reaches the page only through them, which escape it.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pcls.atomic import atomic_write
from pcls.errors import UserError
from pcls.evaluation.charts import History, charts, overlaid, speed_charts
from pcls.evaluation.metrics import Evaluation
from pcls.evaluation.sections.audit import Audit, audit_view
from pcls.evaluation.sections.calibrated import BeforeAfter, calibration_view
from pcls.evaluation.sections.confusion import MAX_FIGURES, confused_pairs, heat_map, matrix
from pcls.evaluation.sections.numbers import class_view, headline, shot_rows, weakest_first
from pcls.evaluation.sections.picture import charts_png
from pcls.evaluation.sections.records import (
    MAX_LOSSES,
    MAX_SUSPECTS,
    Explained,
    Mistake,
    explained_json,
    explained_view,
    record_json,
    record_view,
    top_losses,
)
from pcls.evaluation.sections.speed import speed, speed_view
from pcls.evaluation.text import evaluation_json
from pcls.observe.pages import page_template

SECTIONS = "pcls.evaluation.sections"
SCROLL_ABOVE = 100  # Classes above which the per-class table scrolls inside the page.


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
      history: rows of metrics.jsonl, of kind "train", "eval" or "goodput"; other kinds are passed over. Values may be
        missing, null or not finite, and become gaps. Of two rows of one kind and step the later holds (a resumed run).
      mistakes: records with the largest losses, in any order; the page shows the `MAX_LOSSES` largest.
      facts: section name -> key -> value, such as "Recipe" -> "optimizer" -> "adamw".
      tables: shown near the top, such as a comparison of candidates.
      records: what was trained on: `images` or `sequences`.
      audit: of the data.
      fit: what a calibration did.
      suspects: records whose label may be wrong, the likeliest first.
      suspects_found: how many there are; more than are shown.
      explained: records with what speaks for their class.
      method: how that was found, in words.
      plan: what was to be expected of the run, beside what happened.
    """

    title: str
    subtitle: str
    evaluation: Evaluation | None
    history: History
    mistakes: Sequence[Mistake]
    facts: Mapping[str, Mapping[str, str]]
    tables: Sequence[Table] = ()
    records: str = "images"
    audit: Audit | None = None
    fit: BeforeAfter | None = None
    suspects: Sequence[Mistake] = ()
    suspects_found: int = 0
    explained: Sequence[Explained] = ()
    method: str = ""
    plan: Table | None = None


@dataclass(frozen=True)
class RunsReport:
    """Several runs side by side.

    Attributes:
      title, subtitle: of the page.
      histories: rows of metrics.jsonl by the run's name, in the order of the curves.
      tables: of their numbers and settings.
      records: what was trained on.
    """

    title: str
    subtitle: str
    histories: Mapping[str, History]
    tables: Sequence[Table]
    records: str = "images"


def render(report: RunReport | RunsReport) -> str:
    """Returns the report as one self-contained HTML page.

    It loads nothing. The only script is the one of the confusion map, where there is one; the page's policy names it by
    its digest, so that the browser would run no other.
    """
    view = _run_view(report) if isinstance(report, RunReport) else _runs_view(report)
    script = _script() if "image" in (view["confusion"] or {}) else ""
    page = page_template(SECTIONS, "page.html.j2").render(
        title=report.title,
        subtitle=report.subtitle,
        tables=[_table_view(table) for table in report.tables],
        script=bool(script),
        script_digest=_digest(script),
        **view,
    )
    # File names that are not UTF-8 reach Python as lone surrogates, which no HTML file can hold.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def write(report: RunReport | RunsReport, path: Path) -> Path:
    """Writes the report to `path`, whole or not at all, and returns `path`. Makes the folder if it is missing."""
    return atomic_write(path, render(report))


def write_png(report: RunReport | RunsReport, path: Path) -> Path:
    """Writes the report's curves as one picture; UserError where there are none."""
    if isinstance(report, RunReport):
        drawn = [*charts(report.history), *speed_charts(report.history, report.records)]
    else:
        drawn = overlaid(report.histories, report.records)
    if not any(chart.lines for chart in drawn):
        raise UserError(f"--png {path}: the run has no row in metrics.jsonl yet, and so no curve to draw")
    return atomic_write(path, charts_png(drawn))


def report_json(report: RunReport | RunsReport) -> dict[str, Any]:
    """What the page says as plain values, without pictures and confusion counts; `null` for what is not known."""
    return _finite(_run_json(report) if isinstance(report, RunReport) else _runs_json(report))


def _finite(value: Any) -> Any:
    """The same without NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _runs_json(report: RunsReport) -> dict[str, Any]:
    return {
        "title": report.title,
        "subtitle": report.subtitle,
        "tables": {table.title: _table_json(table) for table in report.tables},
        "histories": {name: [dict(row) for row in rows] for name, rows in report.histories.items()},
    }


def _run_json(report: RunReport) -> dict[str, Any]:
    evaluation, found = report.evaluation, speed(report.history)
    names = () if evaluation is None else evaluation.class_names
    return {
        "title": report.title,
        "subtitle": report.subtitle,
        "tables": {table.title: _table_json(table) for table in report.tables},
        "evaluation": None if evaluation is None else evaluation_json(evaluation),
        "data": None if report.audit is None else asdict(report.audit),
        "confused_pairs": [] if evaluation is None else [asdict(pair) for pair in confused_pairs(evaluation)],
        "top_losses": [record_json(mistake, names) for mistake in top_losses(report.mistakes)],
        "labels_to_check": {
            "found": report.suspects_found,
            "shown": [record_json(suspect, names) for suspect in report.suspects],
        },
        "explanations": {
            "method": report.method,
            "records": [explained_json(explained, names) for explained in report.explained],
        },
        "calibration": None if report.fit is None else asdict(report.fit),
        "speed": None if found is None else asdict(found),
        "plan": None if report.plan is None else _table_json(report.plan),
        "facts": {section: dict(facts) for section, facts in report.facts.items()},
        "history": [dict(row) for row in report.history],
    }


NOTHING: dict[str, Any] = {
    "headline": [],
    "notices": (),
    "audit": None,
    "curves": [],
    "overlaid": False,
    "calibration": None,
    "confusion": None,
    "pairs": [],
    "classes": [],
    "shots": [],
    "scroll": False,
    "losses": [],
    "suspects": [],
    "suspects_found": 0,
    "explained": [],
    "method": "",
    "speed": None,
    "speed_curves": [],
    "plan": None,
    "facts": {},
}


def _run_view(report: RunReport) -> dict[str, Any]:
    evaluation = report.evaluation
    names = () if evaluation is None else evaluation.class_names
    own: dict[str, Any] = {
        "curves": charts(report.history),
        "speed": speed_view(speed(report.history)),
        "speed_curves": speed_charts(report.history, report.records),
        "plan": None if report.plan is None else _table_view(report.plan),
        "audit": audit_view(report.audit),
        "facts": {section: dict(facts) for section, facts in report.facts.items() if facts},
    }
    if evaluation is not None:
        many = len(names) > MAX_FIGURES
        rows = weakest_first(evaluation)
        own |= {
            "headline": headline(evaluation),
            "notices": evaluation.notices,
            "calibration": calibration_view(evaluation.quality, evaluation.calibration, report.fit),
            "confusion": vars(heat_map(evaluation)) if many else vars(matrix(evaluation)),
            "pairs": confused_pairs(evaluation),
            "classes": [class_view(number, row, evaluation.train_counts) for number, row in rows],
            "shots": shot_rows(evaluation),
            "scroll": len(names) > SCROLL_ABOVE,
            "losses": [record_view(mistake, names) for mistake in top_losses(report.mistakes, MAX_LOSSES)],
            "suspects": [record_view(suspect, names) for suspect in report.suspects[:MAX_SUSPECTS]],
            "suspects_found": report.suspects_found,
            "explained": [explained_view(explained, names) for explained in report.explained],
            "method": report.method,
        }
    return NOTHING | own


def _runs_view(report: RunsReport) -> dict[str, Any]:
    return NOTHING | {"curves": overlaid(report.histories, report.records), "overlaid": True}


def _script() -> str:
    """As the template includes it, which leaves out the last line break."""
    return resources.files(SECTIONS).joinpath("zoom.js").read_text(encoding="utf-8").removesuffix("\n")


def _digest(script: str) -> str:
    """As a Content-Security-Policy names a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii") if script else ""


# Tables.


def _table_json(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


_NUMERIC = re.compile(r"[-+−±]?\s?[\d.,]+(e[-+]?\d+)?(\s?±\s?[\d.,]+)?(\s?(%|[a-zA-Zµ]{1,3}(/s)?))?|[-–—]|")


def _table_view(table: Table) -> dict[str, Any]:
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    numeric = [bool(cells) and all(_NUMERIC.fullmatch(cell.strip()) for cell in cells) for cells in columns]
    return {"title": table.title, "note": table.note, "columns": table.columns, "rows": table.rows, "numeric": numeric}
