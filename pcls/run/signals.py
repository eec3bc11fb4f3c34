"""Signals and a cloud's notice ask for an end in good order: finish the step, save, say how to resume."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax

from pcls.errors import RestartRequested
from pcls.parallel.processes import preempted
from pcls.run.notices import watch_notices


@contextmanager
def stop_requests(say: Callable[[str], None], stop_within: float = 0.0) -> Iterator[Callable[[int], bool]]:
    """Yields a function that tells, dispatch by dispatch, whether to stop; all processes get the same answer.

    Asked by Ctrl-C, SIGTERM, SIGUSR1 (Slurm's `--signal`) or the notice of a cloud. A second Ctrl-C ends at once.
    Outside the main thread (a notebook's worker) signals are left alone.

    Args:
      say: tells a person.
      stop_within: seconds after which the process ends with the code for a restart, done or not, because its machine is
        taken away or another process is gone; not after Ctrl-C. 0: as long as it takes.
    """
    stop = _Stop(say, stop_within)
    # jax turns SIGTERM into a step that all processes agree on.
    several = jax.process_count() > 1
    watched = [signal.SIGINT, signal.SIGUSR1] if several else [signal.SIGINT, signal.SIGUSR1, signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread():
        watched = []
    before = {number: signal.signal(number, stop.by_signal) for number in watched}
    watch_notices(stop.by_notice, stop.ended)
    try:
        # Counted, because several steps in a dispatch leave gaps between the steps that are asked about.
        asked = itertools.count(1)
        yield lambda step: stop.agreed(next(asked)) if several else stop.requested.is_set()
    finally:
        stop.ended.set()
        for number, old in before.items():
            signal.signal(number, old)


class _Stop:
    def __init__(self, say: Callable[[str], None], within: float):
        self.requested, self.ended = threading.Event(), threading.Event()
        self._say = say
        self._within = within

    def by_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._ask(signal.Signals(number).name, hurried=number != signal.SIGINT)

    def by_notice(self, text: str) -> None:
        self._ask(text, hurried=True)

    def agreed(self, asked: int) -> bool:
        """Whether all processes stop now; the first to know has had a signal, and the others hear of it here."""
        stopping = preempted(asked)
        if stopping and not self.requested.is_set():
            self.requested.set()
            self._hurry()
        return stopping

    def _ask(self, what: str, *, hurried: bool) -> None:
        if not self.requested.is_set() and hurried:
            self._hurry()
        self.requested.set()
        self._say(f"{what}: saving after this step; Ctrl-C now ends at once")
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def _hurry(self) -> None:
        if self._within:
            threading.Thread(target=self._end_late, name="deadline", daemon=True).start()

    def _end_late(self) -> None:
        if not self.ended.wait(self._within):
            print(
                f"pcls: not saved within {self._within:,.0f} s (checkpoint.stop_within); the last checkpoint stays",
                file=sys.stderr,
                flush=True,
            )
            os._exit(RestartRequested.exit_code)
