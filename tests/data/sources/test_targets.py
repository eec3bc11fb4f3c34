"""Records that carry several labels, or none: in manifests and arrays, and every way to get them wrong."""

import copy

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pcls.config import Recipe, with_overrides
from pcls.data.dataset import open_dataset
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources import manifest, targets
from pcls.data.sources.arrays import ArraySource, open_arrays
from pcls.data.sources.manifest import open_manifest
from pcls.data.sources.source import Subset, class_counts
from pcls.data.sources.targets import LabelSets, positives, rarest_labels
from pcls.errors import UserError

PREPROCESSING = Preprocessing(4, 6, 3, (0.0,) * 3, (1.0,) * 3)
NAMES = LabelSets()
# Four records: cat and dog, none, dog, bird and dog.
SETS = [[0, 1, 1], [0, 0, 0], [0, 0, 1], [1, 0, 1]]
CSV = "path,label\na.png,cat;dog\nb.png,\nc.png,dog\nd.png,dog; bird\n"
COLUMNS = "path,bird,cat,dog,age\na.png,0,1,1,7\nb.png,0,0,0,\nc.png,0,0,1,9\nd.png,1,0,1,8\n"
PATHS = ["a.png", "b.png", "c.png", "d.png"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PCLS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=["memory", "mapped"])
def either_way(request, monkeypatch):
    """A short manifest is held in memory; a long one is mapped from the cache."""
    if request.param == "mapped":
        monkeypatch.setattr(manifest, "MAPPED_FROM", 0)
    return request.param


def write(path, content):
    if isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    else:
        path.write_text(content)
    return path


def complaint(read, *args, **kwargs) -> str:
    with pytest.raises(UserError) as raised:
        read(*args, **kwargs)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def test_a_record_is_split_by_its_rarest_label_and_by_the_most_common_where_it_has_none():
    # Records with each label: 1, 1, 3. Of equally rare ones the first.
    found = rarest_labels(np.array([*SETS, [1, 1, 0], [0, 0, 0]], np.uint8))
    assert found.tolist() == [1, 2, 2, 0, 0, 2]
    assert positives(np.array(SETS, np.uint8)).tolist() == [1, 1, 3]


def test_labels_are_found_in_parts_as_in_the_whole(monkeypatch):
    some = np.random.default_rng(0).integers(0, 2, (50, 7)).astype(np.uint8)
    whole = rarest_labels(some), positives(some)
    monkeypatch.setattr(targets, "ROWS_AT_ONCE", 8)
    np.testing.assert_array_equal(rarest_labels(some), whole[0])
    np.testing.assert_array_equal(positives(some), whole[1])


@pytest.mark.parametrize(
    ("name", "content", "sets"),
    [
        ("m.csv", CSV, NAMES),
        ("m.csv", CSV.replace(";", "|"), LabelSets("|")),
        ("m.parquet", {"path": PATHS, "label": ["cat;dog", None, "dog", "dog; bird"]}, NAMES),
        ("m.csv", COLUMNS, LabelSets(columns=("bird", "cat", "dog"))),
        ("m.csv", COLUMNS.replace("0", "0.0").replace("1", "1.0"), LabelSets(columns=("bird", "cat", "dog"))),
        (
            "m.parquet",
            {
                "path": PATHS,
                "bird": [False, False, False, True],
                "cat": pa.array([1, 0, 0, 0], pa.int8()),
                "dog": [1.0, 0.0, 1.0, 1.0],
            },
            LabelSets(columns=("bird", "cat", "dog")),
        ),
    ],
)
def test_every_form_of_a_manifest_gives_the_same_records(write_images, either_way, name, content, sets):
    root = write_images({"a.png": 1, "b.png": 2, "c.png": 3, "d.png": 4})
    source, evaluation = open_manifest(write(root / name, content), sets=sets)
    assert evaluation is None
    assert source.class_names == ("bird", "cat", "dog")
    assert (source.targets.tolist(), source.targets.dtype) == (SETS, np.uint8)
    assert source.labels.tolist() == [1, 2, 2, 0]
    read = copy.deepcopy(source).read(np.array([3, 1]), PREPROCESSING, None)
    assert read.labels.tolist() == [SETS[3], SETS[1]]
    assert read.images[:, 0, 0, 0].tolist() == [4, 2]
    assert class_counts(source) == {"bird": 1, "cat": 1, "dog": 3}


def test_columns_of_labels_keep_their_order_and_one_that_no_record_carries(tmp_path, either_way):
    sets = LabelSets(columns=("dog", "fish", "bird"))
    text = "path,dog,bird,fish,split\na,1,0,0,train\nb,1,1,0,val\n"
    train, evaluation = open_manifest(write(tmp_path / "m.csv", text), sets=sets)
    assert train.class_names == evaluation.class_names == ("dog", "fish", "bird")
    assert (train.targets.tolist(), evaluation.targets.tolist()) == ([[1, 0, 0]], [[1, 0, 1]])


def test_groups_and_splits_go_with_several_labels_and_numbers_are_ordered_by_value(tmp_path, either_way):
    rows = "a,10;9,train,p\nb,9,train,p\nc,10,test,q\nd,,val,q\n"
    train, evaluation = open_manifest(write(tmp_path / "m.csv", "path,label,split,group\n" + rows), sets=NAMES)
    assert train.class_names == ("9", "10")
    assert train.targets.tolist() == [[1, 1], [1, 0]]
    assert evaluation.targets.tolist() == [[0, 0]]
    assert train.groups.tolist() == [0, 0]


def test_a_label_with_a_separator_is_one_name_where_records_have_one_label(tmp_path):
    source, _ = open_manifest(write(tmp_path / "m.csv", "path,label\na,cat;dog\nb,dog\n"))
    assert (source.class_names, source.targets) == (("cat;dog", "dog"), None)


def test_another_reading_of_the_same_long_manifest_is_another_index(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "MAPPED_FROM", 0)
    path = write(tmp_path / "m.csv", "path,label,x,y\na,x;y,0,1\nb,y,1,1\n")
    assert open_manifest(path)[0].targets is None
    assert open_manifest(path, sets=NAMES)[0].targets.tolist() == [[1, 1], [0, 1]]
    assert open_manifest(path, sets=LabelSets(columns=("x", "y")))[0].targets.tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("text", "sets", "message"),
    [
        (
            "path,label\na,cat|dog\nb,dog\n",
            NAMES,
            ": no label has the separator ';', and 'cat|dog' has '|'; write data.",
        ),
        ("path,label\na,cat\nb,dog\n", NAMES, ": no label has the separator ';', so that each record carries one; "),
        ("path,label\na,cat;dog\nb,cat;;dog\n", NAMES, ", row 3: label 'cat;;dog' has an empty name"),
        ("path,label\na,cat;\nb,dog\n", NAMES, ", row 2: label 'cat;' has an empty name"),
        ("path,label\na,1;cat\nb,cat;dog\n", NAMES, ", row 2: label '1' is a number, and others are names, as 'cat'"),
        ("path,label\na,cat\nb,\n", NAMES, ": fewer than two labels (cat); two or more are needed"),
        ("path,label,split\na,cat;dog,val\n", NAMES, ": no row is of the split train"),
        ("path,x\na,1\n", NAMES, ": no column 'label'; path and label are needed"),
        ("path,x\na,1\n", LabelSets(columns=("x", "y")), ": no column 'y'; data.label_columns names it, and it has: "),
        ("path,x,y\na,1,0\nb,2,0\n", LabelSets(columns=("x", "y")), ", row 3: x is '2'; 0 or 1 is needed"),
        ("path,x,y\na,1,0\nb,1,nan\n", LabelSets(columns=("x", "y")), ", row 3: y is 'nan'; 0 or 1 is needed"),
        ("path,x,y\na,1,-1.0\n", LabelSets(columns=("x", "y")), ", row 2: y is '-1.0'; 0 or 1 is needed"),
        ("path,x,y\na,1,\n", LabelSets(columns=("x", "y")), ", row 2: y is ''; 0 or 1 is needed"),
        (
            "path,x,y\na,1,0\na,0,0\n",
            LabelSets(columns=("x", "y")),
            ", row 3: path 'a' stands in row 2 too, with the la",
        ),
    ],
)
def test_a_manifest_that_cannot_be_meant_is_refused(tmp_path, text, sets, message):
    path = write(tmp_path / "m.csv", text)
    assert complaint(open_manifest, path, sets=sets).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1.0, float("nan")], ", row 2: y is 'nan'; 0 or 1 is needed"),
        ([0.5, 1.0], ", row 1: y is '0.5'; 0 or 1 is needed"),
        ([1, None], ", row 2: y is empty"),
        ([[1], [0]], ": the column 'y' is of type list<"),
    ],
)
def test_a_parquet_column_with_other_values_is_refused(tmp_path, column, message):
    path = write(tmp_path / "m.parquet", {"path": ["a", "b"], "x": [1, 0], "y": column})
    assert complaint(open_manifest, path, sets=LabelSets(columns=("x", "y"))).startswith(f"{path}{message}")


def test_too_many_labels_for_the_memory_are_told_before_it_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "TARGET_BYTES", 5)
    path = write(tmp_path / "m.csv", "path,label\na,x;y\nb,y\nc,y\n")
    assert complaint(open_manifest, path, sets=NAMES).startswith(f"{path}: which of 2 labels each of 3 records carries")


# Arrays

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 4, 5), np.uint8)


def save(place, arrays, form):
    if form == "folder":
        place.mkdir()
        for name, array in arrays.items():
            np.save(place / f"{name}.npy", array)
        return place
    np.savez(place.with_suffix(".npz"), **arrays)
    return place.with_suffix(".npz")


@pytest.mark.parametrize("form", ["plain", "folder"])
@pytest.mark.parametrize("kind", [np.uint8, np.int64, bool])
def test_saved_arrays_of_label_sets_are_read(tmp_path, form, kind):
    arrays = {"images": IMAGES, "labels": np.array(SETS, kind), "eval_images": IMAGES[:1]}
    arrays |= {"eval_labels": np.array(SETS[3:], kind), "class_names": np.array(["bird", "cat", "dog"])}
    train, evaluation = open_arrays(save(tmp_path / "set", arrays, form), several=True)
    assert train.class_names == ("bird", "cat", "dog")
    assert (train.targets.tolist(), train.targets.dtype, train.labels.tolist()) == (SETS, np.uint8, [1, 2, 2, 0])
    assert evaluation.targets.tolist() == SETS[3:]
    assert train.read(np.array([3, 0]), Preprocessing(4, 5, 1, (), ()), None).labels.tolist() == [SETS[3], SETS[0]]
    assert [stored.label for stored in train.__getitems__([3, 1])] == [0, 2]


def test_arrays_without_names_have_as_many_classes_as_columns(tmp_path):
    path = save(tmp_path / "set", {"images": IMAGES, "labels": np.zeros((4, 6), np.uint8)}, "plain")
    assert open_arrays(path, several=True)[0].class_names == tuple("012345")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array(SETS, np.float32), "labels is float32; whole numbers, 0 or 1, or bool are needed"),
        (np.array([0, 1, 1, 0]), "labels has the shape [4]; [n, classes] is needed with data.labels=several"),
        (np.zeros((4, 1), int), "labels has the shape [4, 1]; two classes or more are needed"),
        (np.zeros((3, 2), int), "labels has 3 rows for 4 images"),
        (np.array([*SETS[:3], [0, 2, 0]]), "labels has 2 at record 3, class 1; 0 or 1"),
        (np.array([*SETS[:3], [0, -1, 0]]), "labels has -1 at record 3, class 1; 0 or 1"),
    ],
)
def test_arrays_that_are_no_label_sets_are_refused(tmp_path, labels, message):
    path = save(tmp_path / "set", {"images": IMAGES, "labels": labels}, "plain")
    assert complaint(open_arrays, path, several=True).startswith(f"{path}: {message}")


def test_label_sets_read_as_one_label_are_told_what_to_write(tmp_path):
    path = save(tmp_path / "set", {"images": IMAGES, "labels": np.array(SETS)}, "plain")
    assert complaint(open_arrays, path).endswith(
        "[n] is needed; where records carry several labels write data.labels=several"
    )


def test_an_evaluation_part_with_other_columns_is_refused(tmp_path):
    arrays = {"images": IMAGES, "labels": np.array(SETS), "eval_images": IMAGES, "eval_labels": np.array(SETS)[:, :2]}
    path = save(tmp_path / "set", arrays, "plain")
    assert complaint(open_arrays, path, several=True) == (
        f"{path}: eval_labels has 2 columns for 3 classes; one each is needed"
    )


def test_a_part_of_a_set_has_its_records_and_the_classes_asked_for():
    whole = ArraySource(IMAGES[..., None], np.array(SETS, np.uint8), ("bird", "cat", "dog"), "set")
    part = Subset(whole, np.array([3, 1, 0]), (2, 0))
    assert part.class_names == ("dog", "bird")
    assert part.targets.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert part.labels.tolist() == [1, 0, 0]
    assert part.read(np.array([2, 0]), Preprocessing(4, 5, 1, (), ()), None).labels.tolist() == [[1, 0], [1, 1]]
    assert [stored.label for stored in part.__getitems__([0, 1])] == [1, 0]
    assert Subset(part, np.array([2])).targets.tolist() == [[1, 0]]


# Data as a recipe names them


def section(path, **settings):
    source = "manifest" if path.suffix == ".csv" else "arrays"
    overrides = {"data.source": source, "data.path": str(path), "data.labels": "several"}
    return with_overrides(Recipe(), overrides | {f"data.{key}": value for key, value in settings.items()}).data


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """200 records; three quarters carry a, a quarter b, eight c, and nobody d."""
    sets = np.zeros((200, 4), np.uint8)
    sets[:150, 0], sets[120:170, 1], sets[:8, 2] = 1, 1, 1
    place = tmp_path_factory.mktemp("rare") / "set"
    images = np.random.default_rng(1).integers(0, 256, (200, 4, 5), np.uint8)
    return save(place, {"images": images, "labels": sets, "class_names": np.array(list("abcd"))}, "plain")


def test_a_share_of_the_carriers_of_a_rare_label_is_held_out(rare):
    dataset = open_dataset(section(rare, validation=0.25))
    assert dataset.evaluation.targets.sum(0).tolist()[2] == 2
    assert dataset.train.targets.sum(0).tolist()[2] == 6
    assert len(dataset.train) + len(dataset.evaluation) == 200
    assert dataset.notices[:2] == (
        "1 of 4 classes have no training record (d)",
        "1 of 4 classes have no held-out record, and no number (d)",
    )


def test_some_classes_leave_all_records_where_several_labels_are_carried(rare):
    dataset = open_dataset(section(rare, classes=(2, 0)))
    assert dataset.class_names == ("c", "a")
    assert len(dataset.train) + len(dataset.evaluation) == 200
    assert (dataset.train.targets.sum(0) + dataset.evaluation.targets.sum(0)).tolist() == [8, 150]


def test_a_few_of_each_are_chosen_by_the_rarest_label(rare):
    dataset = open_dataset(section(rare, per_class=5))
    assert len(dataset.train) == 15
    assert dataset.train.targets.sum(0).tolist()[2] == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.source": "digits"}, "data.labels several is for data.source=manifest and arrays, not for digits"),
        ({"data.sampling": "balanced"}, "data.sampling needs records of one label; leave it out"),
        ({"data.long_tail": 10}, "data.long_tail needs records of one label; leave it out"),
        ({"data.label_columns": ["x"]}, "data.label_columns names one class; two or more are needed"),
        ({"data.label_columns": ["x", "x"]}, "data.label_columns names a column twice"),
        ({"data.label_columns": ["x", "split"]}, "data.label_columns names 'split', which is not a label"),
        ({"data.label_columns": ["x", "y;z"]}, "data.label_columns names 'y;z', which has a semicolon"),
        ({"data.label_columns": ["x", "y"], "data.label_separator": "|"}, "data.label_separator has no effect beside"),
        (
            {"data.source": "arrays", "data.label_separator": "|"},
            "data.label_separator has an effect with data.source=",
        ),
        (
            {"data.labels": "one", "data.label_separator": "|"},
            "data.label_separator has an effect with data.labels=sev",
        ),
        ({"imbalance.class_weights": "effective"}, "imbalance.class_weights effective is of records with one label"),
        ({"imbalance.focal": 2, "train.loss": "sigmoid"}, "imbalance.focal is for train.loss=softmax"),
        ({"imbalance.margin": 1, "train.loss": "asymmetric"}, "imbalance.margin is for train.loss=softmax"),
        ({"transfer.head": "probe", "model.init": "x"}, "transfer.head probe fits a head for one label a record"),
        ({"data.labels": "one", "train.loss": "asymmetric"}, "train.loss asymmetric is for data.labels=several"),
        ({"train.asymmetric.clip": 0.1}, "train.asymmetric.clip has an effect with train.loss=asymmetric only"),
    ],
)
def test_keys_that_cannot_be_meant_with_several_labels_are_refused(settings, message):
    several = {"data.source": "manifest", "data.labels": "several"}
    assert message in complaint(with_overrides, Recipe(), several | settings)
