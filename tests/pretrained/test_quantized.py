import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from pcls.data.preprocessing import Preprocessing
from pcls.models.registry import define_model
from pcls.nn.quantized import Quantization, quantize_weights
from pcls.pretrained.bundle import FACTS, WEIGHTS, Bundle, load_bundle, save_bundle
from pcls.pretrained.channels import with_image_channels
from pcls.pretrained.quantized import packed, unpacked


@pytest.fixture(scope="module")
def plain():
    """A bundle as training leaves it; its dense kernel has an odd number of weights."""
    rng = np.random.default_rng(0)
    widths = {"widths": [3, 5, 7]}
    definition = define_model("cnn28", height=10, width=10, channels=1, classes=3, widths=(3, 5, 7))
    return Bundle(
        model="cnn28",
        class_names=("a", "b", "c"),
        preprocessing=Preprocessing(10, 10, 1, (0.1,), (0.3,), 0.875),
        precision="float32",
        params={path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in definition.params.items()},
        stats={},
        metrics={"top1": 0.5},
        options=widths,
    )


def quantized(bundle, bits, inputs):
    quantization = Quantization(bits, quantize_weights(bundle.params, bits), inputs)
    floats = {path: array.floats() for path, array in quantization.weights.items()}
    return replace(bundle, params={**bundle.params, **floats}, quantization=quantization)


@pytest.fixture
def folder(plain, tmp_path):
    save_bundle(quantized(plain, 8, {"conv1": 2.5, "head": 50.0}), tmp_path / "int8")
    return tmp_path / "int8"


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_int4_takes_half_a_byte_and_comes_back(size):
    values = np.resize(np.arange(-8, 8, dtype=np.int8), (size, 1))
    assert packed(values).nbytes == (size + 1) // 2
    np.testing.assert_array_equal(unpacked(packed(values), values.shape), values)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_bundle_comes_back_bit_for_bit(plain, tmp_path, bits):
    bundle = quantized(plain, bits, {"conv1": 2.5})
    save_bundle(bundle, tmp_path / "small")
    found = load_bundle(tmp_path / "small")
    assert (found.quantization.bits, found.quantization.inputs) == (bits, {"conv1": 2.5})
    assert found.params.keys() == bundle.params.keys()
    for path, array in bundle.params.items():
        np.testing.assert_array_equal(found.params[path], array)
        assert found.params[path].dtype == np.float32
    for path, array in bundle.quantization.weights.items():
        np.testing.assert_array_equal(found.quantization.weights[path].values, array.values)
    stored = load_file(tmp_path / "small" / WEIGHTS)
    assert stored["params/conv2/kernel"].dtype == (np.int8 if bits == 8 else np.uint8)
    kernels = sum(array.size for path, array in plain.params.items() if path.endswith("kernel"))
    held = sum(array.nbytes for name, array in stored.items() if name.startswith("params/") and "kernel" in name)
    assert kernels * bits / 8 <= held <= kernels * bits / 8 + 2


def test_a_bundle_that_is_not_quantized_runs_by_its_own_numbers(plain):
    definition, params = plain.runnable()
    assert definition.predicting is None
    assert params == plain.params


def test_weights_alone_run_as_floats_and_inputs_as_integers(plain, folder):
    images = jnp.asarray(np.random.default_rng(1).normal(size=(4, 10, 10, 1)), jnp.float32)
    bundle = load_bundle(folder)
    floats = bundle.definition().apply(dict(bundle.params), {}, images)[0]
    definition, params = replace(bundle, quantization=replace(bundle.quantization, inputs={})).runnable()
    np.testing.assert_array_equal(definition.apply(params, {}, images)[0], floats)
    definition, params = bundle.runnable()
    assert params["conv1/kernel"].dtype == np.int8
    assert params["conv2/kernel"].dtype == np.float32
    found = definition.apply(params, {}, images)[0]
    assert 1e-4 < float(jnp.linalg.norm(found - floats) / jnp.linalg.norm(floats)) < 0.5


def test_a_kernel_for_other_channels_is_no_longer_one_of_integers(folder):
    found = with_image_channels(load_bundle(folder), 3)
    assert found.quantization is None
    np.testing.assert_array_equal(found.runnable()[1]["conv2/kernel"], load_bundle(folder).params["conv2/kernel"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_a_scale_that_cannot_be_is_damage(folder, value, sign, refusal):
    tensors = load_file(folder / WEIGHTS)
    tensors["scales/conv2/kernel"][1] = value
    sign(folder, tensors)
    assert "scales/conv2/kernel holds a number that is not finite and above 0" in refusal(folder)


def test_scales_of_another_shape_and_weights_of_another_type_are_named(folder, sign, refusal):
    tensors = load_file(folder / WEIGHTS)
    sign(folder, tensors | {"scales/head/kernel": np.ones(4, np.float32)})
    assert "scales/head/kernel is float32[4], and cnn28 needs float32[3]" in refusal(folder)
    sign(folder, {name: array for name, array in tensors.items() if name != "scales/head/kernel"})
    assert "scales/head/kernel is absent" in refusal(folder)
    sign(folder, tensors | {"params/head/kernel": tensors["params/head/kernel"].astype(np.float32)})
    assert "params/head/kernel is float32[7, 3], and cnn28 needs int8[7, 3]" in refusal(folder)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"bits": 3}, "weights of 3 bits"),
        ({"bits": True}, "weights of True bits"),
        ({"inputs": {"conv1": float("nan")}}, "not finite"),
        ({"inputs": {"conv1": -1}}, "below 0"),
        ({"inputs": {"conv9": 1.0}}, "conv9, which is no layer"),
        ({"inputs": [1, 2]}, "damaged"),
        ({"bits": 4}, "params/conv1/kernel is int8"),
    ],
)
def test_facts_of_a_quantization_that_cannot_be_are_damage(folder, facts, words, sign, refusal):
    kept = json.loads((folder / FACTS).read_text())["quantization"]
    sign(folder, quantization=kept | facts)
    assert words in refusal(folder)
