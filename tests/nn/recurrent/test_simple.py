"""The recurrent scan against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.nn.recurrent.simple import simple_rnn_scan

RNG = np.random.default_rng(0)
PROJECTED = RNG.normal(size=(5, 3, 4)).astype(np.float32)
RECURRENT = (RNG.normal(size=(4, 4)) / 2).astype(np.float32)
FUNCTIONS = {"tanh": (np.tanh, jnp.tanh), "relu": (lambda x: np.maximum(x, 0), lambda x: jnp.maximum(x, 0))}


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_last_state_is_that_of_a_numpy_loop(activation):
    h = np.zeros((3, 4))
    for x in PROJECTED.astype(np.float64):
        h = FUNCTIONS[activation][0](x + h @ RECURRENT.astype(np.float64))
    found = simple_rnn_scan(jnp.asarray(PROJECTED), jnp.asarray(RECURRENT), activation)
    np.testing.assert_allclose(found, h, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_gradient_is_that_of_a_plain_loop(activation):
    weights = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)

    def plain(projected, recurrent):
        h = jnp.zeros((3, 4))
        for x in projected:
            h = FUNCTIONS[activation][1](x + h @ recurrent)
        return (weights * h).sum()

    def ours(projected, recurrent):
        return (weights * simple_rnn_scan(projected, recurrent, activation)).sum()

    for found, expected in zip(
        *(jax.jit(jax.grad(f, (0, 1)))(PROJECTED, RECURRENT) for f in (ours, plain)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_one_step_has_no_past():
    found = simple_rnn_scan(jnp.asarray(PROJECTED[:1]), jnp.asarray(RECURRENT), "tanh")
    np.testing.assert_allclose(found, np.tanh(PROJECTED[0]), rtol=1e-6)


def test_the_compute_type_is_kept():
    found = simple_rnn_scan(jnp.asarray(PROJECTED, jnp.bfloat16), jnp.asarray(RECURRENT, jnp.bfloat16), "tanh")
    assert found.dtype == jnp.bfloat16
