"""Pooling against numpy, and its gradients against those of reduce_window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.nn.platform import compiling_for
from pcls.nn.pooling import global_mean_pool, max_pool_2x2, max_pool_3x3_stride_2

SIZES = [(1, 1), (2, 3), (4, 5), (7, 6)]


def maps(height: int, width: int) -> np.ndarray:
    """Feature maps without ties: every number occurs once; below zero as well, where a zero padding would win."""
    numbers = np.random.default_rng(height * 10 + width).permutation(2 * height * width * 3)
    return (numbers.reshape(2, height, width, 3) - numbers.size * 0.9).astype(np.float32) / 8


def numpy_max_pool(x: np.ndarray, window: int, stride: int, pad: int) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=-np.inf)
    rows = range(0, padded.shape[1] - window + 1, stride)
    columns = range(0, padded.shape[2] - window + 1, stride)
    out = np.empty((len(x), len(rows), len(columns), x.shape[-1]), x.dtype)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            out[:, i, j] = padded[:, row : row + window, column : column + window].max((1, 2))
    return out


def window_2x2(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def window_3x3(x):
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


POOLS = [
    pytest.param(max_pool_2x2, window_2x2, (2, 2, 0), id="2x2"),
    pytest.param(max_pool_3x3_stride_2, window_3x3, (3, 2, 1), id="3x3"),
]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(("pool", "reference", "shape"), POOLS)
@pytest.mark.parametrize("size", SIZES)
def test_maxima_are_those_of_numpy(pool, reference, shape, size, platform):
    x = maps(*size)
    with compiling_for(platform):
        found = jax.jit(lambda x: pool(x))(x)
    assert np.array_equal(found, numpy_max_pool(x, *shape))


@pytest.mark.parametrize(("pool", "reference", "shape"), POOLS)
@pytest.mark.parametrize("size", [(4, 5), (7, 6)])
def test_without_ties_values_and_gradient_are_those_of_reduce_window(pool, reference, shape, size):
    x = maps(*size)
    weights = np.random.default_rng(0).normal(size=numpy_max_pool(x, *shape).shape).astype(np.float32)

    @jax.jit
    def both(x):
        gradients = [jax.grad(lambda x, f=f: (f(x) * weights).sum())(x) for f in (pool, reference)]
        return pool(x), reference(x), *gradients

    found, expected, gradient, expected_gradient = both(x)
    assert np.array_equal(found, expected)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pool", [max_pool_2x2, max_pool_3x3_stride_2])
def test_the_gradient_of_ties_adds_up_to_the_whole(pool):
    # Zeros after ReLU tie all the time; whoever gets the gradient, it must be counted once a window.
    x = jnp.zeros((1, 6, 6, 2))
    gradient = jax.jit(jax.grad(lambda x: pool(x).sum()))(x)
    assert np.asarray(gradient).sum() == 3 * 3 * 2
    assert np.asarray(gradient).min() >= 0


@pytest.mark.parametrize("pool", [max_pool_2x2, max_pool_3x3_stride_2, global_mean_pool])
def test_the_type_is_kept(pool):
    assert pool(jnp.ones((1, 4, 4, 1), jnp.bfloat16)).dtype == jnp.bfloat16


def test_the_mean_is_that_of_numpy_and_summed_in_float32():
    x = maps(6, 8)
    np.testing.assert_allclose(global_mean_pool(jnp.asarray(x)), x.mean((1, 2)), rtol=1e-5, atol=1e-6)
    # A bfloat16 sum of 10,000 ones stops at 256.
    assert global_mean_pool(jnp.ones((1, 100, 100, 1), jnp.bfloat16)).astype(jnp.float32) == 1
