"""Profiler traces of some steps, for XProf or TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax


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

    def after(self, step: int) -> None:
        """Starts before the first step of the range, and stops when the step after its last has been dispatched.

        One more than the last: by then the host has read the numbers of the last, so it is in the trace as a whole.
        """
        if self._steps is None:
            return
        if not self._tracing and self._steps.start - 1 <= step < self._steps.stop - 1:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        elif self._tracing and step >= self._steps.stop:
            self.close()

    def close(self) -> None:
        """Ends a trace that is going on."""
        if not self._tracing:
            return
        self._tracing, self._steps = False, None
        jax.profiler.stop_trace()
        self._say(f"profiled: look at it with: tensorboard --logdir {self._folder} (needs pip install xprof)")
