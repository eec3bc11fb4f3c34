"""The training loop. What it works with is handed in; it knows no files, no mesh, no evaluation."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from pcls.config.duration import round_half_up
from pcls.errors import Diverged
from pcls.training.state import TrainState
from pcls.training.step import Metrics

# Takes the state and a placed batch.
Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]

# Steps in a row without a finite loss and gradient. One such step is skipped; so many do not come back by themselves.
MAX_NOT_FINITE = 20


@dataclass(frozen=True)
class Plan:
    """How long, and how often what.

    Attributes:
      steps: of the whole run.
      epoch_steps: records / batch size, a fraction where they do not divide.
      batch_size: images in a global step.
      at_once: steps given to the devices together, where nothing is due in between.
      batches_at: how many batches the update that begins at a step takes; its steps are then finished together.
      evaluate_every, save_every, log_every: steps, 1 or more; fractions where an epoch is one.
    """

    steps: int
    epoch_steps: float
    batch_size: int
    evaluate_every: float
    save_every: float
    log_every: float
    at_once: int = 1
    batches_at: Callable[[int], int] = lambda step: 1

    def next_due(self, step: int, every: float) -> int:
        """The first step after `step` that a multiple of `every`, rounded, falls on; all is due after the last step."""
        multiples = (round_half_up(n * every) for n in itertools.count(int(step / every)))
        return min(self.steps, next(multiple for multiple in multiples if multiple > step))

    def due(self, first: int, step: int, every: float) -> bool:
        """Whether a multiple of `every`, rounded, falls after the step `first`, and on `step` or before it."""
        return self.next_due(first, every) <= step

    def together(self, step: int) -> int:
        """How many steps after `step` to dispatch at once: `at_once`, or 1 on the way to what is due sooner."""
        due = min(self.next_due(step, self.evaluate_every), self.next_due(step, self.save_every))
        return self.at_once if step + self.at_once <= due else 1

    def after_dispatch(self, step: int) -> int:
        """The step at which what is dispatched at `step` ends."""
        return step + self.together(step) * self.batches_at(step)


class Hooks(Protocol):
    """What the loop calls out to."""

    def place(self, batch: Any) -> Any:
        """Brings a host batch, or several of them stacked, to the devices."""

    def progress(self, meter: Meter, step: int) -> None:
        """Called after every dispatch; shows the meter's numbers when it is time to."""

    def log(self, row: dict[str, Any]) -> None:
        """Keeps a training row."""

    def finish(self, state: TrainState) -> TrainState:
        """Called after the last step, before its evaluation; returns the state to evaluate and to keep."""

    def evaluate(self, state: TrainState, step: int) -> float:
        """Evaluates, keeps and shows the result; returns what the best of a run goes by: top-1, or mAP."""

    def save(self, state: TrainState, step: int) -> None:
        """Starts a checkpoint."""

    def stop_requested(self, step: int) -> bool:
        """Whether the run should end early, in good order."""


def train_loop(
    state: TrainState, train_step: Step, train_steps: Step, batches: Iterator[Any], plan: Plan, hooks: Hooks
) -> tuple[TrainState, bool]:
    """Trains from the state's step to the plan's last.

    Args:
      state: its buffers are given up to the first step.
      train_step: compiled; takes a batch.
      train_steps: the same for `plan.at_once` batches, stacked.
      batches: of the steps from the state's on.
      plan: when to do what.
      hooks: what to do it with.

    Returns:
      The state, and whether the plan was finished (False: it stopped early on request, and saved).

    Raises:
      Diverged: too many steps in a row whose loss or gradient was not finite.
    """
    step = int(state.step)
    meter = Meter(plan)
    while step < plan.steps:
        first, count = step, plan.together(step)
        with meter.waiting():
            batch = next(batches) if count == 1 else _stacked(batches, count)
        state, metrics = (train_step if count == 1 else train_steps)(state, hooks.place(batch))
        count *= plan.batches_at(first)
        step += count
        # One dispatch late: the devices are busy with this one while the host reads the last one's numbers.
        meter.count(step, count, metrics)
        hooks.progress(meter, step)
        if plan.due(first, step, plan.log_every) and meter.has_numbers:
            hooks.log(meter.row(step))
        if step == plan.steps:
            state = hooks.finish(state)
        if plan.due(first, step, plan.evaluate_every):
            with meter.paused():
                state = state.with_best(hooks.evaluate(state, step))
        stopping = step < plan.steps and hooks.stop_requested(step)
        if stopping or plan.due(first, step, plan.save_every):
            hooks.save(state, step)
        if stopping:
            return state, False
    return state, True


def _stacked(batches: Iterator[Any], count: int) -> Any:
    return jax.tree.map(lambda *parts: np.stack(parts), *itertools.islice(batches, count))


class Meter:
    """Means over the steps since the last row, and the rates of the loop."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._late: Metrics | None = None
        self._not_finite = 0
        self._restart()

    def _restart(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0
        self._steps = 0
        self._sums = dict.fromkeys(("loss", "correct", "weight"), 0.0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out of the rates."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def count(self, step: int, count: int, metrics: Metrics) -> None:
        """Takes the metrics of `count` steps up to `step` and reads those before; the last are read at once."""
        self._steps += count
        self._read()
        self._late = metrics
        if step == self._plan.steps:
            self._read()

    def _read(self) -> None:
        if self._late is None:
            return
        late = {name: np.atleast_1d(value) for name, value in jax.device_get(self._late).items()}
        self._late = None
        for loss, correct, weight, finite in zip(
            late["loss"], late["correct"], late["weight"], late["finite"], strict=True
        ):
            self._not_finite = 0 if finite else self._not_finite + 1
            if self._not_finite >= MAX_NOT_FINITE:
                raise Diverged(
                    f"the loss or its gradient was not finite for {MAX_NOT_FINITE} steps in a row; "
                    "lower optimizer.lr, lengthen optimizer.warmup, or set optimizer.clip_norm"
                )
            self._sums["loss"] += float(loss) * float(weight)
            self._sums["correct"] += float(correct)
            self._sums["weight"] += float(weight)

    @property
    def has_numbers(self) -> bool:
        """Whether any step's metrics have been read since the last row."""
        return self._sums["weight"] > 0

    def current(self, step: int) -> dict[str, Any]:
        """The numbers since the last row, without starting anew; `eta` in seconds."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        weight = max(self._sums["weight"], 1)
        return {
            "kind": "train",
            "step": step,
            "epoch": step / self._plan.epoch_steps,
            "loss": self._sums["loss"] / weight,
            "accuracy": self._sums["correct"] / weight,
            "images_per_second": self._steps * self._plan.batch_size / elapsed,
            "data_wait": self._waited / elapsed,
            "eta": (self._plan.steps - step) * elapsed / max(self._steps, 1),
        }

    def row(self, step: int) -> dict[str, Any]:
        """The numbers since the last row; the next row starts here."""
        row = self.current(step)
        self._restart()
        return row
