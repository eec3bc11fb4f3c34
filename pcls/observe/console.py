"""What a person sees while a run goes on: one progress line, and a row that stays for every evaluation."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

# What an evaluation line shows of an evaluation.
SHARES = {"top1": "top-1", "top5": "top-5", "map": "mAP", "micro_f1": "micro F1"}
# A terminal's line is redrawn this often; a log file gets a line of its own this often. Seconds.
TERMINAL_INTERVAL, LOG_INTERVAL = 0.2, 10.0


class Console:
    """Writes progress to a stream.

    Args:
      steps: of the whole run.
      stream: standard error by default, so that results on standard output stay clean.
      records: what is trained on: `images` or `sequences`.
      accuracy: what the share of right answers in training is called.
    """

    def __init__(self, steps: int, stream: TextIO | None = None, records: str = "images", accuracy: str = "accuracy"):
        self._steps = steps
        self._records = records
        self._accuracy = accuracy
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._shown = 0.0
        self._width = 0

    def due(self) -> bool:
        """Whether enough time has passed for another progress line; cheap enough for every step."""
        return time.monotonic() - self._shown > (TERMINAL_INTERVAL if self._terminal else LOG_INTERVAL)

    def progress(self, row: Mapping[str, Any]) -> None:
        """Shows a training row; on a terminal it takes the place of the last one."""
        self._shown = time.monotonic()
        text = progress_line(row, self._steps, self._records, self._accuracy)
        if self._terminal:
            self._redraw(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """Writes a line that stays."""
        if self._terminal and self._width:
            self._redraw("")
            self._stream.write("\r")
        self._width = 0
        self._stream.write(text + "\n")
        self._stream.flush()

    def _redraw(self, text: str) -> None:
        # One column less than the terminal has: a full line would wrap and could not be redrawn.
        text = text[: shutil.get_terminal_size().columns - 1]
        self._stream.write("\r" + text.ljust(self._width))
        self._width = len(text)


def progress_line(row: Mapping[str, Any], steps: int, records: str = "images", accuracy: str = "accuracy") -> str:
    """`step 1,200/4,690  epoch 2.6  loss 0.0512  accuracy 98.4 %  12,345 images/s  data 1 %  ETA 3:12`."""
    return (
        f"step {row['step']:,}/{steps:,}  epoch {row['epoch']:.1f}  loss {row['loss']:.4f}  "
        f"{accuracy} {row['accuracy']:.1%}  {row['images_per_second']:,.0f} {records}/s  "
        f"data {row['data_wait']:.0%}  ETA {duration(row['eta'])}"
    )


def evaluation_line(row: Mapping[str, Any]) -> str:
    """`eval  step 469  epoch 1.0  top-1 98.71 %  top-5 99.98 %  loss 0.0402  n 10,000`."""
    best = "  best so far" if row.get("best") else ""
    undecodable = f"  undecodable {row['undecodable']:,}" if row["undecodable"] else ""
    shares = "  ".join(f"{words} {row[name]:.2%}" for name, words in SHARES.items() if name in row)
    return (
        f"eval  step {row['step']:,}  epoch {row['epoch']:.1f}  {shares}  "
        f"loss {row['loss']:.4f}  n {row['n']:,}{undecodable}{best}"
    )


def telling(summary: Mapping[str, float | int], classes: int) -> dict[str, float | int]:
    """A summary without what says nothing: among five classes or fewer one of five answers is always right."""
    return {name: value for name, value in summary.items() if name != "top5" or classes > 5}


def duration(seconds: float) -> str:
    """`0:07`, `3:12`, `1:02:03`, `2d 04:05`; a dash where it is not known."""
    if not 0 <= seconds < 1e8:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
