"""Speed on the report: where the time of a run went."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pcls.evaluation.charts import finite, percent
from pcls.observe.goodput import CAUSES

# In the order of the bar.
WORDS = {
    "compile": "compiling",
    "idle": "opening data, restoring",
    "data": "waiting for data",
    "checkpoint": "checkpoints",
    "evaluation": "evaluation",
}


@dataclass(frozen=True)
class Part:
    """A part of the time: what for, seconds, share of all."""

    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Speed:
    """Where the time went.

    Attributes:
      seconds: of all processes of the run, as far as their rows were kept.
      processes: how many there were: one, and one more for each resume.
      parts: training first.
      rate: the median of images per second; None: not known.
      data_wait: the mean share of the time that steps waited for data; None: not known.
      mfu: the median share of the devices' peak that the model's own FLOPs used; None: not known.
    """

    seconds: float
    processes: int
    parts: tuple[Part, ...]
    rate: float | None
    data_wait: float | None
    mfu: float | None


def speed(history: Sequence[Mapping[str, Any]]) -> Speed | None:
    """Reads it off the rows of metrics.jsonl; None where they hold nothing of it."""
    rates, waits, shares = (
        [value for row in history if row.get("kind") == "train" and (value := finite(row.get(key))) is not None]
        for key in ("images_per_second", "data_wait", "mfu")
    )
    last = last_of_processes([row for row in history if row.get("kind") == "goodput"])
    if not (rates or last):
        return None
    seconds = sum(finite(row.get("seconds")) or 0.0 for row in last)
    lost = {cause: sum(finite(row.get(f"lost_to_{cause}")) or 0.0 for row in last) for cause in ("compile", *CAUSES)}
    spent = {"training": max(0.0, seconds - sum(lost.values())), **{WORDS[cause]: own for cause, own in lost.items()}}
    return Speed(
        seconds=seconds,
        processes=len(last),
        parts=tuple(Part(name, own, own / max(seconds, 1e-9)) for name, own in spent.items()) if last else (),
        rate=statistics.median(rates) if rates else None,
        data_wait=statistics.fmean(waits) if waits else None,
        mfu=statistics.median(shares) if shares else None,
    )


def last_of_processes(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last goodput row of each process: its clock starts at zero, so a row with less time is another's."""
    clock = [finite(row.get("seconds")) or 0.0 for row in rows]
    return [row for i, row in enumerate(rows) if i + 1 == len(rows) or clock[i + 1] < clock[i]]


def speed_view(found: Speed | None) -> dict[str, Any] | None:
    """The section's numbers as the page prints them."""
    if found is None:
        return None
    numbers = [
        ("Per second", None if found.rate is None else f"{found.rate:,.0f}", "median of the rows"),
        ("Data wait", None if found.data_wait is None else percent(found.data_wait, 1), "of the steps' time"),
        ("MFU", None if found.mfu is None else percent(found.mfu, 1), "of the devices' peak, median"),
        ("Goodput", percent(found.parts[0].share, 1) if found.parts else None, "training, of all time"),
    ]
    return {
        "numbers": [(name, text, note) for name, text, note in numbers if text is not None],
        "parts": [(part.name, seconds_text(part.seconds), percent(part.share, 1), part.share) for part in found.parts],
        "total": seconds_text(found.seconds),
        "processes": found.processes,
    }


def seconds_text(seconds: float) -> str:
    """`0.42 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.2g}\u00a0s" if seconds < 10 else f"{seconds:.0f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours:,}\u00a0h {minutes_left}\u00a0min" if hours else f"{minutes}\u00a0min {rest}\u00a0s"
