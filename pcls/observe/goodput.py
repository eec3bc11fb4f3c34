"""Goodput: the share of a process's time that went into training steps, and where the rest went."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import jax

# idle: the devices have nothing to do yet (data are opened, a state restored, other processes waited for).
Cause = Literal["idle", "data", "checkpoint", "evaluation"]
CAUSES: tuple[Cause, ...] = ("idle", "data", "checkpoint", "evaluation")

# What jax reports when it has traced, lowered and compiled a function, or fetched its program from the cache.
_COMPILE_EVENTS = "/jax/core/compile/"


class Goodput:
    """Books the time of a process by cause; what no cause claims is training.

    The devices work while the host goes on, so the steps' own time shows as the host's wait for their numbers: it is
    what is left. Time that jax compiles is booked as such wherever it comes up.
    """

    def __init__(self) -> None:
        self._began = time.time()
        self._lost = dict.fromkeys(CAUSES, 0.0)
        self._compiling: list[tuple[float, float]] = []
        jax.monitoring.register_event_time_span_listener(self._on_event)

    def close(self) -> None:
        """Stops listening to the compiler."""
        jax.monitoring.unregister_event_time_span_listener(self._on_event)

    @contextmanager
    def lost_to(self, cause: Cause) -> Iterator[None]:
        """Books the time inside, without what was compiled meanwhile."""
        began = time.time()
        try:
            yield
        finally:
            inside = [span for span in self._compiling if span[0] >= began]
            self._lost[cause] += max(0.0, time.time() - began - union_length(inside))

    def start_training(self) -> None:
        """Ends the idle time before the first step."""
        self._lost["idle"] = time.time() - self._began - union_length(self._compiling)

    def row(self, step: int) -> dict[str, Any]:
        """`seconds` since the start, `goodput` (a share), and the seconds `lost_to_...` each cause."""
        seconds = time.time() - self._began
        lost = [("compile", union_length(self._compiling)), *self._lost.items()]
        goodput = max(0.0, 1 - sum(spent for _, spent in lost) / max(seconds, 1e-9))
        causes = {f"lost_to_{cause}": round(spent, 3) for cause, spent in lost}
        return {"kind": "goodput", "step": step, "seconds": round(seconds, 3), "goodput": round(goodput, 4), **causes}

    def _on_event(self, event: str, start_time: float, end_time: float, **_: str | int) -> None:
        if event.startswith(_COMPILE_EVENTS):
            self._compiling.append((start_time, end_time))


def union_length(spans: Iterable[tuple[float, float]]) -> float:
    """The length that spans cover together: a traced function's span holds those of the functions inside it."""
    covered, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered
