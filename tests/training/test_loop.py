"""The loop, with a step that says when its numbers are asked for."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcls.training.loop import LEAST_BEFORE, MOST_BEFORE, Plan, train_loop


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
    """Computes lazily: metrics are made when they are read, and the reading is noted by its last step."""

    events: list[str] = field(default_factory=list)
    not_finite: set[int] = field(default_factory=set)
    losses: dict[int, float] = field(default_factory=dict)

    def train_step(self, state, batch):
        step = state.step + 1
        assert batch == step
        self.events.append(f"dispatch {step}")
        metrics = {name: Lazy(self, step, values[0]) for name, values in self.values([step]).items()}
        return replace(state, step=step), metrics

    def train_steps(self, state, batches):
        steps = [state.step + 1 + i for i in range(len(batches))]
        assert batches.tolist() == steps
        self.events.append(f"dispatch {steps[0]} to {steps[-1]}")
        metrics = {name: Lazy(self, steps[-1], values) for name, values in self.values(steps).items()}
        return replace(state, step=steps[-1]), metrics

    def values(self, steps):
        return {
            "loss": [self.losses.get(step, float(step)) for step in steps],
            "correct": [2.0 for _ in steps],
            "weight": [8.0 for _ in steps],
            "finite": [float(step not in self.not_finite) for step in steps],
        }


@dataclass
class Lazy:
    device: Device
    step: int
    value: float | list[float]

    def __array__(self, dtype=None, copy=None):
        if self.device.events[-1] != f"read {self.step}":
            self.device.events.append(f"read {self.step}")
        return np.asarray(self.value)


@dataclass
class Hooks:
    device: Device
    stop_at: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    told: list[int] = field(default_factory=list)

    def begin(self, step):
        self.begun = step

    def verified(self, train, state, batch, step):
        self.device.events.append(f"verify {step}")
        return train(state, batch)

    def skipped(self, steps):
        self.told += steps

    def roll_back(self, state, step, trouble):
        assert state.step == step
        self.device.events.append(f"back at {step}, {trouble.since}: {trouble.reason}")
        self.device.not_finite.clear()
        self.device.losses |= dict.fromkeys(self.device.losses, 1.0)
        return replace(state, best=0.125)

    def place(self, batch):
        return batch

    def progress(self, meter, step):
        pass

    def log(self, row):
        self.rows.append(row)

    def finish(self, state):
        self.device.events.append(f"finish {state.step}")
        return state

    def evaluate(self, state, step):
        self.device.events.append(f"evaluate {step}")
        return step / 10

    def save(self, state, step):
        assert state.step == step
        self.device.events.append(f"save {step}")

    def stop_requested(self, step):
        return step == self.stop_at


def trained(plan, *, start=0, stop_at=0, not_finite=(), losses=()):
    device = Device(not_finite=set(not_finite), losses=dict(losses))
    hooks = Hooks(device, stop_at)
    batches = iter(range(start + 1, plan.steps + 1))

    def step_of(step, count):
        assert hooks.begun == step
        return device.train_step if count == 1 else device.train_steps

    return *train_loop(State(start), step_of, batches, plan, hooks), hooks


def run(plan, **options):
    state, finished, hooks = trained(plan, **options)
    return state, finished, hooks.device.events, hooks.rows


def backs(hooks):
    return [event for event in hooks.device.events if event.startswith("back")]


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
    assert events[7:] == ["read 4", "finish 4", "evaluate 4", "save 4"]


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


# Trouble


def test_so_many_steps_in_a_row_that_are_not_finite_take_the_run_back_and_it_saves_at_once():
    state, finished, hooks = trained(plan_of(60, not_finite=20), not_finite=range(11, 31))
    # One step later: its numbers are read while the next one is computed.
    reason = "the loss or its gradient was not finite for 20 steps in a row"
    assert backs(hooks) == [f"back at 31, 11: {reason}"]
    events = hooks.device.events
    # What step 31 made of the old weights is not read.
    assert events[events.index(backs(hooks)[0]) :][1:4] == ["save 31", "dispatch 32", "dispatch 33"]
    assert (state, finished) == (State(60, 6.0), True)
    assert hooks.told == list(range(11, 31))


def test_one_fewer_does_not():
    _, finished, hooks = trained(plan_of(60, not_finite=20), not_finite=[*range(11, 30), *range(31, 50)])
    assert finished and not backs(hooks)


def test_a_row_counts_what_was_skipped_and_leaves_it_out_of_the_means():
    _, _, _, rows = run(plan_of(6, log_every=3), not_finite=[2, 5])
    assert [(row["step"], row["skipped"], row["loss"]) for row in rows] == [(3, 1, 1.0), (6, 1, (3 + 4 + 6) / 3)]


def test_trouble_at_the_very_end_is_met_before_the_last_evaluation():
    _, _, hooks = trained(plan_of(30, not_finite=3), not_finite=[28, 29, 30])
    events = hooks.device.events
    assert events[-4:] == [*backs(hooks), "finish 30", "evaluate 30", "save 30"]


@pytest.mark.parametrize(("loss", "back"), [(3.5, []), (4.5, ["back at 32, 31: the loss rose to 4.5, 4.5 times"])])
def test_a_loss_far_above_the_mean_before_it_takes_the_run_back(loss, back):
    losses = dict.fromkeys(range(1, 31), 1.0) | {31: loss}
    _, _, hooks = trained(plan_of(33, spike=4.0), losses=losses | {32: 1.0, 33: 1.0})
    assert [event[: len(told)] for event, told in zip(backs(hooks), back, strict=True)] == back


def test_few_losses_are_no_measure():
    assert (LEAST_BEFORE, MOST_BEFORE) == (20, 100)
    losses = dict.fromkeys(range(1, 60), 1.0)
    _, _, hooks = trained(plan_of(59, spike=4.0), losses=losses | {20: 9.0})
    assert not backs(hooks)
    _, _, hooks = trained(plan_of(59, spike=4.0), losses=losses | {21: 9.0})
    assert len(backs(hooks)) == 1


def test_steps_are_verified_when_it_is_due():
    _, _, events, _ = run(plan_of(7, verify_every=3))
    assert [event for event in events if event.startswith("verify")] == ["verify 3", "verify 6", "verify 7"]


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
    assert [step for step in range(1, steps + 1) if plan.due(step - 1, step, every)] == expected


# Several steps in a dispatch


def test_steps_go_together_up_to_what_is_due_and_one_by_one_where_they_do_not_fit():
    _, _, events, _ = run(plan_of(14, at_once=4, evaluate_every=6, save_every=9))
    assert [event for event in events if event[0] in "des"] == [
        "dispatch 1 to 4",
        "dispatch 5",
        "dispatch 6",
        "evaluate 6",
        "dispatch 7",
        "dispatch 8",
        "dispatch 9",
        "save 9",
        "dispatch 10",
        "dispatch 11",
        "dispatch 12",
        "evaluate 12",
        "dispatch 13",
        "dispatch 14",
        "evaluate 14",
        "save 14",
    ]


def test_the_numbers_of_a_dispatch_are_read_after_the_next_one():
    _, _, events, rows = run(plan_of(9, at_once=4, log_every=4))
    assert events[:6] == ["dispatch 1 to 4", "dispatch 5 to 8", "read 4", "dispatch 9", "read 8", "read 9"]
    # The second row waits for numbers of its own; each is the mean of the steps that were read.
    assert [(row["step"], row["loss"]) for row in rows] == [(8, 2.5), (9, 7.0)]


def test_a_dispatch_that_passes_a_row_logs_once_after_it():
    _, _, _, rows = run(plan_of(16, at_once=8, log_every=3))
    assert [row["step"] for row in rows] == [16]
    assert rows[0]["loss"] == np.mean(range(1, 17))


def test_a_stop_is_asked_for_after_a_dispatch():
    state, finished, events, _ = run(plan_of(16, at_once=4), stop_at=8)
    assert (state.step, finished, events[-1]) == (8, False, "save 8")


def test_a_resumed_loop_goes_on_together_from_where_it_is():
    _, _, events, _ = run(plan_of(12, at_once=4), start=3)
    assert [event for event in events if "dispatch" in event] == ["dispatch 4 to 7", "dispatch 8 to 11", "dispatch 12"]


def test_steps_in_a_row_count_across_dispatches():
    _, _, hooks = trained(plan_of(64, at_once=8), not_finite=range(13, 33))
    assert [event.partition(":")[0] for event in backs(hooks)] == ["back at 40, 13"]
    _, _, hooks = trained(plan_of(64, at_once=8), not_finite=[*range(13, 32), *range(33, 52)])
    assert not backs(hooks)


@given(
    steps=st.integers(1, 60),
    at_once=st.integers(1, 9),
    every=st.tuples(*(st.floats(1, 20, allow_nan=False) for _ in range(2))),
)
def test_any_plan_takes_every_step_once_and_passes_over_nothing_that_is_due(steps, at_once, every):
    plan = plan_of(steps, at_once=at_once, evaluate_every=every[0], save_every=every[1])
    ends, step = [], 0
    while step < steps:
        count = plan.together(step)
        assert count in (1, at_once)
        step += count
        ends.append(step)
    assert step == steps
    due = [
        number
        for number in range(1, steps + 1)
        if plan.due(number - 1, number, min(every)) or plan.due(number - 1, number, max(every))
    ]
    assert set(due) <= set(ends)
    assert all(plan.next_due(number - 1, every[0]) >= number for number in range(1, steps + 1))
