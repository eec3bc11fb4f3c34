"""Drawn numbers against the distributions that they are of."""

import jax
import numpy as np
import pytest
from scipy import stats

from pcls.data.augment.distributions import beta, dirichlet

KEYS = jax.random.split(jax.random.key(0), 20_000)


def distance(found, a, b):
    """Of the distribution functions; of 20,000 draws 0.0138 comes by chance once in a thousand.

    Not at the ends: of small parameters float32 has many draws that are exactly 1.
    """
    places = np.linspace(0.001, 0.999, 500)
    below = np.searchsorted(np.sort(found), places, side="right") / len(found)
    return np.abs(below - stats.beta(a, b).cdf(places)).max()


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.2), (1.0, 1.0), (1.0, 3.0), (8.0, 8.0)])
def test_draws_of_a_beta_distribution_are_not_told_from_it(a, b):
    found = np.asarray(jax.jit(jax.vmap(lambda key: beta(key, a, b)))(KEYS))
    assert found.min() >= 0 and found.max() <= 1
    assert distance(found, a, b) < 0.0138


@pytest.mark.parametrize("alpha", [0.3, 5.0])
def test_shares_add_up_to_1_and_each_is_distributed_as_the_others(alpha):
    found = np.asarray(jax.jit(jax.vmap(lambda key: dirichlet(key, alpha, 4)))(KEYS))
    assert found.shape == (20_000, 4) and found.min() >= 0
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    for share in found.T:
        assert distance(share, alpha, 3 * alpha) < 0.0138


def test_a_single_share_is_all():
    assert dirichlet(KEYS[0], 1.0, 1).tolist() == [1.0]
