"""Dropping by the example's own key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.nn.dropout import Dropout
from pcls.nn.training import TrainingPass
from pcls.parallel.mesh import batch_sharding, make_mesh

EXAMPLES, FEATURES = 256, (8, 8)
KEYS = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(EXAMPLES))
ONES = jnp.ones((EXAMPLES, *FEATURES))


def dropped(rate=0.3, place=0, *, keys=KEYS, x=ONES, whole=False):
    return np.asarray(jax.jit(Dropout(rate, place, whole=whole))(x, TrainingPass(keys)))


@pytest.mark.parametrize("whole", [False, True])
def test_an_example_drops_the_same_whatever_its_place_and_the_batch(whole):
    reference = dropped(whole=whole)
    order = np.random.default_rng(0).permutation(EXAMPLES)[:40]
    np.testing.assert_array_equal(dropped(keys=KEYS[order], x=ONES[order], whole=whole), reference[order])
    np.testing.assert_array_equal(dropped(keys=KEYS[7:8], x=ONES[7:8], whole=whole), reference[7:8])


def test_an_example_drops_the_same_on_any_number_of_devices():
    rows = batch_sharding(make_mesh(4, 2))
    found = dropped(keys=jax.device_put(KEYS, rows), x=jax.device_put(ONES, rows))
    np.testing.assert_array_equal(found, dropped())


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_is_the_share_that_is_dropped_and_the_mean_is_kept(rate):
    found = dropped(rate)
    # Three standard deviations of a mean over 16,384 numbers, the share's and that of the scaled numbers.
    deviation = np.sqrt(rate * (1 - rate) / found.size)
    assert np.mean(found == 0) == pytest.approx(rate, abs=3 * deviation)
    assert found.mean() == pytest.approx(1, abs=3 * deviation / (1 - rate))
    np.testing.assert_allclose(found[found != 0], 1 / (1 - rate), rtol=1e-6)


def test_examples_and_features_drop_independently():
    dropping = (dropped(0.5) == 0).reshape(EXAMPLES, -1)
    # Shares of rows and columns of independent coins are binomial: 64 and 256 of them.
    assert dropping.mean(1).std() == pytest.approx(np.sqrt(0.25 / 64), rel=0.15)
    assert dropping.mean(0).std() == pytest.approx(np.sqrt(0.25 / 256), rel=0.3)


def test_whole_examples_are_dropped_all_or_none():
    found = dropped(0.25, whole=True).reshape(EXAMPLES, -1)
    assert set(found.min(1)) == set(found.max(1)) == {0, np.float32(4 / 3)}
    np.testing.assert_array_equal(found.min(1), found.max(1))
    assert np.mean(found[:, 0] == 0) == pytest.approx(0.25, abs=3 * np.sqrt(0.25 * 0.75 / EXAMPLES))


@pytest.mark.parametrize("whole", [False, True])
def test_layers_at_different_places_drop_differently(whole):
    some, same, other = (dropped(0.5, place, whole=whole) == 0 for place in (0, 0, 1))
    np.testing.assert_array_equal(some, same)
    # Independent coins agree half of the time.
    assert np.mean(some == other) == pytest.approx(0.5, abs=3 * np.sqrt(0.25 / (EXAMPLES * (1 if whole else 64))))


def test_the_gradient_flows_through_what_was_kept():
    gradient = jax.grad(lambda x: Dropout(0.3, 0)(x, TrainingPass(KEYS)).sum())(ONES)
    np.testing.assert_array_equal(gradient, dropped())


@pytest.mark.parametrize(
    ("rate", "training"),
    [(0.5, None), (0.5, TrainingPass()), (0.5, TrainingPass(group_size=4)), (0.0, TrainingPass(KEYS))],
    ids=["predicting", "no keys", "no keys in groups", "rate 0"],
)
def test_nothing_is_dropped_without_a_rate_or_keys(rate, training):
    assert Dropout(rate, 0)(ONES, training) is ONES


def test_the_type_is_kept():
    assert Dropout(0.3, 0)(ONES.astype(jnp.bfloat16), TrainingPass(KEYS)).dtype == jnp.bfloat16
