"""Convolutions against numpy, and the layer of convolution, pooling, bias and ReLU against the plain formulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

from pcls.nn.conv import Conv, ConvPool
from pcls.nn.platform import compiling_for
from pcls.nn.pooling import global_mean_pool


def plain(kernel: Array, bias: Array, x: Array) -> Array:
    """Convolution, bias, ReLU, then pooling by reduce_window, in the textbook's order."""
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.lax.reduce_window(nnx.relu(y + bias), -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


@pytest.mark.parametrize("stride", [1, 2])
def test_the_mean_after_two_convolutions_in_bfloat16_is_that_in_float32(stride):
    # jax 0.12 reads memory here that nobody has written to, where the CPU has AMX.
    x = jax.random.normal(jax.random.key(0), (8, 8, 8, 32))

    def mean(dtype):
        first = Conv(32, 64, 3, stride=stride, dtype=dtype, rngs=nnx.Rngs(0))
        second = Conv(64, 64, 3, dtype=dtype, rngs=nnx.Rngs(1))
        y = jax.jit(lambda x: global_mean_pool(nnx.relu(second(nnx.relu(first(x))))))(x.astype(dtype))
        return np.asarray(y, np.float32)

    np.testing.assert_allclose(mean(jnp.bfloat16), mean(jnp.float32), rtol=0.02, atol=0.02)


def numpy_convolution(x, kernel, stride, pad, groups):
    """Window by window, in double precision."""
    x = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    size, _, inputs, outputs = kernel.shape
    rows, columns = ((length - size) // stride + 1 for length in x.shape[1:3])
    y = np.empty((len(x), rows, columns, outputs))
    share = outputs // groups
    for i in range(rows):
        for j in range(columns):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            for group in range(groups):
                part = window[..., group * inputs : (group + 1) * inputs]
                outs = slice(group * share, (group + 1) * share)
                y[:, i, j, outs] = np.einsum("bhwi,hwio->bo", part, kernel[..., outs])
    return y


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"size": 3}, (2, 7, 6, 8)),
        ({"size": 3, "stride": 2}, (2, 4, 3, 8)),
        ({"size": 1, "stride": 2}, (2, 4, 3, 8)),
        # Patches that do not overlap; the odd last row is left out.
        ({"size": 2, "stride": 2, "pad": 0}, (2, 3, 3, 8)),
        ({"size": 3, "groups": 2}, (2, 7, 6, 8)),
        # Depthwise, with two outputs for each input.
        ({"size": 7, "groups": 4, "bias": True}, (2, 7, 6, 8)),
    ],
)
def test_a_convolution_is_that_of_numpy(options, shape) -> None:
    layer = Conv(4, 8, **options, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 4)).astype(np.float32)
    pad, stride, groups = options.get("pad", options["size"] // 2), options.get("stride", 1), options.get("groups", 1)
    assert layer.kernel.shape == (options["size"], options["size"], 4 // groups, 8)
    expected = numpy_convolution(x, np.asarray(layer.kernel[...], np.float64), stride, pad, groups)
    if layer.bias is not None:
        assert not layer.bias[...].any()
        layer.bias[...] = jnp.arange(8.0)
        expected = expected + np.arange(8)
    assert expected.shape == shape
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"size": 3, "stride": 2}, {"size": 5, "stride": 2, "groups": 4}, {"size": 3}])
def test_tensorflows_padding_has_its_odd_row_below_and_to_the_right(options) -> None:
    layer = Conv(4, 8, **options, pad="same", dtype=jnp.float32, rngs=nnx.Rngs(0))
    # Height and width need different padding where the stride is 2: an odd length as much on both sides.
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 4)).astype(np.float32)
    size, stride = options["size"], options.get("stride", 1)
    rows, columns = (padding_of_same(length, size, stride) for length in (7, 6))
    padded = np.pad(x, ((0, 0), rows, columns, (0, 0)))
    kernel = np.asarray(layer.kernel[...], np.float64)
    expected = numpy_convolution(padded, kernel, stride, 0, options.get("groups", 1))
    assert expected.shape == (2, -(-7 // stride), 6 // stride, 8)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


def padding_of_same(length: int, size: int, stride: int) -> tuple[int, int]:
    """Rows before and after, by the rule in TensorFlow's documentation."""
    total = max(size - (stride if length % stride == 0 else length % stride), 0)
    return total // 2, total - total // 2


def test_a_convolution_computes_in_its_type_with_float32_parameters() -> None:
    layer = Conv(4, 8, 3, bias=True, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert layer(jnp.ones((1, 4, 4, 4))).dtype == jnp.bfloat16
    assert layer.kernel.dtype == layer.bias.dtype == jnp.float32


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(("inputs", "size"), [(1, 9), (8, 8)])
def test_the_layer_and_its_gradients_equal_the_textbook_order(inputs: int, size: int, platform: str) -> None:
    layer = ConvPool(inputs, 5, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.linspace(-0.5, 0.5, 5)
    kernel, bias = layer.kernel[...], layer.bias[...]
    x = jax.random.normal(jax.random.key(1), (4, size, size, inputs))
    graph, _ = nnx.split(layer)

    def ours(kernel: Array, bias: Array, x: Array) -> Array:
        with compiling_for(platform):
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
