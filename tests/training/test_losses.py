import jax.numpy as jnp
import numpy as np
import pytest

from pcls.training.losses import cross_entropy, weighted_mean


def reference(logits, labels, smoothing):
    shifted = logits - logits.max(-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    target = (1 - smoothing) * np.eye(logits.shape[-1])[labels] + smoothing / logits.shape[-1]
    return -(target * log_probabilities).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_is_that_of_the_smoothed_target(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (6, 5)), rng.integers(0, 5, 6)
    found = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(found, reference(logits, labels, smoothing), rtol=2e-6)


def test_cross_entropy_of_large_bfloat16_logits_is_computed_in_float32():
    logits = jnp.asarray([[1000.0, 0.0], [0.0, 3.0]], jnp.bfloat16)
    found = cross_entropy(logits, jnp.asarray([1, 1]))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [1000.0, np.log1p(np.exp(-3.0))], rtol=1e-6)


def test_weighted_mean_leaves_out_weight_0_and_is_0_without_any_weight():
    values = jnp.asarray([1.0, 2.0, 100.0])
    assert float(weighted_mean(values, jnp.asarray([1.0, 1.0, 0.0]))) == 1.5
    assert float(weighted_mean(values, jnp.zeros(3))) == 0.0
