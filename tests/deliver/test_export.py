"""`pcls.export`: a file that says what the model says, or no file."""

import json
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

import pcls
from pcls.data.preprocessing import Preprocessing, SequenceFeatures
from pcls.deliver.export import export_bundle
from pcls.deliver.export_parity import Batch, Sample, compare, sample_of
from pcls.models.registry import define_model
from pcls.pretrained.bundle import Bundle, load_bundle, save_bundle

RNG = np.random.default_rng(0)
# What a program needs to be written and run.
PACKAGES = {"onnx": ("onnxruntime",), "litert": ("litert_converter", "ai_edge_litert"), "stablehlo": ()}


def need(to):
    for name in PACKAGES[to]:
        pytest.importorskip(name, reason=f"pip install 'pcls[{'export' if to == 'onnx' else to}]'")


@pytest.fixture(scope="module")
def bundle(finished_run):
    return load_bundle(finished_run / "bundle")


@pytest.fixture(scope="module")
def pictures(bundle):
    return RNG.integers(0, 256, (5, *bundle.preprocessing.shape), np.uint8)


def softmax(logits):
    return np.asarray(jax.nn.softmax(np.asarray(logits)))


def only(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_onnx_file_takes_pixels_and_gives_the_logits_of_the_run(finished_run, pictures, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'pcls[export]'")
    done = pcls.export(finished_run, to="onnx", out=tmp_path / "a.onnx", with_preprocessing=True)
    assert done.parity.what == "held-out images of the run"
    assert done.parity.records == done.parity.agreeing > 50
    assert 0 < done.parity.relative < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    classifier = pcls.load(finished_run)
    found = softmax(session.run(None, {"images": pictures})[0])
    wanted = [answer.probabilities for answer in classifier.predict(list(pictures))]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    facts = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(facts["class_names"])) == classifier.class_names
    assert Preprocessing.from_json(json.loads(facts["preprocessing"])) == classifier.preprocessing
    assert session.get_inputs()[0].shape[1:] == list(classifier.preprocessing.shape)
    assert only(tmp_path) == ["a.onnx"]


def test_a_stablehlo_file_is_for_several_platforms_and_any_number_of_images(finished_run, pictures, tmp_path):
    done = pcls.export(finished_run, to="stablehlo", out=tmp_path / "a.stablehlo", platforms=["cpu", "tpu"],
                       with_preprocessing=True)  # fmt: skip
    assert done.parity.holds
    program = jax.export.deserialize(bytearray((tmp_path / "a.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "tpu")
    classifier = pcls.load(finished_run)
    for count in (1, 5):
        wanted = [answer.probabilities for answer in classifier.predict(list(pictures[:count]))]
        np.testing.assert_allclose(softmax(program.call({"images": pictures[:count]})), wanted, atol=1e-5)
    facts = json.loads((tmp_path / "a.stablehlo.json").read_text(encoding="utf-8"))
    assert facts["inputs"] == {"images": {"shape": ["batch", *classifier.preprocessing.shape], "dtype": "uint8"}}
    assert tuple(facts["class_names"]) == classifier.class_names
    assert only(tmp_path) == ["a.stablehlo", "a.stablehlo.json"]


def test_a_litert_file_takes_an_image_and_gives_its_logits(finished_run, pictures, tmp_path):
    need("litert")
    from ai_edge_litert.interpreter import Interpreter

    done = pcls.export(finished_run, to="litert", with_preprocessing=True, out=tmp_path / "a.tflite")
    assert done.parity.what == "held-out images of the run"
    assert done.parity.records == done.parity.agreeing > 50
    assert 0 < done.parity.relative < 1e-5
    classify = Interpreter(str(tmp_path / "a.tflite")).get_signature_runner()
    classifier = pcls.load(finished_run)
    wanted = [answer.probabilities for answer in classifier.predict(list(pictures))]
    found = [softmax(classify(images=pictures[place : place + 1])["logits"][0]) for place in range(len(pictures))]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    facts = json.loads((tmp_path / "a.tflite.json").read_text(encoding="utf-8"))
    assert facts["inputs"] == {"images": {"shape": [1, *classifier.preprocessing.shape], "dtype": "uint8"}}
    assert tuple(facts["class_names"]) == classifier.class_names
    assert done.inputs == f"one image of {' x '.join(map(str, classifier.preprocessing.shape))}, uint8"
    assert only(tmp_path) == ["a.tflite", "a.tflite.json"]


@pytest.mark.parametrize("to", ["onnx", "stablehlo", "litert"])
def test_a_program_that_is_not_the_model_is_not_written(bundle, tmp_path, to):
    need(to)
    head = bundle.params["head/kernel"]
    other = replace(
        bundle, params={**bundle.params, "head/kernel": head + 1e-3 * RNG.normal(size=head.shape).astype("f")}
    )
    sample = lambda: sample_of(tmp_path, "", bundle.preprocessing)  # noqa: E731
    with pytest.raises(pcls.UserError, match=r"not written: the exported program is not the model: over 1,000 random"):
        export_bundle(other, to, tmp_path / "a", sample, reference=bundle)
    assert only(tmp_path) == []


def test_logits_that_are_no_numbers_are_not_the_same():
    batch = Batch(np.zeros((2, 1, 1, 1), np.uint8), None)
    good, bad = np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([[1.0, 2.0], [np.nan, 1.0]])
    assert compare(Sample("records", [batch]), lambda _: good, lambda _: good).holds
    assert not compare(Sample("records", [batch]), lambda _: good, lambda _: bad).holds
    assert not compare(Sample("records", [batch]), lambda _: bad, lambda _: bad).holds


@pytest.mark.parametrize("to", ["onnx", "stablehlo", "litert"])
@pytest.mark.parametrize("inside", [True, False])
def test_sequences_are_taken_with_their_lengths(tmp_path, to, inside):
    need(to)
    definition = define_model("gru", height=4, width=2, channels=1, classes=3, hidden=4)
    preprocessing = Preprocessing(4, 2, 1, (1.0, 1.0), (2.0, 2.0), sequence=SequenceFeatures())
    params = {path: RNG.normal(size=leaf.shape).astype(np.float32) for path, leaf in definition.params.items()}
    recurrent = Bundle("gru", ("a", "b", "c"), preprocessing, "float32", params, {}, {}, options={"hidden": 4})
    done = export_bundle(
        recurrent, to, tmp_path / "a", lambda: sample_of(tmp_path, "", preprocessing), with_preprocessing=inside
    )
    assert done.parity.holds
    assert done.parity.records == 1000
    number, lengths = ("one sequence", "its length") if to == "litert" else ("any number of sequences", "their lengths")
    assert done.inputs == (
        f"{number} of 4 x 2 x 1, float32 {'as they lie' if inside else 'normalised'}, padded to 4, and {lengths}"
    )


def test_a_model_of_bfloat16_goes_out_in_float32_and_says_so(bundle, tmp_path):
    sample = lambda: sample_of(tmp_path, "", bundle.preprocessing)  # noqa: E731
    trained = replace(bundle, precision="bfloat16")
    done = export_bundle(trained, "stablehlo", tmp_path / "a", sample, platforms=["cpu"], reference=bundle)
    assert done.parity.holds
    assert done.summary().splitlines()[-1] == "the model was trained in bfloat16; exported, and compared, in float32"


def test_weights_go_out_by_timms_names(tmp_path):
    from safetensors.numpy import load_file

    definition = define_model("mobilenetv3_small_100", height=32, width=32, channels=3, classes=2)
    arrays = [
        {path: np.ones(leaf.shape, np.float32) for path, leaf in leaves.items()}
        for leaves in (definition.params, definition.stats)
    ]
    preprocessing = Preprocessing(32, 32, 3, (0.5,) * 3, (0.5,) * 3)
    save_bundle(Bundle("mobilenetv3_small_100", ("a", "b"), preprocessing, "float32", *arrays, {}), tmp_path / "b")
    done = pcls.export(tmp_path / "b", to="safetensors", out=tmp_path / "a.safetensors")
    assert done.parity is None and done.notices == ()
    assert load_file(tmp_path / "a.safetensors")["conv_stem.weight"].shape == (16, 3, 3, 3)
    (tmp_path / "other").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


# What cannot be


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"to": "onnx", "out": "a.stablehlo"}, "a.stablehlo: says another format than --to onnx; end it with .onnx"),
        ({"to": "coreml"}, "--to coreml: there is no such format; choose stablehlo, onnx, litert, safetensors"),
        ({"to": "litert", "out": "a.onnx"}, "a.onnx: says another format than --to litert; end it with .tflite"),
        ({"to": "onnx", "platforms": ["cpu"]}, "--platforms has no effect with --to onnx; leave it out"),
        ({"to": "stablehlo", "platforms": ["cpu", "npu"]}, "--platforms npu: there is no such platform; choose of cpu"),
        ({"to": "stablehlo", "platforms": ["tpu"]}, "could not be tried on this machine, which has cpu; add cpu"),
        ({"to": "safetensors", "with_preprocessing": True}, "--with-preprocessing has no effect with --to safetensors"),
        ({"to": "onnx", "images": "nowhere"}, "--images nowhere: is no folder"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_and_nothing_is_left(finished_run, tmp_path, settings, words):
    out = tmp_path / settings.pop("out", f"a.{settings['to']}")
    with pytest.raises(pcls.UserError) as raised:
        pcls.export(finished_run, out=out, **settings)
    assert words in str(raised.value)
    assert only(tmp_path) == []


@pytest.mark.parametrize(("to", "there"), [("onnx", "a"), ("stablehlo", "a"), ("litert", "a.json")])
def test_a_file_that_is_there_is_kept(finished_run, tmp_path, to, there):
    (tmp_path / there).write_text("mine")
    with pytest.raises(pcls.UserError, match=r"is there already; remove it, or name another by --out$"):
        pcls.export(finished_run, to=to, out=tmp_path / "a")
    assert only(tmp_path) == [there]
    assert (tmp_path / there).read_text() == "mine"


@pytest.mark.faults
def test_a_folder_that_takes_no_file_is_named(finished_run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(pcls.UserError, match=r"file/a\.onnx: could not be written \(Not a directory\)$"):
        pcls.export(finished_run, to="onnx", out=tmp_path / "file" / "a.onnx")


@pytest.mark.faults
def test_a_full_disk_leaves_nothing(finished_run, small_disk):
    (small_disk / "filler").write_bytes(bytes(640_000))
    with pytest.raises(pcls.UserError, match=r"could not be written \(No space left on device\)$"):
        pcls.export(finished_run, to="stablehlo", out=small_disk / "a.stablehlo")
    assert only(small_disk) == ["filler"]


def test_a_package_that_is_missing_is_named_with_the_way_to_it(finished_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(pcls.UserError, match=r"^--to onnx needs onnxruntime: pip install 'pcls\[export\]'$"):
        pcls.export(finished_run, to="onnx", out=tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "litert_converter", None)
    monkeypatch.delitem(sys.modules, "pcls.deliver.export_litert", raising=False)
    with pytest.raises(pcls.UserError, match=r"pip install 'pcls\[litert\]', then pip install --no-deps litert-conv"):
        pcls.export(finished_run, to="litert", out=tmp_path / "a.tflite")
    assert only(tmp_path) == []


def test_a_damaged_image_is_named(finished_run, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"hello")
    with pytest.raises(pcls.UserError, match=r"a\.png: cannot be read .* take it out of the folder of --images$"):
        pcls.export(finished_run, to="stablehlo", out=tmp_path / "a", images=tmp_path / "images")
    assert only(tmp_path) == ["images"]
