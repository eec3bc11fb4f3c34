"""The layer of convolution, pooling, bias and ReLU against the plain formulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

from pcls.nn.conv import ConvPool


def plain(kernel: Array, bias: Array, x: Array) -> Array:
    """Convolution, bias, ReLU, then pooling by reduce_window, in the textbook's order."""
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.lax.reduce_window(nnx.relu(y + bias), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


@pytest.mark.parametrize(("inputs", "size"), [(1, 9), (8, 8)])
def test_the_layer_and_its_gradients_equal_the_textbook_order(inputs: int, size: int) -> None:
    layer = ConvPool(inputs, 5, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.linspace(-0.5, 0.5, 5)
    kernel, bias = layer.kernel[...], layer.bias[...]
    x = jax.random.normal(jax.random.key(1), (4, size, size, inputs))
    graph, _ = nnx.split(layer)

    def ours(kernel: Array, bias: Array, x: Array) -> Array:
        return nnx.merge(graph, {"kernel": kernel, "bias": bias})(x)

    shape = plain(kernel, bias, x).shape
    weights = jax.random.normal(jax.random.key(2), shape)
    np.testing.assert_allclose(ours(kernel, bias, x), plain(kernel, bias, x), atol=1e-5)
    gradients = [
        jax.grad(lambda *a, f=f: jnp.sum(f(*a) * weights), argnums=(0, 1, 2))(kernel, bias, x) for f in (ours, plain)
    ]
    for own, expected in zip(*gradients, strict=True):
        assert float(jnp.abs(expected).max()) > 0.1
        np.testing.assert_allclose(own, expected, atol=1e-4)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters() -> None:
    layer = ConvPool(1, 4, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert layer(jnp.ones((2, 8, 8, 1))).dtype == jnp.bfloat16
    assert layer.kernel.dtype == layer.bias.dtype == jnp.float32
