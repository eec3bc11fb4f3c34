"""The same training on several layouts of the same devices."""

import jax
import numpy as np
import pytest

from pcls.config import load_recipe
from pcls.data.pipeline import training_batches
from pcls.parallel.processes import place
from pcls.run.setup import prepare

STEPS = 12


def set_up(**overrides):
    settings = {"data.image_size": 10, "train.batch_size": 32, "train.ema_decay": 0.9, "optimizer.lr": 0.01}
    return prepare(load_recipe("digits_rnn", settings | overrides))


def losses(setup, state, step):
    found = []
    with training_batches(
        setup.dataset.train,
        setup.dataset.preprocessing,
        batch_size=32,
        rows=setup.rows(32),
        seed=0,
        random_crop=False,
        steps=range(STEPS),
        workers=1,
    ) as batches:
        for batch in batches:
            state, metrics = step(state, place(batch, setup.batch_sharding, 32))
            found.append(float(metrics["loss"]))
    return np.asarray(found), state


@pytest.fixture(scope="module")
def data_parallel():
    setup = set_up()
    first = setup.initial_state()
    before = jax.tree.leaves(first)
    curve, state = losses(setup, first, setup.train_step())
    return before, curve, state


@pytest.fixture(scope="module")
def sharded():
    setup = set_up(**{"mesh.fsdp": 2})
    first = setup.initial_state()
    shapes = shard_shapes(first)
    curve, state = losses(setup, first, setup.train_step())
    return shapes, curve, state


def shard_shapes(state):
    return {path: leaf.addressable_shards[0].data.shape for path, leaf in state.params.items()}


def test_the_loss_falls(data_parallel):
    _, curve, _ = data_parallel
    assert curve[:3].mean() - curve[-3:].mean() > 0.1


def test_the_state_given_to_a_step_is_donated(data_parallel):
    before, _, _ = data_parallel
    assert all(leaf.is_deleted() for leaf in before)


def test_parameters_and_optimizer_are_born_sharded_over_fsdp_and_stay_so(sharded):
    shapes, _, state = sharded
    assert shapes["recurrent"] == (16, 32)
    assert shapes["inputs/kernel"] == (10, 16)
    assert shapes["head/bias"] == (5,)
    assert shard_shapes(state) == shapes
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (32, 32)]
    assert [leaf.addressable_shards[0].data.shape for leaf in moments] == [(16, 32)] * 2


def test_eight_by_one_and_four_by_two_devices_train_the_same(data_parallel, sharded):
    np.testing.assert_allclose(sharded[1], data_parallel[1], rtol=1e-5)
    for found, expected in zip(jax.tree.leaves(sharded[2]), jax.tree.leaves(data_parallel[2]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
