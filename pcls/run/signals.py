"""Ctrl-C and SIGTERM ask for an end in good order: finish the step, save, say how to resume."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import jax

from pcls.parallel.processes import preempted


@contextmanager
def stop_requests(say: Callable[[str], None]) -> Iterator[Callable[[int], bool]]:
    """Yields a function that tells, dispatch by dispatch, whether to stop; all processes get the same answer.

    A second Ctrl-C ends at once. Outside the main thread (a notebook's worker) signals are left alone.
    """
    requested = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        if requested.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        requested.set()
        say(f"{signal.Signals(number).name}: saving after this step; once more to end at once")
        if jax.process_count() > 1:
            # jax turns SIGTERM into a step that all processes agree on.
            os.kill(os.getpid(), signal.SIGTERM)

    if jax.process_count() > 1:
        watched = [signal.SIGINT]
    else:
        watched = [signal.SIGINT, signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread():
        watched = []
    before = {number: signal.signal(number, handler) for number in watched}
    try:
        # Counted, because several steps in a dispatch leave gaps between the steps that are asked about.
        asked = itertools.count(1)
        yield lambda step: preempted(next(asked)) if jax.process_count() > 1 else requested.is_set()
    finally:
        for number, old in before.items():
            signal.signal(number, old)
