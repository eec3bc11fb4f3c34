"""Losses against numpy in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.config import Recipe, with_overrides
from pcls.config.schema import ImbalanceSection, TrainSection
from pcls.errors import UserError
from pcls.training.losses import (
    LOSSES,
    class_weights,
    given_weights,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
    training_loss,
)

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(0, 3, (6, 5)), RNG.integers(0, 5, 6)


def smoothed(logits, labels, smoothing):
    return (1 - smoothing) * np.eye(logits.shape[-1])[labels] + smoothing / logits.shape[-1]


def softmax_reference(logits, labels, smoothing):
    shifted = logits - logits.max(-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -(smoothed(logits, labels, smoothing) * log_probabilities).sum(-1)


def sigmoid_reference(logits, labels, smoothing):
    probabilities, targets = 1 / (1 + np.exp(-logits)), smoothed(logits, labels, smoothing)
    return -(targets * np.log(probabilities) + (1 - targets) * np.log(1 - probabilities)).mean(-1)


REFERENCES = {"softmax": softmax_reference, "sigmoid": sigmoid_reference}


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_that_of_the_smoothed_target(name, smoothing):
    found = LOSSES[name](jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS), smoothing)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, REFERENCES[name](LOGITS, LABELS, smoothing), rtol=2e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_without_smoothing_named_there_is_none(name):
    found = LOSSES[name](jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS))
    np.testing.assert_allclose(found, REFERENCES[name](LOGITS, LABELS, 0), rtol=2e-6)


def test_large_bfloat16_logits_are_taken_in_float32_and_stay_finite():
    logits, labels = jnp.asarray([[1000.0, 0.0], [0.0, 3.0]], jnp.bfloat16), jnp.asarray([1, 1])
    softmax, sigmoid = (loss(logits, labels) for loss in (softmax_cross_entropy, sigmoid_cross_entropy))
    assert softmax.dtype == sigmoid.dtype == jnp.float32
    np.testing.assert_allclose(softmax, [1000.0, np.log1p(np.exp(-3.0))], rtol=1e-6)
    # The right class at 0 costs log 2, the wrong one at 1000 all of it.
    np.testing.assert_allclose(sigmoid[0], (1000 + np.log(2)) / 2, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_the_probability_less_the_target(name):
    logits = jnp.asarray(LOGITS, jnp.float32)
    found = jax.grad(lambda logits: LOSSES[name](logits, jnp.asarray(LABELS), 0.1).sum())(logits)
    if name == "softmax":
        probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
        expected = probabilities - smoothed(LOGITS, LABELS, 0.1)
    else:
        expected = (1 / (1 + np.exp(-LOGITS)) - smoothed(LOGITS, LABELS, 0.1)) / 5
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


COUNTS = np.array([1000, 100, 10, 10, 1])


def trained(smoothing=0.0, counts=COUNTS, **options):
    loss = training_loss(TrainSection(label_smoothing=smoothing), ImbalanceSection(**options), counts)
    return np.asarray(loss(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS), 0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_logits_are_adjusted_by_the_classes_shares(smoothing):
    shifted = LOGITS + 0.7 * np.log(COUNTS / COUNTS.sum())
    expected = softmax_reference(shifted, LABELS, smoothing)
    np.testing.assert_allclose(trained(smoothing, logit_adjustment=0.7), expected, rtol=2e-6)


def test_the_margin_is_whole_for_the_rarest_class_and_falls_with_the_fourth_root():
    lowered = LOGITS - np.eye(5)[LABELS] * 0.5 * (1 / COUNTS) ** 0.25
    np.testing.assert_allclose(trained(margin=0.5), softmax_reference(lowered, LABELS, 0), rtol=2e-6)


def test_focal_loss_leaves_out_what_is_sure():
    losses = softmax_reference(LOGITS, LABELS, 0)
    np.testing.assert_allclose(trained(focal=2.0), (1 - np.exp(-losses)) ** 2 * losses, rtol=1e-5)


def test_focal_gradients_are_finite_where_the_class_is_certain():
    loss = training_loss(TrainSection(), ImbalanceSection(focal=0.5), COUNTS)
    gradient = jax.grad(lambda logits: loss(logits, jnp.array([0]), 0).sum())(jnp.array([[200.0, 0, 0, 0, 0]]))
    assert np.isfinite(gradient).all()


def test_balanced_classes_change_nothing():
    plain = softmax_reference(LOGITS, LABELS, 0)
    np.testing.assert_allclose(trained(counts=np.full(5, 7), logit_adjustment=1.0), plain, rtol=2e-6)
    np.testing.assert_array_equal(class_weights("effective", np.full(5, 7)), 1)


@pytest.mark.parametrize("kind", ["none", "inverse", "effective"])
def test_the_mean_weight_of_a_record_is_one(kind):
    weights = class_weights(kind, COUNTS)
    assert (weights * COUNTS).sum() == pytest.approx(COUNTS.sum(), rel=1e-6)
    assert (np.diff(weights) >= 0).all() and (kind == "none") == (weights.max() == weights.min())


def test_inverse_weights_give_each_class_the_same_part_and_a_missing_one_no_infinity():
    part = class_weights("inverse", COUNTS) * COUNTS
    np.testing.assert_allclose(part, part[0], rtol=1e-6)
    assert np.isfinite(class_weights("inverse", np.array([5, 0]))).all()


NAMES = ("cat", "dog", "cow", "7", "sheep")
GIVEN = {"dog": 3.5, "7": 0.5}


def test_given_weights_are_those_of_the_classes_named_and_a_record_weighs_one_on_average():
    recipe = with_overrides(Recipe(), ["imbalance.class_weights=given", "imbalance.weights={dog: 3.5, 7: 0.5}"])
    loss = training_loss(recipe.train, recipe.imbalance, COUNTS, class_names=NAMES)
    found = np.asarray(loss(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS), 0))
    weights = np.array([1, 3.5, 1, 0.5, 1])
    weights *= COUNTS.sum() / (weights * COUNTS).sum()
    np.testing.assert_allclose(found, weights[LABELS] * softmax_reference(LOGITS, LABELS, 0), rtol=2e-6)


def test_a_recipe_with_given_weights_is_read_back_as_it_was_written():
    recipe = with_overrides(Recipe(), {"imbalance.class_weights": "given", "imbalance.weights": GIVEN})
    assert with_overrides(recipe, {}).imbalance.weights == (("dog", 3.5), ("7", 0.5))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("shep", "the nearest: sheep"), ("aeroplane", "classes: cat, dog, cow, 7, sheep")],
)
def test_a_weight_for_an_unknown_class_is_told_with_the_nearest_names(name, hint):
    with pytest.raises(UserError) as raised:
        given_weights({"cat": 2.0, name: 1.0}, NAMES)
    assert str(raised.value) == f"imbalance.weights names {name!r}, and the data has no such class; {hint}"


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        ("{cat: -1}", "the weight of 'cat' is -1; a finite number > 0 is needed"),
        ("{cat: 0}", "the weight of 'cat' is 0; a finite number > 0 is needed"),
        ("{cat: .nan}", "the weight of 'cat' is nan; a finite number > 0 is needed"),
        ("{cat: .inf}", "the weight of 'cat' is inf; a finite number > 0 is needed"),
        ("{cat: much}", "the weight of 'cat' is 'much'; a finite number > 0 is needed"),
        ("{cat: true}", "the weight of 'cat' is True; a finite number > 0 is needed"),
        ("{no: 2}", "name False is no text: write it in quotes"),
        ("{7: 2, '7': 3}", "name '7' comes twice"),
        ("3", "a map of names to numbers > 0 is needed, as in {cat: 1.0, dog: 3.5}"),
        ("[cat, dog]", "a map of names to numbers > 0 is needed, as in {cat: 1.0, dog: 3.5}"),
    ],
)
def test_weights_that_are_none_are_told(weights, fault):
    with pytest.raises(UserError) as raised:
        with_overrides(Recipe(), ["imbalance.class_weights=given", f"imbalance.weights={weights}"])
    assert str(raised.value).endswith(f"; {fault}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["imbalance.class_weights=given"], "given needs imbalance.weights, as in {cat: 1.0, dog: 3.5}"),
        (["imbalance.weights={cat: 2}"], "has an effect with imbalance.class_weights=given only"),
    ],
)
def test_given_weights_and_the_word_for_them_come_together(overrides, fault):
    with pytest.raises(UserError, match=fault):
        with_overrides(Recipe(), overrides)


def test_without_names_given_weights_are_one():
    imbalance = ImbalanceSection(class_weights="given", weights=GIVEN)
    loss = training_loss(TrainSection(), imbalance, COUNTS)
    found = np.asarray(loss(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS), 0))
    np.testing.assert_allclose(found, softmax_reference(LOGITS, LABELS, 0), rtol=2e-6)
