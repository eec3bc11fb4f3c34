"""The findings as text: for a terminal, for programs, and as a list of records to leave out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pcls.data.doctor.checks import counts_of
from pcls.data.doctor.findings import Finding, Severity
from pcls.data.doctor.look import KINDS, MODES
from pcls.data.doctor.survey import Survey
from pcls.data.quarantine import quarantine_text

SHOWN_CASES = 5
SHOWN_RECORDS = 4
SHOWN_LINES = 8
QUANTILES = (0, 5, 50, 95, 100)


def text(survey: Survey, findings: Sequence[Finding], width: int = 80) -> str:
    """Everything, the most serious first, no line wider than `width` but for what cannot be cut."""
    folder = common_folder(survey, findings)
    lines = [*_summary(survey), *([f"names      below {folder}"] if folder else [])]
    for severity in Severity:
        chosen = [finding for finding in findings if finding.severity is severity]
        if chosen:
            lines += ["", HEADINGS[severity]]
        for finding in chosen:
            lines += ["", *_finding(survey, finding, folder, width)]
    if not findings:
        lines += ["", "Nothing was found."]
    # A control character in a name must not reach the terminal.
    return "\n".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in lines)


HEADINGS = {Severity.SERIOUS: "SERIOUS", Severity.WARNING: "WARNINGS", Severity.NOTE: "NOTES"}


def _summary(survey: Survey) -> Iterator[str]:
    parts = [f"{len(survey.of_split(split)):,} in {split}" for split in survey.splits]
    yield f"images     {', '.join(parts)}"
    yield f"classes    {len(survey.class_names):,}"
    looks = survey.looks[survey.looks["decoded"]]
    if len(looks):
        order = np.argsort(looks["width"].astype(np.int64) * looks["height"], kind="stable")
        low, high = (f"{looks['width'][place]:,} x {looks['height'][place]:,}" for place in order[[0, -1]])
        middle = f"{np.median(looks['width']):,.0f} x {np.median(looks['height']):,.0f}"
        yield f"sizes      {middle} (median), from {low} to {high}"
    shares = [f"{name} {count:,}" for name, count in formats(survey).items()]
    yield f"formats    {', '.join(shares) or 'none can be decoded'}"


def size_facts(survey: Survey) -> dict[str, list[int]]:
    """The QUANTILES of width, height and pixels of what can be decoded, each for itself."""
    looks = survey.looks[survey.looks["decoded"]]
    if not len(looks):
        return {}
    values = {"width": looks["width"], "height": looks["height"]}
    values["pixels"] = looks["width"].astype(np.int64) * looks["height"]
    return {name: np.percentile(v, QUANTILES, method="nearest").astype(int).tolist() for name, v in values.items()}


def formats(survey: Survey) -> dict[str, int]:
    """Images by format and colour mode, the most frequent first."""
    looks = survey.looks[survey.looks["decoded"]]
    codes, counts = np.unique(looks["kind"].astype(int) * len(MODES) + looks["mode"], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    named = [f"{KINDS[code // len(MODES)]} {MODES[code % len(MODES)]}" for code in codes]
    return {named[i]: int(counts[i]) for i in order}


def _finding(survey: Survey, finding: Finding, folder: str, width: int) -> Iterator[str]:
    yield f"{finding.title}: {finding.count}"
    for line in finding.lines[:SHOWN_LINES]:
        yield f"  {line}"[:width]
    for case in finding.cases[:SHOWN_CASES]:
        for position, record in enumerate(case[:SHOWN_RECORDS].tolist()):
            yield from _record(survey, record, folder, width, mark="=" if position else " ")
        if len(case) > SHOWN_RECORDS:
            yield f"  = and {len(case) - SHOWN_RECORDS:,} more of the same"
    more = max(len(finding.lines) - SHOWN_LINES, len(finding.cases) - SHOWN_CASES)
    if more > 0:
        yield f"  and {more:,} more"
    yield from textwrap.wrap(finding.advice, width, initial_indent="  > ", subsequent_indent="    ")


def _record(survey: Survey, record: int, folder: str, width: int, mark: str) -> Iterator[str]:
    """In one line if it fits, else in two."""
    name = survey.name(record).removeprefix(folder)
    split = f"{survey.place(record)[0]}, " if len(survey.splits) > 1 else ""
    note = f"{split}{survey.label(record)}, {survey.description(record)}"
    if len(name) + len(note) + 6 <= width:
        yield f"  {mark} {name}  {note}"
        return
    # The end of a path says more than its start.
    yield f"  {mark} {name if len(name) <= width - 4 else '…' + name[5 - width :]}"
    yield from textwrap.wrap(note, width, initial_indent="      ", subsequent_indent="      ")


def common_folder(survey: Survey, findings: Sequence[Finding]) -> str:
    """What all names that may be shown begin with, up to a slash."""
    shown = {int(record) for finding in findings for case in finding.cases[:100] for record in case[:10]}
    names = [survey.name(record) for record in shown]
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: first.rfind("/", 0, shared) + 1]


def as_json(survey: Survey, findings: Sequence[Finding]) -> dict[str, Any]:
    """Everything, with every case, for programs."""

    def record(number: int) -> dict[str, Any]:
        return {
            "name": survey.name(number),
            "split": survey.place(number)[0],
            "label": survey.label(number),
            "about": survey.description(number),
        }

    return {
        "splits": {
            split: dict(zip(survey.class_names, counts_of(survey, split).tolist(), strict=True))
            for split in survey.splits
        },
        "sizes": {
            name: dict(zip(map(str, QUANTILES), values, strict=True)) for name, values in size_facts(survey).items()
        },
        "formats": formats(survey),
        "findings": [
            {
                "kind": finding.kind,
                "severity": finding.severity.name.lower(),
                "title": finding.title,
                "count": finding.count,
                "advice": finding.advice,
                "lines": list(finding.lines),
                "cases": [[record(number) for number in case.tolist()] for case in finding.cases],
            }
            for finding in findings
        ],
    }


def as_quarantine(survey: Survey, findings: Sequence[Finding]) -> str:
    """A list of what to leave out. Only what is surely wrong is active; the rest is there to be looked at."""
    return quarantine_text(
        (f"{finding.title}: {finding.count}", finding.severity is Severity.SERIOUS, map(survey.name, records))
        for finding in findings
        if (records := finding.left_out.tolist())
    )
