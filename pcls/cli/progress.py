"""The progress line of verbs that go through a set."""

from __future__ import annotations

import sys
import time
from threading import Lock

# Seconds between two states of the line.
REDRAW = 0.2


class Progress:
    """A line that counts up, on a terminal; nothing elsewhere.

    Args:
      total: what is counted to.
      unit: what is counted.
    """

    def __init__(self, total: int, unit: str = "records"):
        self._total = total
        self._unit = unit
        self._done = 0
        self._shown = 0.0
        self._lock = Lock()
        self._terminal = sys.stderr.isatty()

    def advance(self, count: int) -> None:
        """Counts; from any thread."""
        with self._lock:
            self._done += count
            if self._terminal and time.monotonic() - self._shown > REDRAW:
                self._shown = time.monotonic()
                sys.stderr.write(f"\r{self._done:,} of {self._total:,} {self._unit} ({self._done / self._total:.0%})")
                sys.stderr.flush()

    def close(self) -> None:
        """Takes the line away."""
        if self._terminal and self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
