"""Profiler traces of some steps, for XProf or TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax

from pcls.errors import UserError


class Profiler:
    """Traces the steps asked for; tell it after every dispatch.

    Args:
      folder: where the trace goes; the folder to name to `tensorboard --logdir`.
      steps: to trace; None: nothing is traced.
      say: tells a person.
    """

    def __init__(self, folder: Path, steps: range | None, say: Callable[[str], None]):
        self._folder = folder
        self._steps = steps
        self._say = say
        self._tracing = False
        self._before = -1

    def after(self, step: int, following: int) -> None:
        """Starts before the first step of the range, and stops after the dispatch that follows its last.

        One dispatch later: by then the host has read the numbers of the last step, so it is in the trace as a whole.

        Args:
          step: the last that was dispatched.
          following: the last that the next dispatch holds.
        """
        if self._steps is None:
            return
        if not self._tracing and self._steps.start <= following and step < self._steps.stop - 1:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        elif self._tracing and self._before >= self._steps.stop - 1:
            self.close()
        self._before = step

    def close(self) -> None:
        """Ends a trace that is going on."""
        if not self._tracing:
            return
        self._tracing, self._steps = False, None
        jax.profiler.stop_trace()
        self._say(f"profiled: look at it with: tensorboard --logdir {self._folder} (needs pip install xprof)")


def check_steps(steps: range | None, first: int, last: int) -> None:
    """UserError where none of the steps to trace is among those from `first` to `last`, counted from 1."""
    if steps is not None and (steps.start > last or steps.stop <= first):
        raise UserError(
            f"profile: steps {steps.start:,} to {steps.stop - 1:,} are not among those of this run, "
            f"{first:,} to {last:,}; name some of them, as in --profile {min(first + 2, last)}:{min(first + 4, last)}"
        )
