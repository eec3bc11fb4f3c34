import json

import numpy as np
import pytest

from pcls.errors import UserError
from pcls.evaluation.label_maps import map_labels, read_label_lists, relabelled

TRAINED = ("n01440764", "n01443537", "n01484850")
NAMES = [f"val/n01440764/ILSVRC2012_val_0000000{number}.JPEG" for number in (2, 1, 4)]


class Answers:
    """A source of four records, of which only the labels matter."""

    def __init__(self, class_names, labels):
        self.class_names, self.labels = class_names, np.array(labels, np.int32)

    def __len__(self):
        return len(self.labels)


def test_classes_are_matched_by_name_in_whatever_order_and_it_is_told():
    found = map_labels(["n01484850", "n01440764", "n01443537"], TRAINED)
    assert found.outputs.tolist() == [2, 0, 1]
    assert found.notices == ("the set has the classes in another order than the model; they are matched by name",)
    assert map_labels(TRAINED, TRAINED).notices == ()


def test_some_of_the_classes_will_do_and_it_is_told():
    found = map_labels(["n01443537", "n01484850"], TRAINED)
    assert found.outputs.tolist() == [1, 2]
    assert found.notices == ("the set has 2 of the model's 3 classes; answers are free to name any of these",)


def test_numbers_are_places_of_outputs_where_the_model_has_no_such_names():
    # As a folder sorts them.
    found = map_labels(["0", "10", "2"], tuple(f"n{number}" for number in range(11)))
    assert found.outputs.tolist() == [0, 10, 2]
    assert "the set's classes are numbers: they are taken for the places of the model's 11 outputs" in found.notices
    # A model of digits has them as names.
    assert map_labels(["2", "0"], ("2", "1", "0")).outputs.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("found", "trained", "message"),
    [
        (["Cat", "dog"], ("cat", "dog"), "the set has the class 'Cat', and the model 'cat': they differ in case"),
        (
            ["cat", "emu", "elk"],
            ("cat", "dog"),
            "the model has no class 'emu' and 1 others of the set; it has 2",
        ),
        (["0", "3"], ("a", "b", "c"), "the model has no class '0' and 1 others"),
        (["cat", "1"], ("cat", "dog"), "the model has no class '1'; it has 2"),
        (["1", "01"], ("a", "b", "c"), "two classes of the set are the same number, as 1 and 01"),
    ],
)
def test_classes_that_are_not_the_models_are_named(found, trained, message):
    with pytest.raises(UserError) as caught:
        map_labels(found, trained)
    assert str(caught.value).startswith(message)


def test_a_class_without_records_need_not_be_known():
    source, notices = relabelled(Answers(("a", "b", "nothing"), [1, 0, 0, 1]), ("b", "c", "a"))
    assert source.labels.tolist() == [0, 2, 2, 0]
    assert source.class_names == ("b", "c", "a")
    assert len(notices) == 2


@pytest.fixture
def written(tmp_path):
    """A function that writes a value as JSON and returns its path."""

    def write(value):
        (tmp_path / "real.json").write_text(json.dumps(value))
        return tmp_path / "real.json"

    return write


def test_a_list_goes_by_the_numbers_of_imagenets_validation_images(written):
    path = written([[0], [1, 2], [], []])
    assert read_label_lists(path, NAMES, TRAINED) == [{1, 2}, {0}, set()]


def test_an_object_goes_by_the_names_of_files_and_labels_may_be_names(written):
    path = written({"a.jpg": ["n01443537", 0], "b/c.jpg": []})
    assert read_label_lists(path, ["x/a.jpg", "b/c.jpg"], TRAINED) == [{0, 1}, set()]


@pytest.mark.parametrize(
    ("value", "names", "message"),
    [
        ([[0]], ["photos/cat.jpg"], "is a list, and photos/cat.jpg is no image of ImageNet's validation set"),
        ([[0]], NAMES, "has 1 lists, and none for val/n01440764/ILSVRC2012_val_00000002.JPEG"),
        ({"a.jpg": [0]}, ["a.jpg", "b.jpg"], "has no list for b.jpg"),
        ({"a.jpg": 0}, ["a.jpg"], "the entry of a.jpg is no list of labels"),
        ({"a.jpg": [3]}, ["a.jpg"], "a.jpg has the label 3; allowed: a class of the model, or 0 to 2"),
        ({"a.jpg": [-1]}, ["a.jpg"], "a.jpg has the label -1"),
        ({"a.jpg": [True]}, ["a.jpg"], "a.jpg has the label True"),
        ({"a.jpg": ["cat"]}, ["a.jpg"], "a.jpg has the label 'cat'"),
        ("text", ["a.jpg"], "is neither a list nor an object"),
    ],
)
def test_a_file_of_labels_that_is_of_no_use_is_told(written, value, names, message):
    with pytest.raises(UserError) as caught:
        read_label_lists(written(value), names, TRAINED)
    assert message in str(caught.value)


def test_a_file_of_labels_that_is_missing_or_no_json_is_told(tmp_path):
    with pytest.raises(UserError, match=r"real\.json: cannot be read \(No such file"):
        read_label_lists(tmp_path / "real.json", NAMES, TRAINED)
    (tmp_path / "real.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"real\.json: is no JSON"):
        read_label_lists(tmp_path / "real.json", NAMES, TRAINED)
