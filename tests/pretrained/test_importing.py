"""Public weights from files: every number, every fault, every name."""

import json
import struct
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pcls.cli import main
from pcls.data.preprocessing import Preprocessing, TrainingSize, imagenet_statistics
from pcls.errors import UserError
from pcls.models.registry import define_model
from pcls.pretrained import importing
from pcls.pretrained.bundle import Bundle, load_bundle, save_bundle
from pcls.pretrained.classes import imagenet_synsets, read_class_names
from pcls.pretrained.exchange import export_weights
from pcls.pretrained.exporting import export_timm
from pcls.pretrained.importing import import_bundle
from pcls.pretrained.names import TORCHVISION
from pcls.pretrained.names.rules import Names
from pcls.pretrained.sources import UNSAFE

CLASSES = ("ant", "bee", "cat", "dog", "eel")
SEEN = Preprocessing(
    *(40, 40, 3, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 1.0, "squash", "bicubic"), train=TrainingSize(32, 32, 0.75)
)


@pytest.fixture(scope="module")
def bundle():
    definition = define_model("resnet18", height=40, width=40, channels=3, classes=len(CLASSES))
    rng = np.random.default_rng(0)
    params, stats = (
        {path: rng.uniform(0.01, 0.1, leaf.shape).astype(np.float32) for path, leaf in part.items()}
        for part in (definition.params, definition.stats)
    )
    origin = {"name": "resnet18.mine", "licence": "mit"}
    return Bundle("resnet18", CLASSES, SEEN, "float32", params, stats, {}, origin=origin)


@pytest.fixture(scope="module")
def folder(bundle, tmp_path_factory):
    """What timm would have written. Read it; whoever changes it takes a copy of what it needs."""
    path = tmp_path_factory.mktemp("timm") / "resnet18.mine"
    export_timm(bundle, path)
    return path


@pytest.fixture(scope="module")
def tensors(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture
def few():
    """So few tensors that a file of them is quick; of no whole model."""
    return {"conv1.weight": np.ones((64, 3, 7, 7), np.float32), "fc.weight": np.ones((5, 512), np.float32)}


def refusal(source, **options):
    with pytest.raises(UserError) as caught:
        import_bundle(str(source), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_what_is_exported_comes_back_bit_for_bit_and_goes_out_as_it_came(bundle, folder, tensors, tmp_path):
    found = import_bundle(str(folder))
    assert_equal(found.params, bundle.params)
    assert_equal(found.stats, bundle.stats)
    assert (found.model, found.class_names, found.preprocessing) == ("resnet18", CLASSES, SEEN)
    assert found.origin == bundle.origin | {"source": str(folder)}
    save_bundle(found, tmp_path / "bundle")
    again = load_bundle(tmp_path / "bundle")
    assert again.origin == found.origin
    export_timm(again, tmp_path / "again")
    assert_equal(load_file(tmp_path / "again" / "model.safetensors"), tensors)
    assert (tmp_path / "again" / "config.json").read_text() == (folder / "config.json").read_text()


def test_counts_of_batches_are_passed_over(tensors, tmp_path):
    path = tmp_path / "resnet18.safetensors"
    save_file(tensors | {"bn1.num_batches_tracked": np.array(7)}, path)
    assert import_bundle(str(path)).model == "resnet18"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floating_point_types_become_float32(bundle, tensors, tmp_path, dtype):
    save_file({key: array.astype(dtype) for key, array in tensors.items()}, tmp_path / "resnet18-abc.safetensors")
    found = import_bundle(str(tmp_path / "resnet18-abc.safetensors"))
    assert_equal(found.params, {key: array.astype(dtype).astype(np.float32) for key, array in bundle.params.items()})


def test_a_files_name_or_the_user_tells_the_model(folder, tmp_path):
    data = (folder / "model.safetensors").read_bytes()
    said = []
    for name, options in (("resnet18-f37072fd", {}), ("mine", {"model": "resnet18"}), ("resnet18_a1", {})):
        (tmp_path / f"{name}.safetensors").write_bytes(data)
        found = import_bundle(str(tmp_path / f"{name}.safetensors"), say=said.append, **options)
        assert found.preprocessing == Preprocessing(224, 224, 3, *imagenet_statistics(3), crop_pct=0.875)
        assert found.class_names == ("0", "1", "2", "3", "4")
    assert "taken are 224 pixels" in said[0]
    assert "write --model NAME" in refusal(tmp_path / "mine.safetensors")
    (tmp_path / "resnet18.a1_in1k.safetensors").write_bytes(data)
    assert "has 5 outputs (fc.weight), and 1,000 are stated" in refusal(tmp_path / "resnet18.a1_in1k.safetensors")


def test_a_file_that_names_another_model_is_refused_though_its_shapes_may_fit(few, folder, tmp_path):
    path = tmp_path / "resnet18.safetensors"
    save_file(few, path, {"architecture": "resnet34.a1_in1k"})
    assert "is of resnet34 by its metadata, not of resnet18; leave out --model" in refusal(path, model="resnet18")
    assert "is of resnet18 by config.json, not of resnet50" in refusal(folder, model="resnet50")
    assert "'resnet81'" in refusal(folder, model="resnet81")


def test_what_does_not_fit_is_listed(few, tmp_path):
    path = tmp_path / "resnet18.safetensors"
    save_file(few | {"conv1.weight": np.ones((64, 3, 3, 3), np.float32), "extra": np.ones(3, np.float32)}, path)
    text = refusal(path)
    assert "does not fit resnet18: " in text
    assert "! conv1.weight [64, 3, 3, 3], needed [64, 3, 7, 7]" in text
    assert "- bn1.weight [64]" in text
    assert "more" in text


def test_keys_of_torchvision_are_known_by_themselves(bundle, tensors, tmp_path, monkeypatch):
    """Residual networks have the same keys in both libraries, so some are made up here."""
    known = Names(((r"^conv1/", r"features/0/"), *importing.TIMM["resnet18"].rules))
    monkeypatch.setitem(importing.TORCHVISION, "resnet18", known)
    renamed = {key.replace("conv1.weight", "features.0.weight") if key == "conv1.weight" else key: array
               for key, array in tensors.items()}  # fmt: skip
    for content in (tensors, renamed):
        save_file(content, tmp_path / "resnet18.safetensors")
        assert_equal(import_bundle(str(tmp_path / "resnet18.safetensors")).params, bundle.params)


def test_a_network_of_torchvision_alone_is_told_by_the_files_name(tmp_path):
    names = TORCHVISION["mobilenet_v3_small"]
    definition = define_model("mobilenet_v3_small", height=64, width=64, channels=3, classes=5)
    rng = np.random.default_rng(0)
    params, stats = (
        {path: rng.uniform(0.01, 0.1, leaf.shape).astype(np.float32) for path, leaf in part.items()}
        for part in (definition.params, definition.stats)
    )
    path = tmp_path / "mobilenet_v3_small-047dcff4.safetensors"
    save_file(export_weights(params, stats, names), path)
    found = import_bundle(str(path))
    assert found.model == "mobilenet_v3_small"
    assert_equal(found.params, params)
    assert_equal(found.stats, stats)
    with pytest.raises(UserError, match="timm has no weights for 'mobilenet_v3_small'"):
        export_timm(found, tmp_path / "out")
    pruned = replace(found, model="mobilenetv3_small_100", options={"widths": (8,) * 18})
    with pytest.raises(UserError, match=r"model\.widths is set, and timm's mobilenetv3_small_100 has its own"):
        export_timm(pruned, tmp_path / "out")


def header(entries, data=b"12345678", length=None):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DAMAGED = {
    "empty": b"",
    "cut in the length": b"\x10\x00",
    "cut in the header": struct.pack("<Q", 500) + b'{"a": {"dtype"',
    "a header of 100 GB": header({"a": tensor()}, length=100 << 30),
    "no JSON": struct.pack("<Q", 3) + b"{{{",
    "a list": header([1]),
    "cut in the numbers": header({"a": tensor()}, b"1234"),
    "more than is named": header({"a": tensor()}, b"1" * 12),
    "overlapping": header({"a": tensor(), "b": tensor(offsets=(4, 12))}, b"1" * 12),
    "backwards": header({"a": tensor(offsets=(8, 0))}),
    "beyond the end": header({"a": tensor(offsets=(1 << 40, (1 << 40) + 8))}),
    "a hole": header({"a": tensor(offsets=(4, 12))}, b"1" * 12),
    "another size than the shape": header({"a": tensor(shape=(3,))}),
    "a negative shape": header({"a": tensor(shape=(-2,))}),
    "a shape beyond counting": header({"a": tensor(shape=(1 << 40, 1 << 40))}),
    "an unknown type": header({"a": tensor("F99")}),
    "metadata that are no text": header({"__metadata__": {"a": 1}, "a": tensor()}),
}


@pytest.mark.faults
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_lying_file_is_one_line(name, tmp_path):
    (tmp_path / "resnet18.safetensors").write_bytes(DAMAGED[name])
    assert "resnet18.safetensors: is no whole safetensors file (" in refusal(tmp_path / "resnet18.safetensors")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: one.astype(np.int32), "bn1.bias is of type I32; weights are F16, BF16, F32, F64"),
        (lambda one: one * np.float32("nan"), "bn1.bias holds values that are not finite"),
        (lambda one: one.astype(np.float64) * 1e300, "bn1.bias holds values that are not finite in float32"),
    ],
)
def test_numbers_that_are_no_weights_are_refused(tensors, tmp_path, change, words):
    save_file(tensors | {"bn1.bias": change(tensors["bn1.bias"])}, tmp_path / "resnet18.safetensors")
    assert words in refusal(tmp_path / "resnet18.safetensors")


@pytest.mark.parametrize("suffix", UNSAFE)
def test_what_can_run_code_is_refused_with_the_way_to_convert_it(tmp_path, suffix):
    path = tmp_path / f"resnet18{suffix}"
    path.write_bytes(b"\x80\x04.")
    text = refusal(path)
    assert "can run code when it is read" in text
    assert f"torch.load('resnet18{suffix}', map_location='cpu', weights_only=True)" in text


@pytest.mark.peer
def test_the_shown_conversion_works(tmp_path):
    import subprocess
    import sys

    torch = pytest.importorskip("torch")
    write = "import torch; torch" + ".save({'a': torch.arange(6.).reshape(2, 3).T}, 'mine.pth')"
    subprocess.run([sys.executable, "-c", write], cwd=tmp_path, check=True)
    program = refusal(tmp_path / "mine.pth").partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    expected = torch.arange(6.0).reshape(2, 3).T.numpy()
    np.testing.assert_array_equal(load_file(tmp_path / "mine.safetensors")["a"], expected)


def test_names_of_classes_come_from_a_file(folder, tmp_path):
    (tmp_path / "names.txt").write_text("Ä\nB\nC\nD\nE\n", encoding="utf-8")
    assert import_bundle(str(folder), classes=tmp_path / "names.txt").class_names == ("Ä", "B", "C", "D", "E")
    (tmp_path / "names.json").write_text('["1", "2", "3", "4", "5"]')
    assert import_bundle(str(folder), classes=tmp_path / "names.json").class_names == ("1", "2", "3", "4", "5")
    for text, words in (
        ("a\nb\n", "--classes names 2 classes, and"),
        ("", "holds an empty name"),
        ("a\n\nb\nc\nd", "holds an empty name"),
        ("[1, 2]", "holds an empty name, or one that is no text"),
        ("[", "is neither UTF-8 text"),
    ):
        (tmp_path / "names.txt").write_text(text)
        assert words in refusal(folder, classes=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe")
    assert "is neither UTF-8 text" in refusal(folder, classes=tmp_path / "names.txt")
    assert "cannot be read (No such file" in refusal(folder, classes=tmp_path / "nowhere")


def test_a_thousand_outputs_are_imagenets_in_timms_order(bundle, shared_data, tmp_path):
    order = (shared_data / "timm" / "imagenet_synsets.txt").read_text().split()
    assert list(imagenet_synsets()) == order
    kernel = np.ones((512, 1000), np.float32)
    thousand = {**bundle.params, "head/kernel": kernel, "head/bias": kernel[0].copy()}
    export_timm(replace(bundle, params=thousand), tmp_path / "resnet18.safetensors")
    said = []
    assert import_bundle(str(tmp_path / "resnet18.safetensors"), say=said.append).class_names == tuple(order)
    assert "ImageNet-1k's classes" in said[-1]


@pytest.mark.peer
def test_the_names_that_torchvision_has_are_in_the_order_of_timms_outputs(timm, tmp_path):
    """As docs/pretrained.md writes them into a file."""
    torchvision = pytest.importorskip("torchvision")
    path = tmp_path / "names.txt"
    path.write_text("\n".join(torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]))
    names, info = read_class_names(path), timm.data.ImageNetInfo()
    assert len(set(names)) == info.num_classes() == 1000
    same = [name.lower() in info.index_to_description(place).lower() for place, name in enumerate(names)]
    # Some are called otherwise, such as one of two cranes.
    assert sum(same) > 980
    assert [info.index_to_label_name(place) for place in range(1000)] == list(imagenet_synsets())


def test_weights_for_grey_pictures_answer_as_those_for_colours(bundle, folder, tmp_path):
    import pcls

    even = replace(bundle, preprocessing=replace(SEEN, mean=(0.5,) * 3, std=(0.25,) * 3))
    export_timm(even, tmp_path / "even")
    for name, channels in (("colours", None), ("grey", 1)):
        save_bundle(import_bundle(str(tmp_path / "even"), channels=channels), tmp_path / name)
    grey = load_bundle(tmp_path / "grey")
    assert (grey.preprocessing.channels, grey.preprocessing.mean, grey.preprocessing.std) == (1, (0.5,), (0.25,))
    assert grey.params["conv1/kernel"].shape == (7, 7, 1, 64)
    picture = np.random.default_rng(0).integers(0, 256, (50, 60), np.uint8)
    answers = [pcls.load(tmp_path / name).predict([picture])[0].probabilities for name in ("colours", "grey")]
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-4)
    mean = import_bundle(str(folder), channels=1).preprocessing
    assert (mean.mean, mean.std) == ((pytest.approx(0.5),), (pytest.approx(0.25),))
    assert "channels is 0; 1 (grey), 3 (RGB) or another number up to 512 is needed" in refusal(folder, channels=0)


def test_keras_files_go_to_their_reader(tmp_path, monkeypatch):
    definition = define_model("rnn28", height=10, width=10, channels=1, classes=2)
    params = {path: np.ones(leaf.shape, np.float32) for path, leaf in definition.params.items()}
    asked = []

    def read(path, names, *, model, say):
        asked.append((path, names, model))
        return Bundle("rnn28", names or ("0", "1"), Preprocessing(10, 10, 1, (0.0,), (1.0,)), "float32", params, {}, {})

    monkeypatch.setattr("pcls.pretrained.keras_files.read_keras", read)
    path, names = tmp_path / "mine.keras", tmp_path / "names.txt"
    path.write_bytes(b"PK")
    names.write_text("ant\nbee")
    found = import_bundle(str(path), classes=names, model="rnn28")
    assert asked == [(path, ("ant", "bee"), "rnn28")]
    assert found.class_names == ("ant", "bee")
    assert found.origin == {"name": "mine", "source": str(path)}
    assert "is of rnn28, not of irnn28; leave out --model" in refusal(path, model="irnn28")
    assert "rnn28 has no convolution that alone sees the picture" in refusal(path, channels=3)


def config(folder, **changes):
    return json.loads((folder / "config.json").read_text()) | changes


def rewritten(folder, tmp_path, tensors, text):
    (tmp_path / "mine").mkdir()
    save_file(tensors, tmp_path / "mine" / "model.safetensors")
    (tmp_path / "mine" / "config.json").write_text(text)
    return tmp_path / "mine"


def test_weights_without_a_head_are_for_classes_to_be_learned(folder, tensors, tmp_path):
    body = {key: array for key, array in tensors.items() if not key.startswith("fc.")}
    headless = rewritten(folder, tmp_path, body, json.dumps(config(folder, num_classes=0, label_names=None)))
    assert "has no head; name the classes that it is to learn: pcls models import" in refusal(headless)
    (tmp_path / "names.txt").write_text("a\nb")
    found = import_bundle(str(headless), classes=tmp_path / "names.txt")
    assert found.class_names == ("a", "b")
    np.testing.assert_array_equal(found.params["head/kernel"], np.zeros((512, 2), np.float32))


def test_a_pooling_of_another_kind_is_an_option_of_the_model(folder, tmp_path, tensors, bundle):
    path = rewritten(folder, tmp_path, tensors, json.dumps(config(folder, global_pool="max")))
    found = import_bundle(str(path))
    assert found.options == {"pool": "max"}
    export_timm(replace(bundle, options=found.options), tmp_path / "out")
    assert config(tmp_path / "out")["model_args"] == {"global_pool": "max"}


PRETRAINED = {"input_size": [3, 32, 32]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON file"),
        ("[]", "the file: input should be a valid dictionary"),
        ("{}", "architecture: field required"),
        ({"pretrained_cfg": None}, "pretrained_cfg: input should be"),
        ({"num_classes": -1}, "num_classes: input should be greater than or equal to 0"),
        ({"pretrained_cfg": {"input_size": [3, 0, 32]}}, "pretrained_cfg.input_size.1"),
        ({"pretrained_cfg": {"input_size": [0, 32, 32]}}, "pretrained_cfg.input_size.0: input should be greater"),
        ({"pretrained_cfg": {"input_size": [5, 32, 32]}}, "mean and std need a number for each of the 5 channels"),
        ({"pretrained_cfg": PRETRAINED | {"crop_pct": 0}}, "pretrained_cfg.crop_pct: input should be greater than 0"),
        ({"pretrained_cfg": PRETRAINED | {"crop_mode": "random"}}, "'center', 'squash' or 'border'"),
        ({"pretrained_cfg": PRETRAINED | {"std": [0, 1, 1]}}, "pretrained_cfg.std.0: input should be greater than 0"),
        ({"pretrained_cfg": PRETRAINED | {"mean": [0.5]}}, "mean and std need a number for each of the 3 channels"),
        ({"model_args": {"act_layer": "silu"}}, "model_args.act_layer changes the network"),
        ({"model_args": {"in_chans": 1}}, "model_args.in_chans and pretrained_cfg.input_size differ"),
        ({"model_args": {"num_classes": 6}}, "model_args.num_classes and num_classes differ"),
        ({"global_pool": "fast"}, "global_pool is 'fast'; pcls has avg, max"),
        ({"num_classes": 4}, "names 5 labels for 4 classes"),
        ({"num_classes": 4, "label_names": None}, "has 5 outputs (fc.weight), and 4 are stated"),
        ({"architecture": "vit_base"}, "'vit_base'"),
        ({"architecture": "cnn28"}, "neither timm nor torchvision has weights for 'cnn28'"),
    ],
)
def test_a_configuration_that_is_none_is_one_line(folder, few, tmp_path, text, words):
    text = text if isinstance(text, str) else json.dumps(config(folder, **text))
    assert words in refusal(rewritten(folder, tmp_path, few, text))


def test_sources_that_are_none_are_told(folder, tmp_path):
    assert "is there already, and is no bundle" in cli_refusal(["models", "import", folder, "--out", tmp_path])
    (tmp_path / "a.txt").write_text("")
    assert "is of no kind that can be imported: .safetensors, .h5" in refusal(tmp_path / "a.txt")
    assert "there is no such file or folder" in refusal(tmp_path / "nowhere.safetensors")
    assert "the nearest are resnet18.a1_in1k" in refusal("resnet18.a1_in1")
    assert "has no config.json; a folder needs config.json and model.safetensors" in refusal(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    assert "is a bundle already" in refusal(tmp_path)


def cli_refusal(argv, code=2):
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()) as errors:
        assert main([str(argument) for argument in argv]) == code
    (line,) = errors.getvalue().splitlines()
    assert line.startswith("pcls: ")
    return line


@pytest.mark.faults
def test_a_full_disk_leaves_no_half_bundle(folder, small_disk):
    line = cli_refusal(["models", "import", folder, "--out", small_disk / "mine"])
    assert "could not be written" in line
    assert list(small_disk.iterdir()) == []
    line = cli_refusal(["models", "export", exported(folder, small_disk), "--out", small_disk / "timm"])
    assert "could not be written" in line
    assert list(small_disk.iterdir()) == []


def exported(folder, small_disk):
    """A bundle on a disk with room."""
    place = folder.parent / "bundle"
    save_bundle(import_bundle(str(folder)), place)
    return place


def test_the_verbs_import_and_export(folder, tensors, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["models", "import", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["bundle          resnet18.mine", "model           resnet18"]
    assert "training size   32 x 32 x 3, crop 0.75 (squash)" in lines
    assert "licence         mit" in lines
    assert main(["models", "export", "resnet18.mine"]) == 0
    assert capsys.readouterr().out == "resnet18.mine-timm\n"
    assert_equal(load_file(tmp_path / "resnet18.mine-timm" / "model.safetensors"), tensors)
    assert main(["models", "export", "resnet18.mine", "--out", "alone.safetensors"]) == 0
    assert_equal(load_file(tmp_path / "alone.safetensors"), tensors)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("alone.safetensors", "resnet18.mine", "resnet18.mine-timm"),
    ]
    assert "is there already; name another" in cli_refusal(["models", "export", "resnet18.mine"])


def test_a_model_that_timm_does_not_have_cannot_be_exported(finished_run, tmp_path):
    line = cli_refusal(["models", "export", finished_run, "--out", tmp_path / "out"])
    assert "timm has no weights for 'cnn28'" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.peer
@pytest.mark.parametrize("name", ["resnet18d", "mobilenetv3_small_100", "tf_efficientnet_b0", "convnext_atto"])
def test_what_timm_writes_is_imported_and_goes_back_as_it_came(timm, tmp_path, name):
    from timm.models import save_for_hf

    model = timm.create_model(name, num_classes=7)
    save_for_hf(model, tmp_path / "theirs", model_config={"label_names": list("abcdefg")}, safe_serialization=True)
    found = import_bundle(str(tmp_path / "theirs"))
    assert (found.model, found.class_names) == (name, tuple("abcdefg"))
    expected, tests = model.pretrained_cfg, timm.data.resolve_model_data_config(model, use_test_size=True)
    seen = found.preprocessing
    assert (seen.shape, seen.crop_pct) == ((*tests["input_size"][1:], 3), tests["crop_pct"])
    assert (seen.training.shape, seen.training.crop_pct) == ((*expected["input_size"][1:], 3), expected["crop_pct"])
    assert (seen.mean, seen.std, seen.interpolation) == (expected["mean"], expected["std"], expected["interpolation"])
    export_timm(found, tmp_path / "ours")
    ours, theirs = (load_file(tmp_path / whose / "model.safetensors") for whose in ("ours", "theirs"))
    assert_equal(ours, {key: array for key, array in theirs.items() if not key.endswith("num_batches_tracked")})
    written = config(tmp_path / "ours")["pretrained_cfg"]
    assert [written[key] for key in ("first_conv", "classifier")] == [
        expected[key] for key in ("first_conv", "classifier")
    ]


@pytest.mark.peer
def test_timm_takes_what_is_exported(timm, bundle, folder, tensors, tmp_path):
    import torch

    model = timm.create_model("resnet18", num_classes=len(CLASSES))
    found = {key: torch.from_numpy(array) for key, array in tensors.items()}
    assert str(model.load_state_dict(found, strict=True)) == "<All keys matched successfully>"
    local = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(local, use_test_size=True)
    assert (list(data["input_size"]), data["crop_pct"], data["crop_mode"]) == ([3, 40, 40], 1.0, "squash")
    assert (tuple(data["mean"]), tuple(data["std"]), data["interpolation"]) == (SEEN.mean, SEEN.std, "bicubic")
    assert list(timm.data.resolve_model_data_config(local)["input_size"]) == [3, 32, 32]
    assert local.pretrained_cfg["label_names"] == list(CLASSES)
    for key, array in local.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(array.numpy(), tensors[key], err_msg=key)
    from pcls.pretrained.channels import with_image_channels

    export_timm(with_image_channels(bundle, 1), tmp_path / "grey")
    assert timm.create_model(f"local-dir:{tmp_path / 'grey'}", pretrained=True).conv1.weight.shape[1] == 1
