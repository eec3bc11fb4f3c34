"""Manifests: what they say, and every way in which people get them wrong."""

import copy
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pcls.data.preprocessing import Preprocessing
from pcls.data.sources import manifest
from pcls.data.sources.manifest import column_of, open_manifest
from pcls.errors import UserError

PREPROCESSING = Preprocessing(4, 6, 3, (0.0,) * 3, (1.0,) * 3)
TWO = "path,label\na.jpg,cat\nb.jpg,dog\n"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PCLS_CACHE", str(folder))
    return folder


@pytest.fixture(params=["memory", "mapped"])
def either_way(request, monkeypatch):
    """A short manifest is held in memory; a long one is mapped from the cache."""
    if request.param == "mapped":
        monkeypatch.setattr(manifest, "MAPPED_FROM", 0)
    return request.param


def write(path, content):
    """Text, bytes, or the columns of a Parquet file."""
    if isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def complaint(path, *args) -> str:
    with pytest.raises(UserError) as raised:
        open_manifest(path, *args)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value).replace(str(path.parent), "ROOT")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", "path,label\nb/2.png,dog\na/1.png,cat\n"),
        ("m.CSV", "\ufeffnumber,label,path\r\n1,dog,b/2.png\r\n2,cat,a/1.png"),
        ("m.tsv", "path\tlabel\nb/2.png\tdog\na/1.png\tcat\n"),
        ("m.parquet", {"path": ["b/2.png", "a/1.png"], "label": ["dog", "cat"], "x": [None, None]}),
        ("m.pq", {"path": pa.array(["b/2.png", "a/1.png"]).dictionary_encode(), "label": ["dog", "cat"]}),
        ("m.parquet", {"path": pa.array(["b/2.png", "a/1.png"], pa.large_string()), "label": ["dog", "cat"]}),
    ],
)
def test_every_form_gives_the_same_records(write_images, either_way, name, content):
    root = write_images({"a/1.png": 1, "b/2.png": 2})
    source, evaluation = open_manifest(write(root / name, content))
    assert evaluation is None
    assert source.groups is None
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [1, 0]
    assert source.labels.dtype == np.int32
    assert source.name(0) == f"{root}/b/2.png"
    read = source.read(np.array([1, 0]), PREPROCESSING, None)
    assert read.images[:, 0, 0, 0].tolist() == [1, 2]
    assert read.decoded.all()


def test_names_with_commas_newlines_quotes_and_any_script_are_kept(write_images):
    root = write_images({"a, b.png": 1, "a\nb.png": 2, 'a "b".png': 3, "ü 猫.png": 4})
    rows = '"a, b.png",x\n"a\nb.png",x\n"a ""b"".png",y\nü 猫.png,"y"\n'
    source, _ = open_manifest(write(root / "m.csv", "path,label\n" + rows))
    assert source.read(np.arange(4), PREPROCESSING, None).images[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    assert source.name(1) == f"{root}/a\\nb.png"


@pytest.mark.parametrize(
    ("labels", "class_names"),
    [
        (["10", "9", "2"], ("2", "9", "10")),
        (["dog10", "dog9", "Dog"], ("Dog", "dog10", "dog9")),
        (["01", "10", "02"], ("01", "02", "10")),
        # Whether these are one class is for the doctor to ask.
        (["Cat", "cat", "CAT"], ("CAT", "Cat", "cat")),
        (["NA", "null", "nan"], ("NA", "nan", "null")),
    ],
)
def test_numbers_are_ordered_by_value_and_names_lexically(tmp_path, labels, class_names):
    rows = "".join(f"{i}.jpg,{label}\n" for i, label in enumerate(labels))
    source, _ = open_manifest(write(tmp_path / "m.csv", "path,label\n" + rows))
    assert source.class_names == class_names
    assert [class_names[label] for label in source.labels] == labels


def test_numbers_of_a_parquet_column_are_classes_by_value(tmp_path):
    content = {"path": ["a", "b", "c"], "label": pa.array([300, 7, 20], pa.int16())}
    source, _ = open_manifest(write(tmp_path / "m.parquet", content))
    assert (source.class_names, source.labels.tolist()) == (("7", "20", "300"), [2, 0, 1])


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev"])
def test_validation_goes_before_test_and_the_rest_is_left_out(tmp_path, either_way, name):
    rows = ["1,x,train", "2,y,test", f"3,y,{name}", "4,y,train", f"5,x,{name}", "6,only here,test"]
    path = write(tmp_path / "m.csv", "\n".join(["path,label,split", *rows]))
    train, evaluation = open_manifest(path)
    assert (list(train.store.files), list(evaluation.store.files)) == (["1", "4"], ["3", "5"])
    assert (train.labels.tolist(), evaluation.labels.tolist()) == ([0, 1], [1, 0])
    assert train.class_names == evaluation.class_names == ("x", "y")


def test_test_is_evaluated_on_where_there_is_no_validation(tmp_path):
    path = write(tmp_path / "m.csv", "path,label,split\n1,x,train\n2,y,train\n3,y,test\n")
    assert list(open_manifest(path)[1].store.files) == ["3"]
    path = write(tmp_path / "m.csv", "path,label,split\n1,x,train\n2,y,train\n")
    assert open_manifest(path)[1] is None


@pytest.mark.parametrize(
    "groups", [["p7", "p9", "p7", "p8"], pa.array([7, 9, 7, 1 << 40]), pa.array([-1, 0, -1, 5], pa.int8())]
)
def test_groups_are_numbers_that_both_parts_share(tmp_path, either_way, groups):
    content = {"path": list("abcd"), "label": list("xyyx"), "group": groups, "split": ["train", "train", "val", "val"]}
    train, evaluation = open_manifest(write(tmp_path / "m.parquet", content))
    assert (train.groups.tolist(), evaluation.groups.tolist()) == ([0, 1], [0, 2])
    assert train.groups.dtype == np.int32


def test_paths_are_normal_and_may_be_absolute_or_under_another_root(write_images):
    root = write_images({"data/a/1.png": 1, "2.png": 2})
    lines = f"path,label\n./a//b/../1.png,x\n{root}/2.png,y\n"
    source, _ = open_manifest(write(root / "m.csv", lines), root / "data")
    assert list(source.store.files) == ["a/1.png", f"{root}/2.png"]
    assert source.read(np.arange(2), PREPROCESSING, None).images[:, 0, 0, 0].tolist() == [1, 2]


def test_a_source_is_the_same_in_another_process(tmp_path, either_way):
    source, _ = open_manifest(write(tmp_path / "m.csv", TWO))
    there = copy.deepcopy(source)
    assert [there.name(i) for i in range(2)] == [source.name(i) for i in range(2)]
    assert there.labels.tolist() == [0, 1]


def test_a_long_manifest_is_read_once_until_it_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "MAPPED_FROM", 0)
    path = write(tmp_path / "m.csv", TWO)
    first, _ = open_manifest(path)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "_write_index", lambda *args: pytest.fail("was read again"))
        again, _ = open_manifest(path)
    assert (list(again.store.files), again.class_names) == (list(first.store.files), first.class_names)
    write(path, TWO + "c.jpg,emu\n")
    assert len(open_manifest(path)[0]) == 3


def test_a_damaged_index_is_named(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(manifest, "MAPPED_FROM", 0)
    path = write(tmp_path / "m.csv", TWO)
    open_manifest(path)
    (text,) = cache.rglob("train.text")
    text.write_bytes(b"x")
    assert complaint(path).startswith(f"{text.parent}: is damaged (")


def test_a_refused_manifest_leaves_nothing_in_the_cache(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(manifest, "MAPPED_FROM", 0)
    complaint(write(tmp_path / "m.csv", TWO + "a.jpg,dog\n"))
    assert [file.suffix for file in cache.rglob("*") if file.is_file()] == [".lock"]


REPEATED = "row 4: path 'a.jpg' stands in row 2 too, with"
PARQUET = {"path": ["a", "b"], "label": ["x", "y"]}

BAD = {
    "no path column": (
        "m.csv",
        "file,label\na,b\n",
        "m.csv: no column 'path'; path and label are needed, and it has: file, label",
    ),
    "no label column": (
        "m.csv",
        "path;label\na;b\n",
        "m.csv: no column 'path'; path and label are needed, and it has: path;label",
    ),
    "no label in Parquet": (
        "m.parquet",
        {"path": ["a"]},
        "m.parquet: no column 'label'; path and label are needed, and it",
    ),
    "a column twice": ("m.csv", "path,label,label\na,b,c\n", "m.csv: two columns 'label'; remove or rename one"),
    "empty file": ("m.csv", "", "m.csv: no column 'path'; path and label are needed, and it has: none"),
    "header alone": ("m.csv", "path,label\n", "m.csv: holds no rows; one row an image is needed"),
    "no rows in Parquet": (
        "m.parquet",
        {"path": pa.array([], "string"), "label": pa.array([], "string")},
        "m.parquet: holds no",
    ),
    "empty label": ("m.csv", TWO + "c.jpg,\n", "m.csv, row 4: label is empty"),
    "empty label beside several": (
        "m.csv",
        "path,label\na,3;7\nb,\n",
        "m.csv, row 3: label is empty; others hold several, with ; between: data.labels=several lets",
    ),
    "blank label": ("m.csv", "path,label\na, \n", "m.csv, row 2: label is empty"),
    "null label": ("m.parquet", {"path": ["a", "b"], "label": ["x", None]}, "m.parquet, row 2: label is empty"),
    "empty path": ("m.csv", TWO + ",dog\n", "m.csv, row 4: path is empty"),
    "null path": ("m.parquet", {"path": ["a", None], "label": ["x", "y"]}, "m.parquet, row 2: path is empty"),
    "empty group": ("m.csv", "path,label,group\na,b,1\nc,d,\n", "m.csv, row 3: group is empty"),
    "a name among numbers": (
        "m.csv",
        "path,label\na,0\nb,1\nc,x\n",
        "m.csv, row 4: label 'x' is no whole number, and others are, as '0'; use one kind in all rows",
    ),
    "a fraction among numbers": (
        "m.csv",
        "path,label\na,0\nb,1\nc,1.5\n",
        "m.csv, row 4: label '1.5' is no whole number",
    ),
    "a negative number": (
        "m.parquet",
        {"path": ["a", "b", "c"], "label": [0, -1, 1]},
        "m.parquet, row 2: label '-1' is no whole",
    ),
    "a number among names": (
        "m.csv",
        "path,label\na,x\nb,1\nc,y\n",
        "m.csv, row 3: label '1' is a number, and others are names, as 'x'; use one kind in all rows",
    ),
    "one number in two forms": (
        "m.csv",
        "path,label\na,1\nb,01\nc,2\n",
        "m.csv, row 3: label '01' is '1' in other rows; write one form",
    ),
    "floats": (
        "m.parquet",
        {"path": ["a"], "label": [1.0]},
        "m.parquet: the column 'label' is of type double; text or whole numbers are needed",
    ),
    "number as path": (
        "m.parquet",
        {"path": [1], "label": ["x"]},
        "m.parquet: the column 'path' is of type int64; text is needed",
    ),
    "one class": (
        "m.csv",
        "path,label\na,cat\nb,cat\n",
        "m.csv: only one class, 'cat'; a classifier needs two or more",
    ),
    "same path, same label": (
        "m.csv",
        TWO + "a.jpg,cat\n",
        f"m.csv, {REPEATED} the same label 'cat'; each image needs one row",
    ),
    "same path, other label": (
        "m.csv",
        TWO + "a.jpg,dog\n",
        f"m.csv, {REPEATED} the labels 'cat' and 'dog'; each image",
    ),
    "same path in another form": ("m.csv", TWO + "./a.jpg,cat\n", f"m.csv, {REPEATED} the same label 'cat'"),
    "same path in two splits": (
        "m.csv",
        "path,label,split\na,x,train\nb,y,train\na,x,val\n",
        "m.csv, row 4: path 'a' stands in row 2 too, with the same label 'x'",
    ),
    "many repeats": (
        "m.csv",
        TWO + "b.jpg,dog\na.jpg,cat\na.jpg,emu\n",
        "m.csv, row 6: path 'a.jpg' stands in row 2 too, with the labels 'cat' and 'emu' (2 paths are repeated); each",
    ),
    "out of the folder": (
        "m.csv",
        TWO + "x/../../c.jpg,dog\n",
        "m.csv, row 4: path 'x/../../c.jpg' leads out of the folder",
    ),
    "a URL": ("m.csv", TWO + "gs://b/c.jpg,dog\n", "m.csv, row 4: path is a URL; open the manifest itself by a URL"),
    "unknown split": (
        "m.csv",
        "path,label,split\na,x,train\nb,y,eval\n",
        "m.csv, row 3: split is 'eval'; allowed: train, validation, val, valid, dev, test",
    ),
    "no training rows": ("m.csv", "path,label,split\na,x,val\n", "m.csv: no row is of the split train"),
    "a class without training rows": (
        "m.csv",
        "path,label,split\na,x,train\nb,y,train\nc,z,val\n",
        "m.csv: class 'z' has rows of the split validation and none of train",
    ),
    "latin-1": ("m.csv", b"path,label\na,x\nb\xe4r.jpg,y\n", "m.csv, row 3: is not UTF-8 text; save the file as UTF-8"),
    "latin-1 in the header": ("m.csv", b"path,label,gr\xf6\xdfe\na,x,1\n", "m.csv, row 1: is not UTF-8 text; save the"),
    "UTF-16": ("m.csv", TWO.encode("utf-16"), "m.csv, row 1: is not UTF-8 text"),
    "not UTF-8 in Parquet": (
        "m.parquet",
        {"path": pa.array([b"\xff", b"b"]).view(pa.string()), "label": ["x", "y"]},
        "m.parquet, row 1: path is not UTF-8 text, here or in the next 2 rows",
    ),
    "a cell too many": ("m.csv", TWO + "c,d,e\n", "m.csv, row 4: 3 columns instead of 2"),
    "a cell too few": ("m.csv", "path,label\na\nb,x\n", "m.csv, row 2: 1 columns instead of 2"),
    "an open quote": ("m.csv", 'path,label\n"a,x\nb,y\n', "m.csv, row 2: 1 columns instead of 2"),
    "no Parquet": (
        "m.parquet",
        b"<html>404 not found</html>",
        "m.parquet: cannot be read (Parquet magic bytes not found",
    ),
    "empty Parquet": ("m.parquet", b"", "m.parquet: cannot be read (Parquet file size is 0 bytes)"),
    "another kind of file": ("m.json", "{}", "m.json: a manifest's name ends with .csv, .tsv, .tab, .parquet, .pq"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_manifest_that_is_wrong_is_refused_with_its_row(tmp_path, case):
    name, content, message = BAD[case]
    assert complaint(write(tmp_path / name, content)).startswith(f"ROOT/{message}")


def test_a_damaged_parquet_page_is_one_line(tmp_path):
    path = tmp_path / "m.parquet"
    table = pa.table({"path": [f"{i}.jpg" for i in range(999)], "label": ["x", "y", "z"] * 333})
    pq.write_table(table, path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[20:60] = bytes(40)
    path.write_bytes(data)
    assert complaint(path).startswith("ROOT/m.parquet: cannot be read (")


def test_missing_files_and_folders_are_named(tmp_path):
    assert complaint(tmp_path / "m.csv").startswith("ROOT/m.csv: there is no such file; ")
    (tmp_path / "d.csv").mkdir()
    assert complaint(tmp_path / "d.csv").startswith("ROOT/d.csv: is no regular file; ")
    path = write(tmp_path / "m.csv", TWO)
    assert complaint(path, tmp_path / "no").startswith("ROOT/no: there is no such folder; ")


def test_links_that_lead_out_are_unreadable_and_absolute_paths_go_anywhere(write_images):
    root = write_images({"in/1.png": 1, "out/2.png": 2})
    (root / "in" / "link.png").symlink_to(root / "out" / "2.png")
    (root / "in" / "way").symlink_to(root / "out")
    (root / "in" / "same.png").symlink_to("1.png")
    rows = f"1.png,x\nsame.png,y\nlink.png,x\nway/2.png,y\n{root}/in/link.png,y\nz\0.png,y\n"
    source, _ = open_manifest(write(root / "in" / "m.csv", "path,label\n" + rows))
    assert source.read(np.arange(6), PREPROCESSING, None).decoded.tolist() == [True, True, False, False, True, False]
    for record in (2, 3):
        assert source.failure(record, PREPROCESSING) == "cannot be read (is a link that leads out of the folder)"
    assert source.failure(5, PREPROCESSING).startswith("cannot be read (")


def test_two_hundred_thousand_rows_take_few_bytes_each(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "MAPPED_FROM", 0)
    numbers = np.arange(200_000)
    path = write(tmp_path / "m.parquet", {"path": [f"{i:021d}.jpg" for i in numbers], "label": numbers % 7})
    tracemalloc.start()
    source, _ = open_manifest(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source.store.files[199_999] == "000000000000000199999.jpg"
    assert source.labels[-3:].tolist() == [(199_997 + i) % 7 for i in range(3)]
    # 8 bytes a row for its hash; the rest is one batch, whatever the number of rows.
    assert peak < 200_000 * 10 + (12 << 20)


def test_any_column_can_be_had_for_records_by_their_names(tmp_path):
    (tmp_path / "set.csv").write_text(
        'path,label,split,year\n./a.png,x,train,1999\n"b,c.png",y,train,\n/d.png,x,test,007\n'
    )
    train, test = open_manifest(tmp_path / "set.csv")
    names = [train.name(1), train.name(0), test.name(0)]
    assert column_of(tmp_path / "set.csv", "year", names) == ["", "1999", "007"]
    assert column_of(tmp_path / "set.csv", "label", names) == ["y", "x", "x"]
    assert column_of(tmp_path / "set.csv", "path", names) == ["b,c.png", "./a.png", "/d.png"]


@pytest.mark.parametrize("values", [[1.5, None], [True, None], [["a", "b"], None]])
def test_a_column_of_a_parquet_file_may_be_of_any_type(tmp_path, values):
    pq.write_table(pa.table({"path": ["a.png", "b.png"], "label": ["x", "y"], "other": values}), tmp_path / "a.parquet")
    train, _ = open_manifest(tmp_path / "a.parquet")
    names = [train.name(record) for record in range(2)]
    assert column_of(tmp_path / "a.parquet", "other", names) == [str(values[0]), ""]


def test_a_column_or_a_row_that_is_gone_is_named(tmp_path):
    (tmp_path / "set.csv").write_text("path,label,year\na.png,x,1\nb.png,y,2\n")
    with pytest.raises(UserError, match=r"set\.csv: no column 'years'; it has: path, label, year"):
        column_of(tmp_path / "set.csv", "years", [])
    with pytest.raises(UserError, match=r"set\.csv: has no row for c\.png any more"):
        column_of(tmp_path / "set.csv", "year", [str(tmp_path / "a.png"), "c.png"])
    with pytest.raises(UserError, match="there is no such file"):
        column_of(tmp_path / "none.csv", "year", [])
