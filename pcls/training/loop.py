"""The training loop. What it works with is handed in; it knows no files, no mesh, no evaluation."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from pcls.config.duration import round_half_up
from pcls.errors import Diverged
from pcls.training.state import TrainState
from pcls.training.step import Metrics

# Takes the state and a placed batch.
Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]

# A loss is compared with the mean of those before it: of so many at most, and of so many at least.
MOST_BEFORE, LEAST_BEFORE = 100, 20


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
      verify_every: the same; 0: never.
      not_finite: so many skipped updates in a row are trouble.
      spike: a loss of more than so many times the mean before it is trouble; 0: none is.
    """

    steps: int
    epoch_steps: float
    batch_size: int
    evaluate_every: float
    save_every: float
    log_every: float
    at_once: int = 1
    batches_at: Callable[[int], int] = lambda step: 1
    verify_every: float = 0.0
    not_finite: int = 20
    spike: float = 0.0

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


class Trouble(NamedTuple):
    """What a run does not come back from by going on.

    Attributes:
      since: the first step that was in it, counted from 1.
      reason: in words.
    """

    since: int
    reason: str


class Hooks:
    """What the loop calls out to; by itself it keeps nothing, and gives up where a run is in trouble."""

    def begin(self, step: int) -> None:
        """Called before every dispatch, with the number of finished steps."""

    def place(self, batch: Any) -> Any:
        """Brings a host batch, or several of them stacked, to the devices."""
        return batch

    def verified(self, train: Step, state: TrainState, batch: Any, step: int) -> tuple[TrainState, Metrics]:
        """Takes a step up to the number `step` in a way that shows whether the devices can be trusted."""
        del step
        return train(state, batch)

    def skipped(self, steps: list[int]) -> None:
        """Hears of updates that were not finite and changed nothing."""

    def roll_back(self, state: TrainState, step: int, trouble: Trouble) -> TrainState:
        """The state of an earlier time, as one at this step: the records since are passed over."""
        raise Diverged(f"step {trouble.since:,}: {trouble.reason}")

    def progress(self, meter: Meter, step: int) -> None:
        """Called after every dispatch; shows the meter's numbers when it is time to."""

    def log(self, row: dict[str, Any]) -> None:
        """Keeps a training row."""

    def finish(self, state: TrainState) -> TrainState:
        """Called after the last step, before its evaluation; returns the state to evaluate and to keep."""
        return state

    def evaluate(self, state: TrainState, step: int) -> float:
        """Evaluates, keeps and shows the result; returns what the best of a run goes by: top-1, or mAP."""
        return -1.0

    def save(self, state: TrainState, step: int) -> None:
        """Starts a checkpoint."""

    def stop_requested(self, step: int) -> bool:
        """Whether the run should end early, in good order."""
        return False


def train_loop(
    state: TrainState, step_of: Callable[[int, int], Step], batches: Iterator[Any], plan: Plan, hooks: Hooks
) -> tuple[TrainState, bool]:
    """Trains from the state's step to the plan's last.

    Args:
      state: its buffers are given up to the first step.
      step_of: the compiled step to take after so many finished ones, for one batch, or for several stacked.
      batches: of the steps from the state's on.
      plan: when to do what.
      hooks: what to do it with.

    Returns:
      The state, and whether the plan was finished (False: it stopped early on request, and saved).
    """
    step = int(state.step)
    meter = Meter(plan)
    while step < plan.steps:
        first, count = step, plan.together(step)
        hooks.begin(step)
        with meter.waiting():
            batch = next(batches) if count == 1 else _stacked(batches, count)
        train, placed = step_of(step, count), hooks.place(batch)
        count *= plan.batches_at(first)
        step += count
        if plan.verify_every and plan.due(first, step, plan.verify_every):
            state, metrics = hooks.verified(train, state, placed, step)
        else:
            state, metrics = train(state, placed)
        # One dispatch late: the devices are busy with this one while the host reads the last one's numbers.
        if skipped := meter.count(step, count, metrics):
            hooks.skipped(skipped)
        trouble = meter.trouble
        if trouble:
            state = hooks.roll_back(state, step, trouble)
            meter.forget()
        hooks.progress(meter, step)
        if plan.due(first, step, plan.log_every) and meter.has_numbers:
            hooks.log(meter.row(step))
        if step == plan.steps:
            state = hooks.finish(state)
        if plan.due(first, step, plan.evaluate_every):
            with meter.paused():
                state = state.with_best(hooks.evaluate(state, step))
        stopping = step < plan.steps and hooks.stop_requested(step)
        if stopping or trouble or plan.due(first, step, plan.save_every):
            hooks.save(state, step)
        if stopping:
            return state, False
    return state, True


def _stacked(batches: Iterator[Any], count: int) -> Any:
    return jax.tree.map(lambda *parts: np.stack(parts), *itertools.islice(batches, count))


class Meter:
    """Means over the steps since the last row, the rates of the loop, and whether its numbers are still good ones.

    Attributes:
      trouble: None: they are.
    """

    def __init__(self, plan: Plan):
        self.trouble: Trouble | None = None
        self._plan = plan
        self._late: tuple[int, int, Metrics] | None = None
        self._bad: list[int] = []
        self._losses: deque[float] = deque(maxlen=MOST_BEFORE)
        self._warm = False
        self._restart()

    def _restart(self) -> None:
        self._restart_rates()
        self._skipped = 0
        self._sums = dict.fromkeys(("loss", "correct", "weight"), 0.0)

    def _restart_rates(self) -> None:
        self._start = time.perf_counter()
        self._waited = self._blocked = 0.0
        self._steps = 0

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

    def count(self, step: int, count: int, metrics: Metrics) -> list[int]:
        """Takes the metrics of `count` steps up to `step` and reads those before; the last are read at once.

        Returns:
          The steps, of those that were read, whose update was skipped.
        """
        self._steps += count
        skipped = self._read()
        self._late = step, count, metrics
        return skipped + self._read() if step == self._plan.steps else skipped

    def forget(self) -> None:
        """The state has been replaced: what is not read yet tells of another one, and its trouble is over."""
        self._late = self.trouble = None
        self._bad = []

    def _read(self) -> list[int]:
        if self._late is None:
            return []
        last, count, metrics = self._late
        self._late = None
        start = time.perf_counter()
        late = {name: np.atleast_1d(value) for name, value in jax.device_get(metrics).items()}
        self._blocked += time.perf_counter() - start
        if not self._warm and last < self._plan.steps:
            # Until now the step was compiled, which says nothing of the rates.
            self._warm = True
            self._restart_rates()
        skipped, updates = [], len(late["loss"])
        for number in range(updates):
            step = last - count + (number + 1) * count // updates
            loss, correct, weight = (float(late[name][number]) for name in ("loss", "correct", "weight"))
            self._watch(step, loss, finite=bool(late["finite"][number]))
            if self._bad:
                skipped.append(step)
                continue
            self._sums["loss"] += loss * weight
            self._sums["correct"] += correct
            self._sums["weight"] += weight
        self._skipped += len(skipped)
        return skipped

    def _watch(self, step: int, loss: float, *, finite: bool) -> None:
        plan = self._plan
        if not finite:
            self._bad.append(step)
            if len(self._bad) >= plan.not_finite:
                reason = f"the loss or its gradient was not finite for {len(self._bad):,} steps in a row"
                self.trouble = self.trouble or Trouble(self._bad[0], reason)
            return
        self._bad = []
        if plan.spike and len(self._losses) >= LEAST_BEFORE:
            mean = statistics.fmean(self._losses)
            if loss > plan.spike * mean:
                reason = f"the loss rose to {loss:.4g}, {loss / mean:.3g} times the mean of the steps before"
                self.trouble = self.trouble or Trouble(step, reason)
                return
        self._losses.append(loss)

    @property
    def has_rates(self) -> bool:
        """Whether any step was taken since the rates are measured."""
        return self.has_numbers and self._steps > 0

    @property
    def has_numbers(self) -> bool:
        """Whether any step's metrics have been read since the last row."""
        return self._sums["weight"] > 0

    def current(self, step: int) -> dict[str, Any]:
        """The numbers since the last row, without starting anew.

        `eta` in seconds; `host_seconds` a step in which this process did not wait for the devices; `skipped` updates.
        """
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
            "host_seconds": max(0.0, elapsed - self._blocked) / max(self._steps, 1),
            "skipped": self._skipped,
            "eta": (self._plan.steps - step) * elapsed / max(self._steps, 1),
        }

    def row(self, step: int) -> dict[str, Any]:
        """The numbers since the last row; the next row starts here."""
        row = self.current(step)
        self._restart()
        return row
