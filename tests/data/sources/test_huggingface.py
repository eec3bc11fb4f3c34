"""Sets as Hugging Face's `datasets` saves them: written here by pyarrow alone, and once by the library itself."""

import copy
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.huggingface import open_huggingface
from pcls.errors import UserError

PREPROCESSING = Preprocessing(4, 6, 3, (0.0,) * 3, (1.0,) * 3)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}}


def picture(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (value,) * 3).save(stream, "PNG")
    return stream.getvalue()


def write_stream(file: Path, images: list, labels: list, batch: int = 2) -> None:
    schema = pa.schema([("image", IMAGE), ("label", pa.int64()), ("note", pa.string())])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(images), batch):
            part = slice(start, start + batch)
            arrays = [pa.array(images[part], IMAGE), pa.array(labels[part], pa.int64()), pa.nulls(len(images[part]))]
            writer.write_batch(pa.record_batch([*arrays[:2], arrays[2].cast(pa.string())], schema=schema))


@pytest.fixture
def write(tmp_path):
    """Writes a split of images of grey values: `write("train", [10, 20], [0, 1])`; others are stored as they are."""

    def write_split(split: str, images: list, labels: list, features: dict = FEATURES, files: int = 1) -> Path:
        root = tmp_path / "set"
        folder = root / split
        folder.mkdir(parents=True, exist_ok=True)
        stored = [{"bytes": picture(v), "path": None} if isinstance(v, int) else v for v in images]
        names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
        for name, part in zip(names, np.array_split(np.arange(len(images)), files), strict=True):
            write_stream(folder / name, [stored[i] for i in part], [labels[i] for i in part])
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
        (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
        splits = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        (root / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
        return root

    return write_split


def pixels(source, records) -> list[int]:
    read = source.read(np.asarray(records), PREPROCESSING, None)
    assert read.decoded.all()
    return read.images[:, 0, 0, 0].tolist()


def complaint(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        open_huggingface(path)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value).replace(str(path), "ROOT")


def test_records_are_found_across_batches_and_files(write):
    values = list(range(0, 110, 10))
    root = write("train", values, [i % 3 for i in range(11)], files=3)
    source, evaluation = open_huggingface(root)
    assert (len(source), evaluation) == (11, None)
    assert source.class_names == ("cat", "dog", "owl")
    assert (source.labels.tolist(), source.labels.dtype) == ([i % 3 for i in range(11)], np.int32)
    assert pixels(source, [10, 0, 3, 4, 7, 8]) == [100, 0, 30, 40, 70, 80]
    assert source.name(10) == f"{root}/train #10"
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda record: pixels(source, [record])[0], range(11))) == values
    # What pickling does, without the bytes.
    assert copy.copy(source.store).__getitems__([9])[0].image == picture(90)


@pytest.mark.parametrize("split", ["validation", "test", "val", "valid"])
def test_another_split_is_evaluated_on(write, split):
    write("train", [1, 2], [0, 1])
    train, evaluation = open_huggingface(write(split, [3], [2]))
    assert (len(train), pixels(evaluation, [0]), evaluation.labels.tolist()) == (2, [3], [2])


def test_one_split_alone_is_trained_on(write):
    source, evaluation = open_huggingface(write("test", [3], [2]) / "test")
    assert (pixels(source, [0]), evaluation) == ([3], None)


def test_an_image_without_bytes_has_a_reason(write):
    images = [1, None, {"bytes": None, "path": "cat.jpg"}, {"bytes": b"<html>", "path": None}]
    source, _ = open_huggingface(write("train", images, [0, 1, 2, 0]))
    assert source.read(np.arange(4), PREPROCESSING, None).decoded.tolist() == [True, False, False, False]
    assert [source.failure(record, PREPROCESSING) for record in (1, 2, 3)] == [
        "cannot be read (the set holds no image here)",
        "cannot be read (the set holds no bytes here, only the path cat.jpg)",
        "cannot be decoded (not a JPEG, PNG or WebP image, 6 bytes)",
    ]


def label_feature(name: str) -> dict:
    return {name: FEATURES["label"]}


def test_of_several_columns_the_one_with_the_usual_name_is_taken(write):
    features = {"mask": {"_type": "Image"}, **FEATURES, **label_feature("coarse")}
    assert len(open_huggingface(write("train", [1, 2], [0, 1], features))[0]) == 2


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {"image": {"_type": "Image"}, **label_feature("a"), **label_feature("b")},
            "a, b are all columns of type ClassLabel; call the right one label by rename_column, or take",
        ),
        (
            {"img": {"_type": "Image"}, **FEATURES},
            "img, image are all columns of type Image; call the right one image by rename_column",
        ),
        (
            label_feature("label"),
            'no column of type Image among label; use cast_column("image", Image()) and save it again',
        ),
        (
            {"image": {"_type": "Image"}, "label": {"dtype": "string", "_type": "Value"}},
            'no column of type ClassLabel among image, label; use class_encode_column("label") and save it again',
        ),
        ({"image": {"_type": "Image"}, "label": {"_type": "ClassLabel"}}, "the column label has no class names"),
        (
            {"picture": {"_type": "Image"}, **label_feature("label")},
            "/data-00000-of-00001.arrow: has the columns image",
        ),
        (
            {"note": {"_type": "Image"}, **label_feature("label")},
            "/data-00000-of-00001.arrow: note and label are string",
        ),
        (None, "/dataset_info.json: says nothing of the columns (features)"),
    ],
)
def test_columns_that_cannot_be_told_are_refused(write, features, message):
    assert message in complaint(write("train", [1, 2], [0, 1], features))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1, -1], "record 1 has no label; 2 of 3 records are of none of the 3 classes: take them out by filter()"),
        ([0, 1, None], "record 2 has no label; 1 of 3 records are of none of the 3 classes"),
        ([7, 1, 2], "record 0 has the label 7; 1 of 3 records are of none of the 3 classes"),
    ],
)
def test_labels_that_are_no_class_are_refused(write, labels, message):
    assert complaint(write("train", [1, 2, 3], labels)).startswith("ROOT/train: " + message)


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


ARROW = "train/data-00000-of-00001.arrow"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("dataset_dict.json", b"[", "ROOT/dataset_dict.json: is no JSON ("),
        ("dataset_dict.json", b"[]", "ROOT/dataset_dict.json: is no JSON object; save the set again"),
        ("dataset_dict.json", b'{"splits": ["test"]}', "ROOT: has no split train, only test; point data.path at the"),
        ("dataset_dict.json", b"{}", "ROOT: has no split train, only none"),
        (
            "dataset_dict.json",
            b'{"splits": ["train", "test"]}',
            "ROOT/test/dataset_info.json: No such file or directory",
        ),
        ("train/state.json", b"{}", "ROOT/train/state.json: names no data files; save the set again"),
        ("train/state.json", b'{"_data_files": [1]}', "ROOT/train/state.json: names no data files"),
        (
            "train/state.json",
            b'{"_data_files": [{"filename": "../../x.arrow"}]}',
            "ROOT/train/state.json: '../../x.arrow' is no file of this folder",
        ),
        (
            "train/state.json",
            b'{"_data_files": [{"filename": "x.arrow"}]}',
            "ROOT/train/x.arrow: is missing, and state.json names it; copy the set again",
        ),
        ("train/state.json", b'{"_data_files": []}', "ROOT/train: holds no records"),
        (
            "train/state.json",
            b'{"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}',
            "ROOT/train: is a selection of rows of a larger set; call flatten_indices() and save the set again",
        ),
        (ARROW, b"", f"ROOT/{ARROW}: is no Arrow stream, or a damaged one ("),
        (ARROW, b"<html>" * 90, f"ROOT/{ARROW}: is cut short, or no Arrow stream; copy it again"),
        (ARROW, lambda data: data[:-8], f"ROOT/{ARROW}: is cut short"),
        (ARROW, lambda data: data[: len(data) // 2], f"ROOT/{ARROW}: is cut short"),
        (ARROW, lambda data: flip(data, 6), f"ROOT/{ARROW}: is no Arrow stream, or a damaged one ("),
    ],
)
def test_a_damaged_set_is_refused(write, file, content, message):
    root = write("train", [1, 2, 3], [0, 1, 2])
    old = (root / file).read_bytes()
    (root / file).write_bytes(content if isinstance(content, bytes) else content(old))
    assert complaint(root).startswith(message)


def test_a_damaged_offset_is_found_before_it_is_followed(write):
    root = write("train", [1, 2], [0, 1])
    data = (root / ARROW).read_bytes()
    end_of_first = len(picture(1)).to_bytes(4, "little")
    place = data.index(bytes(4) + end_of_first) + 4
    (root / ARROW).write_bytes(data[:place] + (1 << 30).to_bytes(4, "little") + data[place + 4 :])
    assert complaint(root).startswith(f"ROOT/{ARROW}: is no Arrow stream, or a damaged one (")


def test_splits_of_other_classes_and_folders_of_others_are_refused(write, tmp_path):
    write("train", [1, 2], [0, 1])
    other = {"image": {"_type": "Image"}, "label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}
    assert complaint(write("test", [1], [0], other)).startswith("ROOT: train and test differ in the names or the order")
    assert complaint(tmp_path).startswith("ROOT: no dataset_dict.json or state.json in it; data.path needs a folder of")


@pytest.mark.peer
def test_what_the_library_itself_saves_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    datasets.disable_progress_bars()
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["a", "b"])})
    features["coarse_label"] = datasets.ClassLabel(names=["x"])
    noise = np.random.default_rng(0).integers(0, 256, (25, 4, 6, 3), np.uint8)
    columns = {"img": list(map(Image.fromarray, noise)), "fine_label": [i % 2 for i in range(25)]}
    whole = datasets.Dataset.from_dict(columns | {"coarse_label": [0] * 25}, features=features)
    parts = datasets.DatasetDict({"train": whole.shuffle(seed=0), "test": whole.select([20, 3])})
    parts.save_to_disk(str(tmp_path / "set"), num_shards={"train": 3, "test": 1})
    train, evaluation = open_huggingface(tmp_path / "set")
    assert evaluation is not None
    for source, split in ((train, parts["train"]), (evaluation, parts["test"])):
        read = source.read(np.arange(len(source)), PREPROCESSING, None)
        assert read.labels.tolist() == split["fine_label"][:]
        assert np.array_equal(read.images, np.stack([np.asarray(image) for image in split["img"][:]]))
