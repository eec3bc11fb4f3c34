"""The findings as one HTML page with thumbnails, which needs nothing but a browser."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from pcls.data.decode import fit
from pcls.data.doctor.checks import counts_of
from pcls.data.doctor.findings import Finding, Severity
from pcls.data.doctor.look import open_picture, shrunk
from pcls.data.doctor.survey import Survey
from pcls.data.doctor.text import QUANTILES, common_folder, formats, size_facts
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.source import Unreadable
from pcls.observe.pages import page_template

# Of each finding. With all kinds of findings the page stays below some megabytes.
SHOWN_PICTURES = 24
SHOWN_OF_A_CASE = 4
SHOWN_LINES = 200
SIDE = 152
# A page for everybody's browser: with more classes the table says the extremes.
SHOWN_CLASSES = 500


def page(survey: Survey, findings: Sequence[Finding], title: str) -> str:
    """Returns a self-contained page that loads nothing and runs no script."""
    folder = common_folder(survey, findings)
    html = page_template("pcls.data.doctor", "page.html.j2").render(
        title=title,
        folder=folder,
        splits=[(split, f"{len(survey.of_split(split)):,}") for split in survey.splits],
        totals=[(s.name.lower(), sum(f.severity is s for f in findings)) for s in Severity],
        findings=[_finding_view(survey, finding, folder) for finding in findings],
        classes=_class_view(survey),
        sizes=size_facts(survey),
        quantiles=QUANTILES,
        formats=formats(survey),
    )
    # File names that are not UTF-8 reach Python as lone surrogates, which no HTML file can hold.
    return html.encode("utf-8", "backslashreplace").decode("utf-8")


def _finding_view(survey: Survey, finding: Finding, folder: str) -> dict[str, Any]:
    cases, room = [], SHOWN_PICTURES
    for case in finding.cases:
        shown = case[: min(SHOWN_OF_A_CASE, room)].tolist()
        if not shown:
            break
        room -= len(shown)
        cases.append({"pictures": [_picture(survey, r, folder) for r in shown], "more": len(case) - len(shown)})
    return {
        "kind": finding.kind,
        "severity": finding.severity.name.lower(),
        "title": finding.title,
        "count": finding.count,
        "advice": finding.advice,
        "lines": finding.lines[:SHOWN_LINES],
        "more": max(len(finding.lines) - SHOWN_LINES, len(finding.cases) - len(cases), 0),
        "cases": cases,
    }


def _picture(survey: Survey, record: int, folder: str) -> dict[str, Any]:
    split, number = survey.place(record)
    return {
        "name": survey.name(record).removeprefix(folder),
        "split": split if len(survey.splits) > 1 else "",
        "label": survey.label(record),
        "about": survey.description(record),
        "image": thumbnail(survey, split, number) if survey.looks["decoded"][record] else None,
    }


def thumbnail(survey: Survey, split: str, number: int) -> dict[str, Any] | None:
    """A data: URI of the whole picture at SIDE pixels or less, and its size; None: it cannot be read any more."""
    (stored,) = survey.sources[split].__getitems__([number])
    if isinstance(stored.image, Unreadable):
        return None
    try:
        picture = shrunk(open_picture(stored.image), SIDE, "RGB")
        scale = min(1.0, SIDE / max(picture.size))
        width, height = (max(1, round(scale * side)) for side in picture.size)
        pixels = fit(picture, Preprocessing(height, width, 3, (), (), crop_mode="squash"))
    # The file may have changed since it was looked at.
    except Exception:
        return None
    # JPEG is a sixth of PNG's size for a photograph, and blurs a digit of 28 pixels.
    small = max(width, height) <= 64
    return {"uri": _uri(pixels, "PNG" if small else "JPEG"), "width": width, "height": height, "coarse": small}


def _uri(pixels: np.ndarray, kind: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, quality=75)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _class_view(survey: Survey) -> dict[str, Any]:
    counts = np.stack([counts_of(survey, split) for split in survey.splits], axis=1)
    order = np.argsort(-counts[:, 0], kind="stable")
    largest = max(1, int(counts.max()))
    shown = order if len(order) <= SHOWN_CLASSES else np.r_[order[: SHOWN_CLASSES // 2], order[-SHOWN_CLASSES // 2 :]]
    rows = [
        {
            "number": int(label),
            "name": survey.class_names[label],
            "counts": [f"{count:,}" for count in counts[label].tolist()],
            "share": round(counts[label, 0] / largest, 4),
        }
        for label in shown
    ]
    return {"rows": rows, "hidden": len(order) - len(shown), "total": f"{len(order):,}"}
