import json
import math
import shutil
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from pcls.data.preprocessing import Preprocessing
from pcls.errors import UserError
from pcls.models.registry import define_model
from pcls.pretrained.bundle import CARD, FACTS, WEIGHTS, Bundle, Calibration, load_bundle, save_bundle
from pcls.pretrained.history import ClassRates, Training
from pcls.pretrained.tensors import open_tensors

_HEADER = b'{"a": {"dtype": "F32", "shape": [0, 18446744073709551615], "data_offsets": [0, 0]}}'
EMPTY_BUT_HUGE = struct.pack("<Q", len(_HEADER)) + _HEADER


@pytest.fixture(scope="module")
def bundle():
    rng = np.random.default_rng(0)
    definition = define_model("rnn28", height=10, width=10, channels=1, classes=3)
    return Bundle(
        model="rnn28",
        class_names=("Äpfel", "pears", "3"),
        preprocessing=Preprocessing(10, 10, 1, (0.1,), (1 / 3,), 0.875),
        precision="float32",
        params={path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in definition.params.items()},
        stats={},
        metrics={"n": 7, "top1": 1 / 3},
    )


@pytest.fixture
def folder(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_bundle_comes_back_bit_for_bit(bundle, folder):
    found = load_bundle(folder)
    assert found.path == folder
    assert replace(found, path=None, params={}, stats={}) == replace(bundle, params={}, stats={})
    assert found.params.keys() == bundle.params.keys()
    for path, array in bundle.params.items():
        assert found.params[path].dtype == array.dtype
        np.testing.assert_array_equal(found.params[path], array)


def test_a_network_of_other_sizes_comes_back_as_it_was(tmp_path, sign, refusal):
    options = {"read": "columns", "hidden": 6, "bidirectional": True}
    definition = define_model("rnn", height=5, width=4, channels=1, classes=2, **options)
    params = {path: np.ones(leaf.shape, np.float32) for path, leaf in definition.params.items()}
    size = Preprocessing(5, 4, 1, (0.1,), (0.5,))
    save_bundle(Bundle("rnn", ("a", "b"), size, "float32", params, {}, {}, options=options), tmp_path / "bundle")
    found = load_bundle(tmp_path / "bundle")
    assert found.options == options
    assert found.definition().params == definition.params
    sign(tmp_path / "bundle", options={"hidden": 7})
    assert "and rnn needs" in refusal(tmp_path / "bundle")
    sign(tmp_path / "bundle", options={"depth": 7})
    assert "model.json: is damaged" in refusal(tmp_path / "bundle")


def test_where_weights_came_from_stays_with_them(bundle, tmp_path):
    origin = {"name": "rnn28.mine", "revision": "0123abcd", "licence": "mit"}
    save_bundle(replace(bundle, origin=origin), tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").origin == origin


def test_a_bundle_from_before_there_were_origins_and_sizes_of_training_loads(bundle, folder, sign):
    facts = json.loads((folder / FACTS).read_text())
    del facts["origin"], facts["preprocessing"]["train"]
    (folder / FACTS).write_text(json.dumps(facts))
    sign(folder)
    found = load_bundle(folder)
    assert found.origin == {}
    assert found.preprocessing == bundle.preprocessing


def test_a_bundle_is_three_files_and_none_is_code(folder):
    assert sorted(path.name for path in folder.iterdir()) == [CARD, FACTS, WEIGHTS]
    assert sorted(load_file(folder / WEIGHTS)) == [
        "params/head/bias",
        "params/head/kernel",
        "params/inputs/bias",
        "params/inputs/kernel",
        "params/recurrent",
    ]


def test_statistics_travel_with_the_weights(tmp_path):
    definition = define_model("resnet18", height=32, width=32, channels=3, classes=2)
    arrays = [{path: np.full(leaf.shape, 0.5, np.float32) for path, leaf in part.items()} for part in
              (definition.params, definition.stats)]  # fmt: skip
    size = Preprocessing(32, 32, 3, (0.0,) * 3, (1.0,) * 3)
    save_bundle(Bundle("resnet18", ("a", "b"), size, "bfloat16", *arrays, {}), tmp_path / "bundle")
    found = load_bundle(tmp_path / "bundle")
    assert found.stats.keys() == definition.stats.keys()
    assert len(found.stats) == 40
    assert found.precision == "bfloat16"


def test_a_second_bundle_takes_the_place_of_the_first(bundle, folder):
    other = replace(bundle, metrics={"n": 8})
    save_bundle(other, folder)
    assert load_bundle(folder).metrics == {"n": 8}
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


@pytest.mark.faults
def test_a_bundle_is_never_seen_half_written(bundle, tmp_path, monkeypatch):
    folder = tmp_path / "bundle"

    def cut_off(tensors, path):
        path.write_bytes(b"half")
        assert not folder.exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pcls.pretrained.bundle.save_file", cut_off)
    with pytest.raises(UserError, match=r"could not be written .*No space left"):
        save_bundle(bundle, folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults
def test_what_a_killed_save_left_is_in_nobodys_way(bundle, tmp_path, refusal):
    program = "import os, pathlib, sys; from pcls.atomic import atomic_path\n"
    program += "with atomic_path(pathlib.Path(sys.argv[1])) as part: part.mkdir(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "bundle")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    # Somebody else's.
    (tmp_path / "bundle.tmp").mkdir()
    assert "is no bundle" in refusal(tmp_path / "bundle")
    save_bundle(bundle, tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").model == "rnn28"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle.tmp"]


def test_whoever_may_read_the_facts_may_read_the_weights(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "bundle")
    assert len({path.stat().st_mode for path in (tmp_path / "bundle").iterdir()}) == 1


@pytest.mark.faults
@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.6, 0.9, 0.9999])
def test_one_flipped_bit_in_the_weights_is_refused(folder, place, refusal):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[int(place * len(data))] ^= 4
    (folder / WEIGHTS).write_bytes(data)
    assert "is missing or differs from the digest" in refusal(folder)


@pytest.mark.faults
def test_one_flipped_bit_in_the_facts_is_refused_or_changes_nothing(bundle, folder):
    data = (folder / FACTS).read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 7)
        (folder / FACTS).write_bytes(changed)
        try:
            found = load_bundle(folder)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert found.class_names == bundle.class_names
            assert found.preprocessing == bundle.preprocessing


@pytest.mark.parametrize(
    ("missing", "words"), [(FACTS, "is no bundle: it has no model.json"), (WEIGHTS, "is missing or differs")]
)
def test_a_missing_file_is_named(folder, missing, words, refusal):
    (folder / missing).unlink()
    assert words in refusal(folder)


def test_a_folder_that_is_not_there_is_no_bundle(tmp_path, refusal):
    assert "is no bundle" in refusal(tmp_path / "nowhere")


def test_a_later_format_is_named(folder, sign, refusal):
    sign(folder, format=2)
    assert refusal(folder) == (
        f"{folder}: bundle format 2, and this version of pcls reads format 1; install the version that wrote it, or a "
        "newer one: pip install -U pcls"
    )


def test_facts_that_a_later_version_adds_are_left_alone(bundle, folder, sign):
    sign(folder, provenance={"signed": True})
    assert load_bundle(folder).class_names == bundle.class_names


@pytest.mark.faults
@pytest.mark.parametrize("metrics", [{"top1": "0.9"}, {"top1": None}, {"n": True}, [1], "none"])
def test_metrics_that_are_no_numbers_are_damage(folder, metrics, sign, refusal):
    sign(folder, metrics=metrics)
    assert "model.json: is damaged" in refusal(folder)


TRAINING = Training(
    recipe={"train.batch_size": 32, "data.classes": ["a"], "train.duration": "2 epochs"},
    versions={"pcls": "0.1.0"},
    records=90,
    held_out=7,
    digest="sha256:00",
    classes=(ClassRates(3, 0.5, 1 / 3, 0.4), ClassRates(4, 1.0, 1.0, 1.0), ClassRates(0, 0.0, 0.0, 0.0)),
)


def test_how_it_was_trained_comes_back_and_stays_when_it_is_saved_again(bundle, tmp_path):
    save_bundle(replace(bundle, training=TRAINING), tmp_path / "first")
    found = load_bundle(tmp_path / "first")
    assert found.training == TRAINING
    save_bundle(replace(found, calibration=TEMPERATURE), tmp_path / "second")
    assert load_bundle(tmp_path / "second").training == TRAINING


@pytest.mark.faults
@pytest.mark.parametrize(
    "change",
    [
        {"classes": [[1, 1, 1, 1]]},
        {"classes": [[1, 1, 1]] * 3},
        {"recipe": []},
        {"records": "many"},
        {"versions": None},
    ],
)
def test_a_history_that_cannot_be_is_damage(bundle, tmp_path, change, sign, refusal):
    save_bundle(replace(bundle, training=TRAINING), tmp_path / "bundle")
    sign(tmp_path / "bundle", training=TRAINING.to_json() | change)
    assert "model.json: is damaged" in refusal(tmp_path / "bundle")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', "\ud800", "[" * 100_000])
def test_facts_that_are_none_are_damaged(folder, text, refusal):
    (folder / FACTS).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert "is damaged" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("precision", "float16"),
        ("precision", {"": {}}),
        ("class_names", []),
        ("class_names", "abc"),
        *(("height", size) for size in (0, -1, math.inf, math.nan, 1e300, "10", None)),
    ],
)
def test_facts_that_no_model_has_are_damage_though_their_digest_holds(folder, key, value, sign, refusal):
    facts = json.loads((folder / FACTS).read_text())
    preprocessing = {"preprocessing": facts["preprocessing"] | {key: value}}
    sign(folder, **(preprocessing if key == "height" else {key: value}))
    assert "is damaged" in refusal(folder)


def test_an_unknown_model_is_named(folder, sign, refusal):
    sign(folder, model="rnn29")
    assert "'rnn29'" in refusal(folder)
    assert "the nearest is 'rnn28'" in refusal(folder)


def test_wrong_shapes_types_and_names_are_named(folder, sign, refusal):
    tensors = load_file(folder / WEIGHTS)
    kernel = tensors["params/head/kernel"]
    sign(folder, tensors | {"params/head/kernel": kernel[:, :2].copy()})
    assert "params/head/kernel is float32[32, 2], and rnn28 needs float32[32, 3]" in refusal(folder)
    sign(folder, tensors | {"params/head/kernel": kernel.astype(np.float16)})
    assert "params/head/kernel is float16[32, 3], and rnn28 needs float32[32, 3]" in refusal(folder)
    renamed = {name.replace("head", "haed"): array for name, array in tensors.items()}
    sign(folder, renamed)
    assert "params/haed/bias is float32[3], and rnn28 needs absent" in refusal(folder)
    del tensors["params/recurrent"]
    sign(folder, tensors)
    assert "params/recurrent is absent, and rnn28 needs float32[32, 32]" in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x10\x00",
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 50) + b'{"params/head/bias": {"dtype": "F32"',
        EMPTY_BUT_HUGE,
    ],
)
def test_a_truncated_or_lying_header_is_refused(folder, content, sign, refusal):
    (folder / WEIGHTS).write_bytes(content)
    sign(folder)
    assert "is no safetensors file" in refusal(folder)


def test_a_tensor_of_a_shape_that_no_array_has_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(EMPTY_BUT_HUGE)
    with open_tensors(file) as stored, pytest.raises(UserError, match="a cannot be read"):
        np.asarray(stored.tensors["a"])


def test_a_bundle_may_be_copied_anywhere(bundle, folder, tmp_path):
    found = load_bundle(shutil.copytree(folder, tmp_path / "elsewhere"))
    np.testing.assert_array_equal(found.params["recurrent"], bundle.params["recurrent"])


TEMPERATURE = Calibration("temperature", (0.5,), (0.0,), 180)


def test_a_calibration_comes_back_and_a_bundle_without_one_says_nothing_of_it(bundle, folder, tmp_path):
    assert "calibration" not in json.loads((folder / FACTS).read_text())
    assert load_bundle(folder).calibration is None
    vector = Calibration("vector", (0.5, 1.0, 1.5), (0.1, 0.0, -0.1), 90)
    for calibration in (TEMPERATURE, vector):
        save_bundle(replace(bundle, calibration=calibration), tmp_path / "calibrated")
        assert load_bundle(tmp_path / "calibrated").calibration == calibration


def test_a_calibration_is_part_of_what_the_digest_vouches_for(bundle, tmp_path, refusal):
    save_bundle(replace(bundle, calibration=TEMPERATURE), tmp_path / "bundle")
    facts = json.loads((tmp_path / "bundle" / FACTS).read_text())
    facts["calibration"]["scale"] = [0.25]
    (tmp_path / "bundle" / FACTS).write_text(json.dumps(facts))
    assert "differs from its own digest" in refusal(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"method": "isotonic", "scale": [1], "bias": [0], "fitted": 9}, "calibration 'isotonic'"),
        ({"method": "temperature", "scale": [1, 1, 1], "bias": [0], "fitted": 9}, "of 3 scales for 3 classes"),
        ({"method": "vector", "scale": [1, 1], "bias": [0, 0], "fitted": 9}, "of 2 scales for 3 classes"),
        ({"method": "vector", "scale": [1, 1, 1], "bias": [0], "fitted": 9}, "of 3 scales for 3 classes"),
        ({"method": "temperature", "scale": [0], "bias": [0], "fitted": 9}, "not above 0"),
        ({"method": "temperature", "scale": [float("nan")], "bias": [0], "fitted": 9}, "not finite"),
        ({"method": "temperature", "scale": ["a"], "bias": [0], "fitted": 9}, "could not convert"),
        ({"method": "temperature", "scale": [1]}, "'bias'"),
        ("warm", "indices must be integers"),
    ],
)
def test_a_calibration_that_does_not_fit_is_damage(folder, values, reason, sign, refusal):
    sign(folder, calibration=values)
    told = refusal(folder)
    assert "model.json: is damaged" in told
    assert reason in told


def test_thresholds_come_back_and_a_bundle_of_one_label_a_record_has_none(bundle, folder, tmp_path, refusal):
    assert "thresholds" not in json.loads((folder / FACTS).read_text())
    assert load_bundle(folder).thresholds == ()
    save_bundle(replace(bundle, thresholds=(0.25, 1 / 3, 1.0)), tmp_path / "several")
    assert load_bundle(tmp_path / "several").thresholds == (0.25, 1 / 3, 1.0)
    facts = json.loads((tmp_path / "several" / FACTS).read_text())
    facts["thresholds"][0] = 0.2
    (tmp_path / "several" / FACTS).write_text(json.dumps(facts))
    assert "differs from its own digest" in refusal(tmp_path / "several")


@pytest.mark.parametrize(
    "values", [[0.5], [0.5, 0.5, 1.5], [0.5, 0.5, float("nan")], [0.5, 0.5, "a"], [0.5, 0.5, None], 3]
)
def test_thresholds_that_do_not_fit_are_damage(folder, values, sign, refusal):
    sign(folder, thresholds=values)
    assert "model.json: is damaged" in refusal(folder)
