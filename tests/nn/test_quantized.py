import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pcls.errors import UserError
from pcls.models.folding import fold_batch_norm
from pcls.models.registry import define_model
from pcls.nn.conv import convolve_valid
from pcls.nn.convolve import convolve
from pcls.nn.platform import compiling_for
from pcls.nn.quantized import (
    LARGEST,
    Integers,
    Quantization,
    QuantizedArray,
    Rounding,
    input_step,
    is_kernel,
    quantize_weights,
    rounded,
    rounding,
)
from pcls.nn.training import TrainingPass


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_is_at_most_half_a_step_from_its_integer(bits):
    kernel = normal(3, 3, 5, 7) * np.geomspace(1e-4, 1e3, 7, dtype=np.float32)
    array = quantize_weights({"conv/kernel": kernel}, bits)["conv/kernel"]
    assert array.values.dtype == np.int8
    assert array.scales.shape == (7,)
    assert np.abs(array.values).max() == LARGEST[bits]
    assert (np.abs(array.floats() - kernel) <= 0.5001 * array.scales).all()
    # Each output uses all of the range, however small it is.
    assert (np.abs(array.values).max((0, 1, 2)) == LARGEST[bits]).all()


def test_a_kernel_with_the_other_sign_has_the_same_integers_with_the_other_sign():
    kernel = normal(40, 6)
    one, other = (quantize_weights({"kernel": sign * kernel}, 8)["kernel"] for sign in (1, -1))
    np.testing.assert_array_equal(one.values, -other.values)
    np.testing.assert_array_equal(one.scales, other.scales)


def test_an_output_of_zeros_stays_one():
    array = quantize_weights({"kernel": np.zeros((4, 2), np.float32)}, 8)["kernel"]
    assert (array.values == 0).all()
    assert np.isfinite(array.scales).all() and (array.scales > 0).all()


def test_vectors_and_few_numbers_are_no_kernels():
    assert is_kernel("layer1/0/conv1/kernel", (3, 3, 8, 8))
    assert is_kernel("recurrent", (32, 32))
    assert is_kernel("blocks/0/layer/forward/b_re", (8, 8))
    assert not is_kernel("conv1/bias", (8,))
    assert not is_kernel("mix/horizontal/backward/gates", (2, 8))


PRODUCTS = {
    "convolution": (convolve, (2, 9, 9, 4), (3, 3, 4, 6), {"stride": 2, "pads": ((1, 1), (1, 1)), "groups": 1}),
    "same": (convolve, (2, 9, 9, 4), (3, 3, 4, 6), {"stride": 2, "pads": "SAME", "groups": 1}),
    "grouped": (convolve, (2, 9, 9, 4), (3, 3, 2, 6), {"stride": 1, "pads": ((1, 1), (1, 1)), "groups": 2}),
    "pointwise": (convolve, (2, 9, 9, 4), (1, 1, 4, 6), {"stride": 2, "pads": ((0, 0), (0, 0)), "groups": 1}),
    "few positions": (convolve, (2, 2, 2, 16), (3, 3, 16, 8), {"stride": 1, "pads": ((1, 1), (1, 1)), "groups": 1}),
    "valid": (convolve_valid, (2, 9, 9, 4), (3, 3, 4, 6), {}),
    "dense": (lax.dot_general, (2, 9, 4), (4, 6), {}),
}


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_the_product_of_integers_is_that_of_the_rounded_numbers(name, platform):
    own, shape, kernel_shape, settings = PRODUCTS[name]
    rest = [(((2,), (0,)), ((), ()))] if name == "dense" else []
    inputs, kernel = normal(*shape), normal(*kernel_shape, seed=1)
    array = quantize_weights({"a/kernel": kernel}, 8)["a/kernel"]
    integers = Integers(Quantization(8, {"a/kernel": array}, {"a": 2.0}))
    with compiling_for(platform):
        found = integers.product("a", own)(
            jnp.asarray(inputs), jnp.asarray(array.values, jnp.float32), *rest, **settings
        )
    expected = own(rounded(jnp.asarray(inputs), 2.0), jnp.asarray(array.floats()), *rest, **settings)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max()))
    # 2 of the inputs' standard deviations: some are cut off, all others moved.
    exact = own(jnp.asarray(inputs), jnp.asarray(kernel), *rest, **settings)
    assert 1e-4 < float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)) < 0.3


def test_a_layer_without_a_range_multiplies_by_itself():
    assert Integers(Quantization(8, {}, {})).product("a", convolve) is convolve


def test_inputs_keep_their_range_and_no_more():
    step = float(input_step(2.54))
    assert step == pytest.approx(0.02)
    found = rounded(jnp.array([0.0, 0.011, -0.029, 5.0, -5.0]), 2.54)
    np.testing.assert_allclose(found, [0, 0.02, -0.02, 2.54, -2.54], atol=1e-6)
    # Nothing but zeros was seen: whole numbers, not NaN.
    np.testing.assert_array_equal(rounded(jnp.array([0.0, 3.2]), 0.0), [0, 3])


@pytest.fixture(scope="module")
def network():
    """cnn28 for small images, its arrays, and some images."""
    definition = define_model("cnn28", height=10, width=10, channels=1, classes=3, widths=(4, 4, 8))
    params, stats = definition.init(jax.random.key(0))
    return definition, params, stats, jnp.asarray(normal(4, 10, 10, 1))


def test_gradients_go_straight_through_the_rounding(network):
    definition, params, stats, images = network
    kernels = {path: array for path, array in params.items() if is_kernel(path, array.shape)}
    floats = {path: jnp.asarray(array.floats()) for path, array in quantize_weights(kernels, 4).items()}

    def loss(model, params):
        return jnp.sum(model.apply(params, stats, images, TrainingPass())[0] ** 2)

    def gradient_of(model, params):
        return jax.jit(jax.value_and_grad(partial(loss, model)))(params)

    learning = replace(definition, learning=Rounding(4, inputs=False))
    value, grads = gradient_of(learning, params)
    expected, gradients = gradient_of(definition, params | floats)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert abs(float(value) - float(gradient_of(definition, params)[0])) > 1e-3 * float(value)
    for path, grad in grads.items():
        np.testing.assert_allclose(grad, gradients[path], rtol=1e-4, atol=1e-5)


def test_predictions_of_a_model_that_learns_rounded_are_not_rounded(network):
    definition, params, stats, images = network
    learning = replace(definition, learning=Rounding(4, inputs=True))
    np.testing.assert_array_equal(learning.apply(params, stats, images)[0], definition.apply(params, stats, images)[0])


def test_folding_batch_norm_leaves_the_integers_as_they_are():
    definition = define_model("resnet18_cifar", height=8, width=8, channels=3, classes=3)
    rng = np.random.default_rng(0)
    params, stats = jax.eval_shape(definition.init, jax.random.key(0))
    # Scales of both signs.
    params = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in params.items()}
    stats = {path: rng.uniform(0.5, 2, leaf.shape).astype(np.float32) for path, leaf in stats.items()}
    _, folded, _ = fold_batch_norm(definition, params, stats)
    before, after = quantize_weights(params, 8), quantize_weights(folded, 8)
    assert before.keys() == after.keys()
    for path, array in before.items():
        gains = np.sign(np.vdot(array.values.astype(int), after[path].values.astype(int)))
        signs = np.sign((array.values.astype(int) * after[path].values).reshape(-1, array.scales.size).sum(0))
        assert gains
        moved = np.abs(signs * array.values - after[path].values)
        # Rounding in float32 may put a number that lies between two of them to the other.
        assert moved.max() <= 1 and (moved > 0).mean() < 1e-3


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("rnn28", {"inputs/kernel", "recurrent", "head/kernel"}),
        ("gru", {"recurrent/layers/0/forward/kernel", "recurrent/layers/0/forward/recurrent", "head/kernel"}),
        ("lru", {"encoder/kernel", "blocks/0/layer/forward/b_re", "blocks/0/layer/forward/c_im", "head/kernel"}),
    ],
)
def test_recurrent_weights_are_quantized_too(name, kernels):
    definition = define_model(name, height=10, width=10, channels=1, classes=3)
    quantized = {path for path, leaf in definition.params.items() if is_kernel(path, leaf.shape)}
    assert kernels <= quantized
    left = sum(leaf.size for path, leaf in definition.params.items() if path not in quantized)
    assert left < 0.1 * definition.parameter_count


def test_a_missing_qwix_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    for asks in (
        lambda: rounding("int8"),
        lambda: Integers(Quantization(8, {}, {"a": 1.0})),
        lambda: quantize_weights({"kernel": np.ones((2, 2), np.float32)}, 8),
    ):
        with pytest.raises(UserError, match=r"pip install 'pcls\[compress\]'"):
            asks()
    assert rounding("none") is None


def test_what_integers_stand_for_is_values_times_scales():
    array = QuantizedArray(np.array([[1, -2], [3, 4]], np.int8), np.array([0.5, 2], np.float32))
    np.testing.assert_array_equal(array.floats(), [[0.5, -4], [1.5, 8]])
    assert array.floats().dtype == np.float32
