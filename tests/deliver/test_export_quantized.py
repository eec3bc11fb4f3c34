"""A quantized bundle as a program: integers go in, and it says what the bundle says."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest

import pcls
from pcls.compression.quantize import input_ranges, with_integers
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import Preprocessing, SequenceFeatures
from pcls.deliver.export import export_bundle
from pcls.deliver.export_parity import OF_FLOATS, OF_ROUNDED, sample_of
from pcls.deliver.export_quantized import with_gains
from pcls.models.registry import define_model
from pcls.nn.quantized import Quantization, quantize_weights
from pcls.pretrained.bundle import Bundle, load_bundle

onnx = pytest.importorskip("onnx", reason="pip install 'pcls[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'pcls[export]'")
pytest.importorskip("qwix", reason="pip install 'pcls[compress]'")

INT8 = onnx.TensorProto.INT8
RNG = np.random.default_rng(0)


def drawn(name, size, channels, *, sequence=None, **options):
    """A bundle of drawn numbers; BatchNorm's scales are of both signs, two of each are 0 and almost 0."""
    rng = np.random.default_rng(1)
    definition = define_model(name, height=size, width=size, channels=channels, classes=3, **options)
    params = {}
    for path, leaf in definition.params.items():
        array = rng.normal(0, 1 / np.sqrt(max(1, np.prod(leaf.shape[:-1]))), leaf.shape)
        if path.endswith("/scale"):
            array = rng.uniform(0.5, 1.5, leaf.shape) * np.resize([1, 1, -1], leaf.shape)
            array[4:6] = 0, 1e-12
        params[path] = array.astype(np.float32)
    stats = {path: rng.uniform(0.5, 1, leaf.shape).astype(np.float32) for path, leaf in definition.stats.items()}
    features = (0.5,) * (size if sequence else channels)
    preprocessing = Preprocessing(size, size, channels, features, features, sequence=sequence)
    return Bundle(name, ("a", "b", "c"), preprocessing, "float32", params, stats, {}, options=options)


def in_integers(bundle, bits, *, inputs):
    """The bundle quantized, its inputs too or not; their ranges are those of some random ones."""
    if not inputs:
        return with_integers(bundle, bits, {})
    shape, sequence = (16, *bundle.preprocessing.shape), bundle.preprocessing.sequence is not None
    images = RNG.normal(size=shape).astype(np.float32) if sequence else RNG.integers(0, 256, shape, np.uint8)
    length = np.full(16, shape[1], np.int32) if sequence else None
    batch = Batch(images, label=None, weight=None, record=None, epoch=None, length=length)
    arrays = dict(bundle.params), dict(bundle.stats)
    return with_integers(
        bundle, bits, input_ranges(bundle.definition(), *arrays, [batch], bundle.preprocessing, "float32")
    )


@pytest.fixture(scope="module")
def whole(finished_run):
    return load_bundle(finished_run / "bundle")


@pytest.fixture(scope="module")
def small(whole):
    return in_integers(whole, 8, inputs=True)


@pytest.fixture(scope="module")
def exported(finished_run, small, tmp_path_factory):
    """The run's model in int8 as a file, and what was said of it."""
    path = tmp_path_factory.mktemp("exported") / "a.onnx"
    return path, export_bundle(small, "onnx", path, lambda: sample_of(finished_run, "", small.preprocessing))


def written(bundle, to, folder, name="a"):
    return export_bundle(bundle, to, folder / name, lambda: sample_of(folder, "", bundle.preprocessing))


def count(path, *kinds):
    nodes = onnx.load(path).graph.node
    return [sum(node.op_type == kind for node in nodes) for kind in kinds]


def test_an_int8_model_is_an_int8_program_of_a_quarter(whole, small, exported, tmp_path):
    path, done = exported
    floats = written(whole, "onnx", tmp_path)
    # The nodes of so small a model take as much as its numbers.
    kernels = sorted(array.values.size for array in small.quantization.weights.values())
    assert floats.size - done.size > 0.7 * 4 * sum(kernels)
    assert done.notices[0] == "the model is quantized, and so is the program: int8 weights, int8 inputs of 4 layers"
    graph = onnx.load(path).graph
    sizes = {
        kind: [np.prod(one.dims) for one in graph.initializer if one.data_type == kind]
        for kind in (INT8, onnx.TensorProto.FLOAT)
    }
    assert sorted(sizes[INT8])[-4:] == kernels
    assert max(sizes[onnx.TensorProto.FLOAT]) < kernels[0]
    facts = {one.key: one.value for one in onnx.load(path).metadata_props}
    assert facts["quantization"] == "int8 weights, int8 inputs of 4 layers"


def load_kernels(bundle):
    return quantize_weights(bundle.params, 8).values()


def test_products_whose_outputs_are_rounded_are_of_integers(exported):
    graph = onnx.load(exported[0]).graph
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {one.name: one for one in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert [node.op_type for node in products] == ["Conv", "Conv", "Gemm", "Gemm"]
    # The logits are not rounded: the last kernel is integers times scales by plain arithmetic.
    for node, kind in zip(products, ["DequantizeLinear"] * 3 + ["Mul"], strict=True):
        assert made_by[node.input[0]].op_type == "DequantizeLinear"
        kernel = made_by[node.input[1]]
        assert kernel.op_type == kind
        integers = kernel.input[0] if kind == "DequantizeLinear" else made_by[kernel.input[0]].input[0]
        assert constants[integers].data_type == INT8
        rounded = [other.op_type for other in graph.node if node.output[0] in other.input]
        assert rounded == (["QuantizeLinear"] if kind == "DequantizeLinear" else ["Identity"])


def test_it_says_what_the_bundle_says(exported):
    _, done = exported
    assert done.parity.what == "held-out images of the run"
    assert done.parity.limits == OF_ROUNDED
    assert 0 < done.parity.relative < OF_ROUNDED.relative
    assert done.parity.agreeing >= 0.995 * done.parity.records
    assert "(limit 5e-03)" in done.summary()


def test_onnxruntime_runs_it_for_one_image_and_for_several(exported, small):
    session = onnxruntime.InferenceSession(exported[0], providers=["CPUExecutionProvider"])
    images = RNG.normal(size=(5, *small.preprocessing.shape)).astype(np.float32)
    all_of_them = session.run(None, {"images": images})[0]
    alone = [session.run(None, {"images": images[place : place + 1]})[0][0] for place in range(5)]
    np.testing.assert_allclose(all_of_them, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("to", ["onnx", "stablehlo", "litert"])
def test_a_layer_whose_steps_are_twice_as_large_is_refused(finished_run, small, tmp_path, to):
    if to == "litert":
        pytest.importorskip("litert_converter", reason="pip install --no-deps litert-converter")
        pytest.importorskip("ai_edge_litert", reason="pip install 'pcls[litert]'")
    inputs = dict(small.quantization.inputs)
    other = replace(small, quantization=replace(small.quantization, inputs=inputs | {"conv2": 2 * inputs["conv2"]}))
    sample = lambda: sample_of(finished_run, "", small.preprocessing)  # noqa: E731
    with pytest.raises(pcls.UserError, match="not written: the exported program is not the model"):
        export_bundle(other, to, tmp_path / "a", sample, reference=small)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_alone_are_integers_and_as_exact_as_floats(whole, tmp_path, bits):
    done = written(in_integers(whole, bits, inputs=False), "onnx", tmp_path)
    assert done.parity.limits == OF_FLOATS
    assert done.parity.holds
    assert count(tmp_path / "a", "QuantizeLinear", "DequantizeLinear") == [0, 0]
    sizes = sorted(np.prod(one.dims) for one in onnx.load(tmp_path / "a").graph.initializer if one.data_type == INT8)
    assert sizes == sorted(array.values.size for array in load_kernels(whole))
    wider = "; each int4 weight takes a byte" if bits == 4 else ""
    assert done.notices[0] == f"the model is quantized, and so is the program: int{bits} weights{wider}"


def test_batch_norm_is_in_the_scales(tmp_path):
    bundle = drawn("resnet18_cifar", 8, 3, widths=(8, 8, 8, 8))
    done = written(in_integers(bundle, 8, inputs=True), "onnx", tmp_path)
    assert done.parity.holds
    # Of each block the second convolution, and of three the shortcut, are added up before anything is rounded; the
    # first one of all is read as it is, too, and stands there twice.
    assert count(tmp_path / "a", "Conv", "Gemm", "Add", "Cast") == [21, 1, 8, 13]


@pytest.mark.parametrize("inputs", [True, False])
def test_recurrent_kernels_are_integers_too(tmp_path, inputs):
    bundle = drawn("gru", 4, 1, hidden=8, sequence=SequenceFeatures())
    done = written(in_integers(bundle, 8, inputs=inputs), "onnx", tmp_path)
    assert done.parity.holds
    graph = onnx.load(tmp_path / "a").graph
    shapes = [tuple(one.dims) for one in graph.initializer if one.data_type == INT8]
    assert {array.values.shape for array in load_kernels(bundle)} <= set(shapes)


@pytest.mark.parametrize("inputs", [True, False])
def test_a_stablehlo_program_computes_with_integers(whole, small, finished_run, tmp_path, inputs):
    bundle = small if inputs else in_integers(whole, 8, inputs=False)
    sample = lambda: sample_of(finished_run, "", bundle.preprocessing)  # noqa: E731
    done = export_bundle(bundle, "stablehlo", tmp_path / "a", sample, platforms=["cpu"])
    assert done.parity.holds
    text = jax.export.deserialize(bytearray((tmp_path / "a").read_bytes())).mlir_module()
    # Sums of products of int8 in int32; the kernels are int8 either way.
    assert bool(re.search(r"dot_general .*xi8>.*xi8>\) -> tensor<.*xi32>", text)) == inputs
    assert re.search(r"stablehlo.constant dense<.*tensor<64x64xi8>", text)


@pytest.mark.parametrize("inputs", [True, False])
def test_a_litert_program_holds_integers_and_computes_with_them(whole, small, finished_run, tmp_path, inputs):
    pytest.importorskip("litert_converter", reason="pip install --no-deps litert-converter")
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="pip install 'pcls[litert]'")
    bundle = small if inputs else in_integers(whole, 8, inputs=False)
    sample = lambda: sample_of(finished_run, "", bundle.preprocessing)  # noqa: E731
    done = export_bundle(bundle, "litert", tmp_path / "a.tflite", sample)
    assert done.parity.holds
    assert done.parity.limits == (OF_ROUNDED if inputs else OF_FLOATS)
    held = interpreter.Interpreter(str(tmp_path / "a.tflite")).get_tensor_details()
    kernels = [array.values.size for array in bundle.quantization.weights.values()]
    int8, float32, int32 = ([one for one in held if one["dtype"] == kind] for kind in (np.int8, np.float32, np.int32))
    assert set(kernels) <= {np.prod(one["shape"]) for one in int8}
    # Of no kernel there are floats in the file too: they are made of the integers when it is opened.
    assert done.size < 4 * max(kernels)
    assert float32
    # Sums of products of integers are int32, and so are the biases that they begin with.
    biases = [one for one in int32 if one["quantization_parameters"]["scales"].size > 1]
    assert bool(biases) == inputs


def test_a_recurrent_litert_program_holds_integers(tmp_path):
    pytest.importorskip("litert_converter", reason="pip install --no-deps litert-converter")
    pytest.importorskip("ai_edge_litert", reason="pip install 'pcls[litert]'")
    bundle = drawn("gru", 4, 1, hidden=32, sequence=SequenceFeatures())
    done = written(in_integers(bundle, 8, inputs=True), "litert", tmp_path)
    assert done.parity.holds
    assert done.size < written(bundle, "litert", tmp_path, "b").size


def test_weights_by_timms_names_are_floats_and_it_is_said(tmp_path):
    bundle = in_integers(drawn("resnet18", 32, 3), 8, inputs=False)
    done = written(bundle, "safetensors", tmp_path, name="a.safetensors")
    assert done.notices == (
        "the model is quantized; exported are the float32 numbers that its small integers stand for",
    )


def test_a_bundle_in_the_folder_of_a_run_is_tried_on_its_records(finished_run, small, tmp_path):
    for place, what in ((finished_run / "bundle", "held-out images of the run"), (tmp_path, "random images")):
        assert sample_of(place, "", small.preprocessing).what.startswith(what)


def test_a_folded_gain_is_in_the_scales_and_its_sign_in_the_integers():
    kernel = RNG.normal(size=(3, 3, 4, 6)).astype(np.float32)
    before = Quantization(8, quantize_weights({"conv/kernel": kernel}, 8), {"conv": 1.0})
    gains, bias = np.array([2, -0.5, 1, 0, -3, 1e-3], np.float32), np.full(6, 2, np.float32)
    folded = {"conv/kernel": before.weights["conv/kernel"].floats() * gains, "conv/bias": bias}
    after = with_gains(before, folded)
    old, new = (one.weights["conv/kernel"] for one in (before, after))
    np.testing.assert_allclose(new.floats(), old.floats() * gains, rtol=1e-6)
    np.testing.assert_array_equal(new.values, old.values * np.sign(gains).astype(np.int8))
    assert (new.scales > 0).all()
    assert after.inputs == before.inputs


@pytest.mark.parametrize("gain", [0, 1e-12, -1e-12])
def test_beside_a_kernel_of_almost_nothing_a_bias_is_an_int32(gain):
    kernel = RNG.normal(size=(1, 1, 8, 2)).astype(np.float32)
    before = Quantization(8, quantize_weights({"conv/kernel": kernel}, 8), {"conv": 1.27})
    folded = kernel * np.array([1, gain], np.float32)
    array = with_gains(before, {"conv/kernel": folded, "conv/bias": np.array([5, -300], np.float32)}).weights
    scales = array["conv/kernel"].scales
    assert 300 / (0.01 * scales[1]) < 2**31
    # As exact as float32 is beside that bias.
    assert np.abs(array["conv/kernel"].floats()[..., 1] - folded[..., 1]).max() < 300 * 2**-24
