"""The compiled step, on a model small enough to follow with numpy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pcls.config import Recipe, with_overrides
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import Preprocessing
from pcls.training.state import state_of
from pcls.training.step import make_train_step

PREPROCESSING = Preprocessing(2, 2, 1, (0.0,), (1.0,))
CLASSES, BATCH, LR, DECAY = 3, 8, 0.5, 0.4
POISON = 255


class Linear:
    """A linear classifier with a running mean; a pixel of 255 makes its logits NaN."""

    def apply(self, params, stats, images, *, train):
        pixels = images.reshape(len(images), -1)
        poison = jnp.where(jnp.any(images > 0.999), jnp.nan, 0.0)
        moved = {"mean": 0.5 * stats["mean"] + 0.5 * pixels.mean()}
        return pixels @ params["kernel"] + params["bias"] + poison, moved


def batch_of(step, *, poisoned=False):
    rng = np.random.default_rng(step)
    images = rng.integers(0, 200, (BATCH, 2, 2, 1)).astype(np.uint8)
    if poisoned:
        images[3, 0, 0, 0] = POISON
    weight = np.ones(BATCH, np.float32)
    weight[-1] = 0
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    return Batch(images, labels, weight, np.arange(BATCH, dtype=np.int32), np.zeros(BATCH, np.int32))


@pytest.fixture(scope="module")
def optimizer():
    return optax.sgd(LR)


@pytest.fixture(scope="module")
def train_step(optimizer):
    recipe = with_overrides(Recipe(), {"train.ema_decay": DECAY})
    return jax.jit(make_train_step(Linear(), optimizer, recipe, PREPROCESSING))


@pytest.fixture
def state(optimizer):
    kernel = np.random.default_rng(9).normal(size=(4, CLASSES)).astype(np.float32)
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(CLASSES)}
    return state_of(params, {"mean": jnp.float32(0)}, optimizer, 0, ema=True)


def numpy_step(params, stats, batch):
    """Loss, correct, and the parameters and statistics after a step of plain gradient descent."""
    pixels = batch.image.reshape(BATCH, -1) / 255
    logits = pixels @ params["kernel"] + params["bias"]
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    target = np.eye(CLASSES)[batch.label]
    count = batch.weight.sum()
    loss = -(np.log(probabilities) * target).sum(-1) @ batch.weight / count
    error = (probabilities - target) * batch.weight[:, None] / count
    moved = {
        "kernel": params["kernel"] - LR * pixels.T @ error,
        "bias": params["bias"] - LR * error.sum(0),
    }
    correct = (logits.argmax(-1) == batch.label) @ batch.weight
    return loss, correct, moved, {"mean": 0.5 * stats["mean"] + 0.5 * pixels.mean()}


def test_three_steps_and_their_averages_are_those_of_numpy(train_step, state):
    params, stats = jax.tree.map(np.float64, (state.params, state.stats))
    averages = jax.tree.map(np.copy, (params, stats))
    for step in range(3):
        batch = batch_of(step)
        loss, correct, params, stats = numpy_step(params, stats, batch)
        rate = min(DECAY, (1 + step) / (10 + step))
        averages = jax.tree.map(lambda old, new, rate=rate: rate * old + (1 - rate) * new, averages, (params, stats))
        state, metrics = train_step(state, batch)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        assert (float(metrics["correct"]), float(metrics["weight"])) == (correct, BATCH - 1)
    for found, expected in zip(
        jax.tree.leaves((state.params, state.stats, state.ema)),
        jax.tree.leaves((params, stats, averages)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert state.deliverable is state.ema


def test_a_batch_that_is_not_finite_leaves_the_state_and_counts_the_step(train_step, state):
    state, _ = train_step(state, batch_of(0))
    after, metrics = train_step(state, batch_of(1, poisoned=True))
    assert float(metrics["finite"]) == 0
    assert (int(after.step), int(after.last_good_step)) == (2, 1)
    jax.tree.map(np.testing.assert_array_equal, replace(after, step=state.step), state)
    again, metrics = train_step(after, batch_of(2))
    assert float(metrics["finite"]) == 1
    assert (int(again.step), int(again.last_good_step)) == (3, 3)
    assert not np.array_equal(again.params["kernel"], state.params["kernel"])


def test_the_key_is_constant_so_that_augmentation_depends_on_epoch_and_record_only(train_step, state):
    after, _ = train_step(state, batch_of(0))
    np.testing.assert_array_equal(after.key, state.key)


def test_without_averages_the_trained_weights_are_delivered(optimizer):
    state = state_of({"kernel": jnp.ones((4, 3))}, {}, optimizer, 0, ema=False)
    assert state.ema is None
    assert state.deliverable == (state.params, state.stats)


def test_the_best_evaluation_is_kept(state):
    assert float(state.best_top1) == -1
    assert float(state.with_best(0.5).with_best(0.25).best_top1) == 0.5
