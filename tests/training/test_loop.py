"""The loop, with a step that says when its numbers are asked for."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from pcls.errors import Diverged
from pcls.training.loop import MAX_NOT_FINITE, Plan, train_loop


def plan_of(steps, **changes):
    plan = Plan(steps=steps, epoch_steps=4.0, batch_size=8, evaluate_every=100, save_every=100, log_every=100)
    return replace(plan, **changes)


@dataclass(frozen=True)
class State:
    step: int
    best: float = -1

    def with_best(self, top1):
        return replace(self, best=max(self.best, top1))


@dataclass
class Device:
    """Computes lazily: a metric's value is made when it is read, and the reading is noted."""

    events: list[str] = field(default_factory=list)
    not_finite: set[int] = field(default_factory=set)

    def train_step(self, state, batch):
        step = state.step + 1
        assert batch == step
        self.events.append(f"dispatch {step}")
        values = {"loss": float(step), "correct": 2.0, "weight": 8.0, "finite": float(step not in self.not_finite)}
        return replace(state, step=step), {name: Lazy(self, step, value) for name, value in values.items()}


@dataclass
class Lazy:
    device: Device
    step: int
    value: float

    def __array__(self, dtype=None, copy=None):
        if self.device.events[-1] != f"read {self.step}":
            self.device.events.append(f"read {self.step}")
        return np.asarray(self.value)


@dataclass
class Hooks:
    device: Device
    stop_at: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def place(self, batch):
        return batch

    def progress(self, meter, step):
        pass

    def log(self, row):
        self.rows.append(row)

    def evaluate(self, state, step):
        self.device.events.append(f"evaluate {step}")
        return step / 10

    def save(self, state, step):
        assert state.step == step
        self.device.events.append(f"save {step}")

    def stop_requested(self, step):
        return step == self.stop_at


def run(plan, *, start=0, stop_at=0, not_finite=()):
    device = Device(not_finite=set(not_finite))
    hooks = Hooks(device, stop_at)
    batches = iter(range(start + 1, plan.steps + 1))
    state, finished = train_loop(State(start), device.train_step, batches, plan, hooks)
    return state, finished, device.events, hooks.rows


def test_the_numbers_of_a_step_are_read_after_the_next_one_was_dispatched():
    _, _, events, _ = run(plan_of(4))
    assert events[:7] == [
        "dispatch 1",
        "dispatch 2",
        "read 1",
        "dispatch 3",
        "read 2",
        "dispatch 4",
        "read 3",
    ]
    assert events[7:] == ["read 4", "evaluate 4", "save 4"]


def test_a_row_holds_the_means_of_the_steps_read_since_the_last_row():
    _, _, _, rows = run(plan_of(6, log_every=2))
    assert [(row["step"], row["epoch"], row["loss"]) for row in rows] == [(2, 0.5, 1.0), (4, 1.0, 2.5), (6, 1.5, 5.0)]
    assert {row["accuracy"] for row in rows} == {0.25}


def test_all_is_due_after_the_last_step_and_the_best_evaluation_is_kept():
    state, finished, events, _ = run(plan_of(5, evaluate_every=2, save_every=3))
    assert finished
    assert [event for event in events if event[0] in "es"] == [
        "evaluate 2",
        "save 3",
        "evaluate 4",
        "evaluate 5",
        "save 5",
    ]
    assert state == State(5, 0.5)


def test_a_stop_saves_after_the_step_and_says_so():
    state, finished, events, _ = run(plan_of(9), stop_at=3)
    assert (state.step, finished) == (3, False)
    assert events[-1] == "save 3"


def test_a_stop_asked_for_at_the_last_step_finishes():
    assert run(plan_of(3), stop_at=3)[1]


def test_a_resumed_loop_takes_the_steps_that_are_left():
    state, _, events, _ = run(plan_of(5), start=3)
    assert (state.step, [event for event in events if "dispatch" in event]) == (5, ["dispatch 4", "dispatch 5"])


def test_twenty_steps_in_a_row_that_are_not_finite_end_the_run():
    assert MAX_NOT_FINITE == 20
    with pytest.raises(Diverged, match="20 steps in a row"):
        run(plan_of(60), not_finite=range(11, 31))


def test_nineteen_steps_that_are_not_finite_do_not_end_it():
    assert run(plan_of(60), not_finite=[*range(11, 30), *range(31, 50)])[1]


@pytest.mark.parametrize(
    ("every", "steps", "expected"),
    [
        # Half an epoch of 5 steps: 2.5, 5, 7.5, 10, rounded half up.
        (2.5, 10, [3, 5, 8, 10]),
        # An epoch of 3.75 steps; the last step is always due.
        (3.75, 16, [4, 8, 11, 15, 16]),
        (1.0, 4, [1, 2, 3, 4]),
        (1.25, 7, [1, 3, 4, 5, 6, 7]),
        (100, 7, [7]),
    ],
)
def test_what_is_due_every_fraction_of_an_epoch_falls_on_the_nearest_steps(every, steps, expected):
    plan = plan_of(steps)
    assert [step for step in range(1, steps + 1) if plan.due(step, every)] == expected
