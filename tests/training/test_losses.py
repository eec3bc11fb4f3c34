"""Losses against numpy in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.training.losses import LOSSES, sigmoid_cross_entropy, softmax_cross_entropy

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
