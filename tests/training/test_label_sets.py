"""Losses and the step where records carry several labels, or none; numpy in float64 knows every number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.config.schema import AsymmetricSection, ImbalanceSection, TrainSection
from pcls.data.augment.mixing import swapped
from pcls.data.pipeline import Batch
from pcls.errors import UserError
from pcls.training.losses import (
    asymmetric_loss,
    label_sets_cross_entropy,
    positive_weights,
    training_loss_of_label_sets,
)
from pcls.training.step import right

LOGITS = np.array([[2.0, -1.0, 0.5], [-3.0, 0.25, 1.5], [0.0, -0.5, 4.0]])
TARGETS = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]], np.uint8)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def terms(section, smoothing=0.0):
    """[records, labels] by definition."""
    p = sigmoid(LOGITS)
    t = (1 - smoothing) * TARGETS + smoothing / 2
    lowered = np.maximum(p - section.clip, 0)
    carried = (1 - p) ** section.gamma_pos * np.log(p)
    return -(t * carried + (1 - t) * lowered**section.gamma_neg * np.log(1 - lowered))


PLAIN = AsymmetricSection(gamma_neg=0.0, clip=0.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_is_the_mean_over_labels(smoothing):
    found = label_sets_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(TARGETS), smoothing)
    np.testing.assert_allclose(found, terms(PLAIN, smoothing).mean(1), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    "values", [{}, {"gamma_pos": 1.0}, {"gamma_neg": 0.5, "clip": 0.3}, {"gamma_neg": 2.0, "clip": 0.0}]
)
def test_the_asymmetric_loss_is_that_of_its_definition(values, smoothing):
    section = AsymmetricSection(**values)
    found = asymmetric_loss(jnp.asarray(LOGITS), jnp.asarray(TARGETS), smoothing, section=section)
    np.testing.assert_allclose(found, terms(section, smoothing).mean(1), rtol=1e-6)


def test_without_focus_and_clip_the_asymmetric_loss_is_the_plain_one():
    found = asymmetric_loss(jnp.asarray(LOGITS), jnp.asarray(TARGETS), section=PLAIN)
    np.testing.assert_allclose(found, label_sets_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(TARGETS)), rtol=1e-6)


@pytest.mark.parametrize("gamma_neg", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_gradients_are_finite_where_the_answer_is_certain(gamma_neg, clip):
    section = AsymmetricSection(gamma_pos=0.5, gamma_neg=gamma_neg, clip=clip)
    logits = jnp.array([[200.0, -200.0, 200.0, -200.0, 0.0]])
    targets = jnp.array([[0, 0, 1, 1, 1]])
    loss, gradient = jax.value_and_grad(lambda x: asymmetric_loss(x, targets, section=section).sum())(logits)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert gradient[0, 3] < 0 < gradient[0, 0] or clip  # With a clip a certain mistake is taken for a wrong label.


def loss_of(step=0, logits=LOGITS, counts=(40, 1, 10), records=50, weighted_from=0, train=None, **imbalance):
    loss = training_loss_of_label_sets(
        TrainSection(loss="sigmoid") if train is None else train,
        ImbalanceSection(**imbalance),
        np.array(counts),
        records,
        weighted_from,
        ("cat", "dog", "emu"),
    )
    return np.asarray(loss(jnp.asarray(logits), jnp.asarray(TARGETS), jnp.int32(step)))


def weighted(weights):
    both = terms(PLAIN)
    return np.where(TARGETS == 1, np.array(weights) * both, both).mean(1)


def test_inverse_weights_make_both_answers_of_a_label_count_alike():
    assert positive_weights(np.array([40, 1, 10, 0, 50]), 50).tolist() == [0.25, 49, 4, 1, 1]
    np.testing.assert_allclose(loss_of(class_weights="inverse"), weighted([0.25, 49, 4]), rtol=1e-6)


def test_given_weights_are_of_the_labels_that_a_record_carries_and_may_come_later():
    settings = {"class_weights": "given", "weights": {"dog": 3.0}, "weighted_from": 5}
    np.testing.assert_allclose(loss_of(4, **settings), weighted([1, 1, 1]), rtol=1e-6)
    np.testing.assert_allclose(loss_of(5, **settings), weighted([1, 3, 1]), rtol=1e-6)


def test_a_weight_of_an_unknown_label_is_refused():
    with pytest.raises(UserError, match="names 'doge', and the data has no such class; the nearest: dog"):
        loss_of(class_weights="given", weights={"doge": 2.0})


def test_what_is_right_is_the_class_or_the_share_of_labels():
    logits = jnp.array([[1.0, -2.0, 0.0], [-1.0, -2.0, -0.5]])
    assert right(logits, jnp.array([0, 1])).tolist() == [True, False]
    # At logit 0 a label is not given.
    np.testing.assert_allclose(right(logits, jnp.array([[1, 0, 1], [0, 0, 0]], jnp.uint8)), [2 / 3, 1])


# The compiled step


def batch_of(rows, classes, seed=0):
    rng = np.random.default_rng(seed)
    return Batch(
        image=rng.integers(0, 256, (rows, 8, 8, 1)).astype(np.uint8),
        label=rng.integers(0, 2, (rows, classes)).astype(np.uint8),
        weight=np.ones(rows, np.float32),
        record=np.arange(rows, dtype=np.int32),
        epoch=np.zeros(rows, np.int32),
    )


SEVERAL = {"data.source": "arrays", "data.labels": "several", "train.loss": "sigmoid"}


def test_eight_devices_in_micro_batches_train_as_one_does(program):
    found = {}
    for devices, accumulate in ((1, 1), (8, 2)):
        groups = {"batch_norm.over": "groups", "batch_norm.group_size": 2, "train.accumulate": accumulate}
        made = program(devices, **SEVERAL, **groups)
        assert made.batch_shapes.label.shape == (32, 4)
        batch, state = batch_of(32, 4), made.initial_state()
        step = made.train_step()
        for _ in range(2):
            state, metrics = step(state, batch)
        found[devices] = jax.device_get((metrics, state.params))
    (one, params), (eight, others) = found[1], found[8]
    assert eight["loss"] == pytest.approx(float(one["loss"]), rel=1e-5)
    assert eight["correct"] == pytest.approx(float(one["correct"]))
    for path, array in params.items():
        np.testing.assert_allclose(others[path], array, rtol=1e-4, atol=1e-6)


def test_a_mixed_record_brings_the_labels_of_its_partner():
    labels = jnp.asarray([[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]], jnp.uint8)
    assert swapped(labels).tolist() == [[0, 1, 0], [1, 1, 0], [1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    "loss", [label_sets_cross_entropy, lambda *args: asymmetric_loss(*args, section=AsymmetricSection())]
)
def test_the_mean_of_two_losses_is_that_of_the_mixed_target(loss):
    logits, own, other = jnp.asarray(LOGITS), jnp.asarray(TARGETS, jnp.float32), jnp.asarray(TARGETS[::-1], jnp.float32)
    parts = 0.3 * loss(logits, own) + 0.7 * loss(logits, other)
    np.testing.assert_allclose(parts, loss(logits, 0.3 * own + 0.7 * other), rtol=1e-5)


def test_a_loss_of_one_right_class_is_refused_with_several_labels(program):
    with pytest.raises(UserError, match="which has one right class, and data"):
        program(1, **SEVERAL | {"train.loss": "softmax"})
