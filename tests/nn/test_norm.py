"""BatchNorm against numpy in double precision, on any number of devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from pcls.nn.module import ModelDef
from pcls.nn.norm import BatchNorm
from pcls.parallel.mesh import batch_sharding, replicated

X = (np.random.default_rng(0).normal(size=(8, 3, 2, 5)) * [1, 2, 3, 0.1, 5] + [0, 1, -2, 100, 3]).astype(np.float32)
DEFINITION = ModelDef.of(lambda rngs: BatchNorm(5, momentum=0.9, eps=1e-5, rngs=rngs))
PARAMS = {"scale": jnp.array([1.0, 2.0, 0.5, 1.0, -1.0]), "bias": jnp.array([0.0, 1.0, 2.0, 3.0, 4.0])}
STATS = {"mean": jnp.array([0.0, 1.0, 0.0, 90.0, 0.0]), "var": jnp.array([1.0, 2.0, 3.0, 1.0, 1.0])}


@partial(jax.jit, static_argnames="train")
def apply(params, stats, x, train):
    return DEFINITION.apply(params, stats, x, train=train)


def numpy_batch_norm(x, mean, var):
    return (x - mean) / np.sqrt(var + 1e-5) * np.asarray(PARAMS["scale"]) + np.asarray(PARAMS["bias"])


def test_it_starts_as_the_identity_of_normalised_data():
    params, stats = DEFINITION.init(jax.random.key(0))
    assert {path: array.tolist() for path, array in (params | stats).items()} == {
        "scale": [1.0] * 5,
        "bias": [0.0] * 5,
        "mean": [0.0] * 5,
        "var": [1.0] * 5,
    }


def test_training_normalises_with_the_statistics_of_the_batch():
    x = X.astype(np.float64)
    found, _ = apply(PARAMS, STATS, X, train=True)
    expected = numpy_batch_norm(x, x.mean((0, 1, 2)), x.var((0, 1, 2)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_running_statistics_move_a_tenth_towards_the_mean_and_the_unbiased_variance():
    x = X.astype(np.float64)
    _, stats = apply(PARAMS, STATS, X, train=True)
    mean = 0.9 * np.asarray(STATS["mean"]) + 0.1 * x.mean((0, 1, 2))
    var = 0.9 * np.asarray(STATS["var"]) + 0.1 * x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)


def test_evaluation_uses_the_running_statistics_and_leaves_them():
    found, stats = apply(PARAMS, STATS, X, train=False)
    expected = numpy_batch_norm(X.astype(np.float64), np.asarray(STATS["mean"]), np.asarray(STATS["var"]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert all(np.array_equal(stats[name], STATS[name]) for name in STATS)


def test_one_example_at_one_position_has_no_deviation_and_stays_finite():
    found, stats = apply(PARAMS, STATS, X[:1, :1, :1], train=True)
    np.testing.assert_allclose(found[0, 0, 0], PARAMS["bias"], atol=1e-5)
    assert np.isfinite(stats["var"]).all()


def test_statistics_stay_float32_under_bfloat16():
    found, stats = apply(PARAMS, STATS, jnp.asarray(X, jnp.bfloat16), train=True)
    assert found.dtype == jnp.bfloat16
    assert {array.dtype.name for array in stats.values()} == {"float32"}


def test_the_gradient_is_that_of_a_plain_formula():
    weights = jnp.asarray(np.random.default_rng(1).normal(size=X.shape), jnp.float32)

    def plain(params, x):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (weights * ((x - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"])).sum()

    def ours(params, x):
        return (weights * DEFINITION.apply(params, STATS, x, train=True)[0]).sum()

    # Channel 3 has the mean 100 and the deviation 0.1: float32 keeps three digits of it.
    x = jnp.asarray(X).at[..., 3].add(-100)
    for found, expected in zip(
        *(jax.tree.leaves(jax.jit(jax.grad(f, (0, 1)))(PARAMS, x)) for f in (ours, plain)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_any_number_of_devices_gives_the_results_of_one(devices):
    axes = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((devices, 1), ("data", "fsdp"), axis_types=axes, devices=jax.devices()[:devices])
    x = jax.device_put(X, batch_sharding(mesh))
    params, stats = jax.device_put((PARAMS, STATS), replicated(mesh))
    found = apply(params, stats, x, train=True)
    expected = apply(PARAMS, STATS, X, train=True)
    assert len(found[0].sharding.device_set) == devices
    for some, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(some, other, rtol=1e-5, atol=1e-4)
