"""Tar shards: as WebDataset writes them, as people tar folders, and as neither should be."""

import copy
import gc
import io
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcls.data.preprocessing import Preprocessing
from pcls.data.sources import tar_index
from pcls.data.sources.folder import shown
from pcls.data.sources.webdataset import open_webdataset
from pcls.errors import UserError

PREPROCESSING = Preprocessing(4, 6, 3, (0.0,) * 3, (1.0,) * 3)


def picture(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (value,) * 3).save(stream, "PNG")
    return stream.getvalue()


def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(content)
    return info, io.BytesIO(content)


@pytest.fixture
def shards(tmp_path):
    """Writes shards: `shards({"train-0.tar": {"1.png": 10, "1.cls": b"0"}})`; a number is a picture of that grey."""

    def write(files: dict[str, dict[str, int | bytes | list]], **options) -> Path:
        root = tmp_path / "set"
        for name, members in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(root / name, "w", **options) as tar:
                for path, content in members.items():
                    # A list: the kind of the member.
                    kind = content[0] if isinstance(content, list) else tarfile.REGTYPE
                    data = picture(content) if isinstance(content, int) else content if kind == tarfile.REGTYPE else b""
                    tar.addfile(*member(path, data, kind))
        return root

    return write


@pytest.fixture
def opened(tmp_path):
    return lambda root: open_webdataset(root, tmp_path / "cache")


def pixels(source, record: int) -> int:
    read = source.read(np.array([record]), PREPROCESSING, None)
    assert read.decoded.all(), source.failure(record, PREPROCESSING)
    return int(read.images[0, 0, 0, 0])


NUMBERED = {"train-0.tar": {"b.png": 10, "b.cls": b"1", "a.png": 20, "a.cls": b" 0\n"}, "train-1.tar": {}}
NUMBERED["train-1.tar"] = {"b.png": 30, "b.cls": b"2", "b.json": b"{}", "readme.txt": b"x"}


def test_samples_are_images_with_a_number_beside_them(shards, opened):
    root = shards(NUMBERED | {"val-0.tar": {"x.jpg": picture(40), "x.cls": b"1"}})
    train, evaluation = opened(root)
    assert train.class_names == evaluation.class_names == ("0", "1", "2")
    assert (train.labels.tolist(), evaluation.labels.tolist()) == ([1, 0, 2], [1])
    assert train.labels.dtype == np.int32
    assert [pixels(train, record) for record in range(3)] == [10, 20, 30]
    assert [stored.label for stored in train.__getitems__([2, 0])] == [2, 1]
    assert train.name(2) == str(root / "train-1.tar/b.png")
    assert pixels(evaluation, 0) == 40


def test_a_classes_file_names_the_numbers(shards, opened):
    root = shards({"0.tar": {"1.png": 1, "1.cls": b"2"}})
    (root / "classes.txt").write_text("cat\ndog\nowl\nelk\n")
    assert opened(root)[0].class_names == ("cat", "dog", "owl", "elk")
    (root / "classes.txt").unlink()
    (root / "classes.json").write_text('["a", "b", "c"]')
    # One tar by itself has the same file beside it.
    source, _ = opened(root / "0.tar")
    assert (source.class_names, source.labels.tolist()) == (("a", "b", "c"), [2])


def test_json_may_say_the_number_or_the_name(shards, opened):
    numbers, _ = opened(shards({"n.tar": {"1.png": 1, "1.json": b'{"label": 3, "class": "x"}'}}))
    assert (numbers.class_names, numbers.labels.tolist()) == (("0", "1", "2", "3"), [3])
    samples = {"1.png": 1, "1.json": b'{"class": "owl"}', "2.png": 2, "2.json": b'{"label": "cat"}', "all.json": b"[]"}
    root = shards({"t/train/0.tar": samples, "t/test/0.tar": {"1.png": 3, "1.json": b'{"label": "owl"}'}}) / "t"
    train, evaluation = opened(root)
    assert (train.class_names, train.labels.tolist()) == (("cat", "owl"), [1, 0])
    # Of a split with fewer classes the labels mean the same.
    assert (evaluation.class_names, evaluation.labels.tolist()) == (("cat", "owl"), [1])
    (root / "classes.txt").write_text("owl\nelk\ncat")
    assert opened(root)[0].labels.tolist() == [0, 2]


@pytest.mark.parametrize("prefix", ["", "./", "photos/", "./photos/2024/"])
def test_without_labels_the_folder_is_the_class_below_what_all_share(shards, opened, prefix):
    names = ["dog/1.PNG", "cat/deep/1.png", "cat/1.2019.png", "cat/1.2020.png", "cat/.hidden.png", "cat/list.txt"]
    source, _ = opened(shards({"photos.tar": {prefix + name: value for value, name in enumerate(names)}}))
    assert (source.class_names, source.labels.tolist()) == (("cat", "dog"), [1, 0, 0, 0])
    assert source.name(2).endswith("photos.tar/" + (prefix + names[2]).removeprefix("./"))
    assert pixels(source, 3) == 3


def test_names_of_shards_say_the_split_wherever_it_stands(shards, opened):
    sample = {"1.png": 1, "1.cls": b"0"}
    names = ["imagenet-train-00.tar", "train.tar", "set_train_{1}.tar", "x-validation-0.tar", "test-0.tar"]
    root = shards({name: sample for name in names})
    train, evaluation = opened(root)
    assert (len(train), evaluation.name(0)) == (3, str(root / "x-validation-0.tar/1.png"))
    (root / "constraint.tar").write_bytes((root / "train.tar").read_bytes())
    assert "its name says no split" in complaint(root)


@pytest.mark.parametrize("name", ["n" * 300 + "/ä 猫\n.png", "\udcff/1.png"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_odd_names_survive(shards, opened, name, form):
    root = shards({"0.tar": {name: 7, "b/1.png": 8}}, format=form, errors="surrogateescape")
    source, _ = opened(root)
    assert source.name(0) == shown(f"{root}/0.tar/{name}")
    assert [pixels(source, record) for record in (0, 1)] == [7, 8]


def test_an_index_is_kept_and_used_until_a_shard_changes(shards, opened, monkeypatch):
    root = shards(NUMBERED)
    scanned = []
    scan = tar_index._scan
    monkeypatch.setattr(tar_index, "_scan", lambda shard: scanned.append(shard.name) or scan(shard))
    first, again = opened(root)[0], opened(root)[0]
    assert scanned == ["train-0.tar", "train-1.tar"]
    assert again.labels.tolist() == first.labels.tolist()
    assert [again.name(record) for record in range(3)] == [first.name(record) for record in range(3)]
    assert [pixels(again, record) for record in range(3)] == [10, 20, 30]
    os.utime(root / "train-1.tar", (1, 1))
    opened(root)
    assert len(scanned) == 4


@pytest.mark.parametrize("file", ["samples.npy", "names.npy", "index.json"])
@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "gone", "garbage"])
def test_a_damaged_index_is_made_again(shards, opened, tmp_path, file, damage):
    root = shards(NUMBERED)
    opened(root)
    (path,) = (tmp_path / "cache").rglob(file)
    good = path.read_bytes()
    flipped = good[:-2] + bytes([good[-2] ^ 1]) + good[-1:]
    bad = {"bit": flipped, "cut": good[: len(good) // 2], "empty": b"", "garbage": b"\x80\x04N."}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(bad[damage])
    source, _ = opened(root)
    assert (source.labels.tolist(), pixels(source, 2)) == ([1, 0, 2], 30)
    assert path.read_bytes() == good
    assert [entry.suffix for entry in sorted((tmp_path / "cache" / "webdataset").iterdir())] == ["", ".lock"]


def test_a_cache_that_cannot_be_written_is_named(shards, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/cache/webdataset: cannot be written"):
        open_webdataset(shards(NUMBERED), tmp_path / "file" / "cache")


def test_the_cache_is_where_the_environment_says(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("PCLS_CACHE", str(tmp_path / "elsewhere"))
    open_webdataset(shards(NUMBERED))
    assert len(list((tmp_path / "elsewhere").rglob("samples.npy"))) == 1


def test_threads_read_side_by_side_and_a_copy_opens_its_own_files(shards, opened):
    root = shards({f"train-{s}.tar": {f"{i}/{s}.png": 10 * s + i for i in range(5)} for s in range(4)})
    source, _ = opened(root)
    expected = [int(name.split("/")[-2]) + 10 * int(name[-5]) for name in map(source.name, range(20))]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(lambda record: pixels(source, record), range(20))) == expected
    # What pickling does, without the bytes.
    other = copy.copy(source.store)
    assert other.__getitems__([7])[0].image == source.__getitems__([7])[0].image


def test_open_files_are_few_and_closed_in_the_end(shards, opened, monkeypatch):
    monkeypatch.setattr("pcls.data.sources.webdataset.MAX_OPEN_SHARDS", 2)
    root = shards({f"train-{s}.tar": {"a/1.png": s, "b/1.png": s} for s in range(6)})
    source, _ = opened(root)
    links = Path("/proc/self/fd")

    def held() -> int:
        return sum(str(root) in str(link.readlink()) for link in links.iterdir() if link.is_symlink())

    assert [pixels(source, 2 * s) for s in range(6)] == list(range(6))
    assert held() == 2
    del source
    gc.collect()
    assert held() == 0


def test_a_shard_that_shrinks_or_goes_after_indexing_is_named_by_its_records(shards, opened):
    root = shards({"0.tar": {"a/1.png": 1}, "1.tar": {"b/1.png": 1}})
    source, _ = opened(root)
    os.truncate(root / "0.tar", 530)
    (root / "1.tar").unlink()
    assert source.failure(0, PREPROCESSING) == "cannot be read (its shard was cut short after it was indexed)"
    assert source.failure(1, PREPROCESSING) == "cannot be read (No such file or directory)"
    assert source.read(np.arange(2), PREPROCESSING, None).decoded.tolist() == [False, False]


def complaint(root: Path) -> str:
    with pytest.raises(UserError) as raised:
        open_webdataset(root, root.parent / "cache")
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value).replace(str(root), "ROOT")


LINK, HARD, FIFO, DEVICE = [tarfile.SYMTYPE], [tarfile.LNKTYPE], [tarfile.FIFOTYPE], [tarfile.CHRTYPE]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../x.png": 1}, "member '../x.png' points out of the shard; write it again without such names"),
        ({"a/../../x.txt": b""}, "member 'a/../../x.txt' points out of the shard"),
        ({"/etc/x.png": 1}, "member '/etc/x.png' points out of the shard"),
        ({"a/1.png": 1, "a/2.png": LINK}, "member 'a/2.png' is a link; write the shard again with plain files only"),
        ({"a/2.png": HARD}, "member 'a/2.png' is a link"),
        ({"a/2.png": FIFO}, "member 'a/2.png' is no plain file"),
        ({"a/2.png": DEVICE}, "member 'a/2.png' is no plain file"),
        ({"1.png": 1, "1.cls": b"0", "2.png": 2}, "'2.png' has no label; 2.cls or .json is needed beside it"),
        ({"1.png": 1}, "'1.png' has no label; 1.cls beside it is needed, or a folder for each class"),
        ({"1.png": 1, "1.cls": b"cat"}, "'1.cls' is 'cat'; the number of a class, 0 or more, is needed"),
        ({"1.png": 1, "1.cls": b"-1"}, "'1.cls' is '-1'; the number of a class, 0 or more, is needed"),
        ({"1.png": 1, "1.cls": b""}, "'1.cls' is ''; the number of a class"),
        ({"1.png": 1, "1.cls": b"9" * 5000}, "'1.cls' is '99999999999999999999'; the number of a class"),
        ({"1.png": 1, "1.cls": b"16777216"}, "'1.cls' has the label 16777216; 0 to 16,777,215 is possible"),
        ({"1.png": 1, "1.json": b"{"}, '\'1.json\' says no label; a JSON object with "label" or "class" is needed'),
        ({"1.png": 1, "1.json": b"[" * 5000}, "'1.json' says no label"),
        ({"1.png": 1, "1.json": b'{"labels": 1}'}, "'1.json' says no label"),
        ({"1.png": 1, "1.json": b'{"label": 1.5}'}, "'1.json' has the label 1.5; a number or a name is needed"),
        ({"1.png": 1, "1.json": b'{"label": true}'}, "'1.json' has the label True; a number or a name is needed"),
        ({"1.cls": b"0"}, "'1.cls' has no image beside it; .jpg, .jpeg, .png, .webp are known"),
        ({"1.png": 1, "1.JPG": 1, "1.cls": b"0"}, "'1.png' and '1.JPG' are of one sample, which can have one of them"),
        (
            {"1.png": 1, "1.json": b'{"label": 1}', "2.png": 1, "2.json": b'{"label": "a"}'},
            "'1.png' has a number for a label, and '2.png' a name",
        ),
        ({"readme.txt": b""}, "no samples, here or in the shards beside it; a sample is an image (.jpg, .jpeg, "),
        ({}, "no samples, here or in the shards beside it"),
        ({"a/1.png": 1, "a/b/1.png": 1}, "images lie in 'a' and in folders below it; one folder a class is needed"),
        ({"x/train/a/1.png": 1, "x/val/a/1.png": 1}, "holds the splits train, val; make a tar of each"),
    ],
)
def test_a_shard_that_is_no_set_is_refused(shards, members, message):
    assert complaint(shards({"0.tar": members})).startswith("ROOT/0.tar: " + message)


def test_a_member_that_is_there_twice_is_refused(shards):
    root = shards({"0.tar": {"a/1.png": 1}})
    with tarfile.open(root / "0.tar", "a") as tar:
        tar.addfile(*member("a/1.png", picture(2)))
    assert complaint(root) == "ROOT/0.tar: 'a/1.png' is in it twice; write the shard again with one of them"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a.tar": {"1.png": 1, "1.cls": b"0"}, "b.tar": {"x/1.png": 1}},
            "ROOT/a.tar: labels are numbers, and in b.tar",
        ),
        ({"val-0.tar": {}}, "ROOT: no shard has train in its name, as in train-0001.tar, and val-0.tar has another"),
        (
            {"train-0.tar": {"1.png": 1, "1.cls": b"0"}, "val-0.tar": {"x/1.png": 1}},
            "ROOT/val-0.tar: labels are names, and labels are numbers in ROOT/train-0.tar; one kind is needed",
        ),
        (
            {"train-0.tar": {"x/1.png": 1, "y/1.png": 1}, "val-0.tar": {"x/1.png": 1, "z/1.png": 1}},
            "ROOT/val-0.tar: class 'z' is none of the training shards; correct the label or add the class",
        ),
        ({"train/0.tar": {"x/1.png": 1}, "val/no": {}}, "ROOT/val: no .tar files in it; data.path needs the folder of"),
        ({"0.tar.gz": {}}, "ROOT/0.tar.gz: is compressed, and can't be read at random; unpack it to a plain .tar"),
        ({"0.tar": {"x/1.png": 1}, "1.tgz": {}}, "ROOT/1.tgz: is compressed"),
    ],
)
def test_shards_that_do_not_go_together_are_refused(shards, files, message):
    assert complaint(shards(files)).startswith(message)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes.txt", "cat\ncat", "names the class 'cat' twice; each needs a name of its own"),
        ("classes.txt", "", "is no list of class names, all of them text; they are needed in label order"),
        ("classes.txt", "cat\n\ndog", "is no list of class names"),
        ("classes.json", '{"cat": 0}', "is no list of class names"),
        ("classes.json", '["cat", 1]', "is no list of class names"),
        ("classes.json", "[", "cannot be read ("),
        ("classes.txt", "cat\ndog", "'b.png' has the label 2, and the classes file names 2 classes: 0 to 1"),
    ],
)
def test_a_classes_file_that_names_no_classes_is_refused(shards, name, text, message):
    root = shards(NUMBERED)
    (root / name).write_text(text)
    assert message in complaint(root)


def test_two_classes_files_are_refused(shards):
    root = shards(NUMBERED)
    (root / "classes.txt").write_text("a\nb\nc")
    (root / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    assert complaint(root) == "ROOT/classes.txt and classes.json both name classes; remove one"


def test_a_name_that_the_classes_file_lacks_is_refused(shards):
    root = shards({"0.tar": {"cat/1.png": 1, "dog/1.png": 1}})
    (root / "classes.txt").write_text("cat\nowl")
    assert complaint(root) == "ROOT/0.tar: class 'dog' is none of the classes file; correct the label or add the class"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:700], "is no tar file, or a damaged one (unexpected end of data); copy or write it again"),
        (lambda data: data[:1300], "is damaged at byte 1,024: no header of a member there; copy or write it again"),
        (lambda data: data[:1100] + b"!" + data[1101:], "is damaged at byte 1,024: no header of a member there"),
        (lambda data: b"<html>" * 200, "is no tar file, or a damaged one"),
        (lambda data: b"", "is no tar file, or a damaged one (empty file)"),
        (lambda data: b"\x1f\x8b" + data, "is compressed, and can't be read at random"),
        (lambda data: data[:124] + b"\x80" + b"\x7f" * 11 + data[136:], "is no tar file, or a damaged one"),
    ],
)
def test_a_damaged_shard_is_refused(shards, damage, message):
    root = shards({"0.tar": {"a/1.png": 1, "b/1.png": 1}})
    data = (root / "0.tar").read_bytes()
    (root / "0.tar").write_bytes(damage(data))
    assert complaint(root).startswith("ROOT/0.tar: " + message)


def test_a_tar_without_the_zeros_at_its_end_is_whole(shards, opened):
    root = shards({"0.tar": {"a/1.png": 1, "b/1.png": 2}})
    os.truncate(root / "0.tar", 2048)
    assert pixels(opened(root)[0], 1) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no", "ROOT/no: there is no such folder of .tar shards, nor such a .tar file"),
        ("a.zip", "ROOT/a.zip: is no .tar file; data.path needs the folder of the shards, or one .tar"),
        (".", "ROOT: no .tar files in it"),
    ],
)
def test_a_path_without_shards_is_refused(tmp_path, name, message):
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(UserError) as raised:
        open_webdataset(tmp_path / name)
    assert str(raised.value).replace(str(tmp_path), "ROOT").startswith(message)
