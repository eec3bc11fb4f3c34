"""The training loop. What it works with is handed in; it knows no files, no mesh, no evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from pcls.config.duration import round_half_up
from pcls.data.pipeline import Batch
from pcls.errors import Diverged
from pcls.training.state import TrainState
from pcls.training.step import Metrics, TrainStep

# Steps in a row without a finite loss and gradient. One such step is skipped; so many do not come back by themselves.
MAX_NOT_FINITE = 20


@dataclass(frozen=True)
class Plan:
    """How long, and how often what.

    Attributes:
      steps: of the whole run.
      epoch_steps: records / batch size, a fraction where they do not divide.
      batch_size: images in a global step.
      evaluate_every, save_every, log_every: steps, 1 or more; fractions where an epoch is one.
    """

    steps: int
    epoch_steps: float
    batch_size: int
    evaluate_every: float
    save_every: float
    log_every: float

    def due(self, step: int, every: float) -> bool:
        """Whether a multiple of `every`, rounded, falls on this step; after the last step all is due."""
        return step == self.steps or step == round_half_up(round_half_up(step / every) * every)


class Hooks(Protocol):
    """What the loop calls out to."""

    def place(self, batch: Batch) -> Batch:
        """Brings a host batch to the devices."""

    def progress(self, meter: Meter, step: int) -> None:
        """Called after every step; shows the meter's numbers when it is time to."""

    def log(self, row: dict[str, Any]) -> None:
        """Keeps a training row."""

    def evaluate(self, state: TrainState, step: int) -> float:
        """Evaluates, keeps and shows the result; returns top-1."""

    def save(self, state: TrainState, step: int) -> None:
        """Starts a checkpoint."""

    def stop_requested(self, step: int) -> bool:
        """Whether the run should end early, in good order."""


def train_loop(
    state: TrainState, train_step: TrainStep, batches: Iterator[Batch], plan: Plan, hooks: Hooks
) -> tuple[TrainState, bool]:
    """Trains from the state's step to the plan's last.

    Args:
      state: its buffers are given up to the first step.
      train_step: compiled.
      batches: of the steps from the state's on.
      plan: when to do what.
      hooks: what to do it with.

    Returns:
      The state, and whether the plan was finished (False: it stopped early on request, and saved).

    Raises:
      Diverged: too many steps in a row whose loss or gradient was not finite.
    """
    first = int(state.step) + 1
    meter = Meter(plan)
    for step in range(first, plan.steps + 1):
        with meter.waiting():
            batch = next(batches)
        state, metrics = train_step(state, hooks.place(batch))
        # One step late: the devices are busy with this step while the host reads the last one's numbers.
        meter.count(step, metrics)
        hooks.progress(meter, step)
        if plan.due(step, plan.log_every) and meter.has_numbers:
            hooks.log(meter.row(step))
        if plan.due(step, plan.evaluate_every):
            with meter.paused():
                state = state.with_best(hooks.evaluate(state, step))
        stopping = step < plan.steps and hooks.stop_requested(step)
        if stopping or plan.due(step, plan.save_every):
            hooks.save(state, step)
        if stopping:
            return state, False
    return state, True


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

    def count(self, step: int, metrics: Metrics) -> None:
        """Takes a step's metrics and reads those of the step before; the last step's are read at once."""
        self._steps += 1
        self._read()
        self._late = metrics
        if step == self._plan.steps:
            self._read()

    def _read(self) -> None:
        if self._late is None:
            return
        values = {name: float(value) for name, value in jax.device_get(self._late).items()}
        self._late = None
        self._not_finite = 0 if values["finite"] else self._not_finite + 1
        if self._not_finite >= MAX_NOT_FINITE:
            raise Diverged(
                f"the loss or its gradient was not finite for {MAX_NOT_FINITE} steps in a row; "
                "lower optimizer.lr, lengthen optimizer.warmup, or set optimizer.clip_norm"
            )
        self._sums["loss"] += values["loss"] * values["weight"]
        self._sums["correct"] += values["correct"]
        self._sums["weight"] += values["weight"]

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
