"""Several seeds in one program: the same steps as of each alone, and a loop in which one may fail alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from pcls.errors import Diverged
from pcls.training.loop import Plan
from pcls.training.seeds import seeds_loop, seeds_steps, stacked, stacked_batches, unstacked

SEEDS, STEPS = 3, 4


@pytest.fixture(scope="module")
def made(program):
    """The program of the tiny network, whose state every device holds whole, and the state of each seed."""
    programs = [
        program(**{"mesh.sharding": "replicated", "train.ema_decay": 0.5, "train.seed": seed, "model.dropout": 0.1})
        for seed in range(SEEDS)
    ]
    return programs[0], [program.initial_state() for program in programs]


@pytest.fixture(scope="module")
def alone(made, batch_at, host_copy):
    """States and losses of each seed after some steps of its own."""
    program, states = made
    step, found = program.train_step(), []
    for seed, state in enumerate(states):
        state, losses = jax.tree.map(jax.numpy.copy, state), []
        for number in range(STEPS):
            state, metrics = step(state, batch_at(100 * seed + number))
            losses.append(float(metrics["loss"]))
        found.append((host_copy(state), losses))
    return found


def batches(batch_at, number):
    return stacked_batches([batch_at(100 * seed + number) for seed in range(SEEDS)])


def assert_close(states, alone):
    for state, (expected, _) in zip(unstacked(states, SEEDS), alone, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state, expected)


def test_steps_in_one_program_are_those_of_each_seed_alone_on_eight_devices(made, alone, batch_at):
    program, states = made
    one, _ = seeds_steps(program, SEEDS, resident=False)
    together, losses = stacked(states), []
    for number in range(STEPS):
        together, metrics = one(together, batches(batch_at, number))
        losses.append([float(own["loss"]) for own in metrics])
    assert_close(together, alone)
    np.testing.assert_allclose(np.transpose(losses), [own for _, own in alone], rtol=1e-4)
    # They are three runs, not one three times.
    assert len({round(loss, 4) for loss in losses[0]}) == SEEDS


def test_several_steps_in_one_dispatch_are_the_same(made, alone, batch_at):
    program, states = made
    _, several = seeds_steps(program, SEEDS, resident=False)
    together, metrics = several(
        stacked(states), stacked_batches([batches(batch_at, number) for number in range(STEPS)])
    )
    assert_close(together, alone)
    np.testing.assert_allclose(metrics[1]["loss"], alone[1][1], rtol=1e-4)


class Hooks:
    """Notes what is called, and evaluates to the seed's number."""

    def __init__(self, seed):
        self.seed, self.calls = seed, []

    def inspect(self, batch):
        self.calls.append(("inspect", batch.item()))

    def skipped(self, steps):
        assert self.seed == 1

    def progress(self, meter, step):
        pass

    def log(self, row):
        self.calls.append(("log", row["step"]))

    def finish(self, state):
        self.calls.append(("finish", int(state.step)))
        return state

    def evaluate(self, state, step):
        self.calls.append(("evaluate", step))
        return float(self.seed)

    def save(self, state, step):
        self.calls.append(("save", step, float(state.best_top1)))


def counting(states, batches):
    """A step that only counts; seed 1 has no finite loss."""
    states = replace(states, step=states.step + 1)
    good = {"loss": np.float32(1), "correct": np.float32(1), "weight": np.float32(1), "finite": np.float32(1)}
    return states, tuple(good | ({"finite": np.float32(0)} if seed == 1 else {}) for seed in range(SEEDS))


def looped(made, steps, stop_at=0):
    hooks, evaluations = [Hooks(seed) for seed in range(SEEDS)], []
    plan = Plan(steps=steps, epoch_steps=10, batch_size=1, evaluate_every=10, save_every=15, log_every=10)
    own, failed = seeds_loop(
        stacked(made[1]),
        counting,
        counting,
        [iter(np.arange(steps) + 100 * seed) for seed in range(SEEDS)],
        plan,
        hooks,
        stop_requested=lambda step: step == stop_at,
        evaluated=lambda step, top1: evaluations.append((step, top1)),
    )
    return own, failed, hooks, evaluations


def test_a_seed_that_diverges_is_left_aside_and_the_others_go_on(made):
    own, failed, hooks, evaluations = looped(made, 40)
    assert sorted(own) == [0, 2]
    assert isinstance(failed[1], Diverged)
    assert int(own[0].step) == 40
    assert evaluations == [(10, [0, 1, 2]), (20, [0, 1, 2]), (30, [0, 2]), (40, [0, 2])]
    assert [call for call in hooks[1].calls if call[0] in ("evaluate", "save")] == [
        ("evaluate", 10),
        ("save", 15, 1.0),
        ("evaluate", 20),
    ]
    assert [call for call in hooks[2].calls if call[0] in ("save", "finish")] == [
        ("save", 15, 2.0),
        ("save", 30, 2.0),
        ("finish", 40),
        ("save", 40, 2.0),
    ]
    assert [value for name, value, *_ in hooks[2].calls if name == "inspect"][:3] == [200, 201, 202]


def test_a_stop_saves_all_seeds(made):
    own, failed, hooks, _ = looped(made, 40, stop_at=7)
    assert [int(state.step) for state in own.values()] == [7, 7, 7]
    assert failed == {}
    assert all(hook.calls[-1] == ("save", 7, -1.0) for hook in hooks)
