"""Long tails made of a set, and the list that makes them again."""

import numpy as np
import pytest

from pcls.cli.data_imbalance import imbalance
from pcls.config import Recipe, with_overrides
from pcls.data.dataset import open_dataset
from pcls.data.quarantine import read_quarantine
from pcls.data.split import long_tailed
from pcls.data.tail import open_long_tail, tail_text
from pcls.errors import UserError


@pytest.fixture
def archive(tmp_path):
    """A function from counts of training records to an archive with an evaluation part of two records a class."""

    def make(counts):
        rng = np.random.default_rng(0)
        labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        images = rng.integers(0, 256, (len(labels), 4, 4, 1), np.uint8)
        held = np.repeat(np.arange(len(counts)), 2)
        path = tmp_path / "set.npz"
        names = np.array([f"class {label}" for label in range(len(counts))])
        arrays = {"images": images, "labels": labels, "class_names": names}
        np.savez(path, **arrays, eval_images=np.zeros((len(held), 4, 4, 1), np.uint8), eval_labels=held)
        return path

    return make


def section_of(path, **overrides):
    return with_overrides(Recipe(), {"data.source": "arrays", "data.path": str(path)} | overrides).data


def test_the_list_leaves_what_the_recipes_key_leaves(archive, tmp_path, capsys):
    path, out = archive([90, 90, 90]), tmp_path / "left-out.txt"
    imbalance(f"arrays:{path}", ["data.split_seed=4"], ratio=10.0, out=out)
    printed = capsys.readouterr()
    assert "in a recipe: data.long_tail=10 data.split_seed=4" in printed.out
    assert printed.err == f"wrote {out}: 143 records left out; data.quarantine={out} does the same\n"
    assert len(read_quarantine(out)) == 270 - (90 + 28 + 9)
    by_list = open_dataset(section_of(path, **{"data.quarantine": str(out)}))
    by_key = open_dataset(section_of(path, **{"data.long_tail": 10, "data.split_seed": 4}))
    assert by_list.preprocessing == by_key.preprocessing
    for mine, other in ((by_list.train, by_key.train), (by_list.evaluation, by_key.evaluation)):
        everything = np.arange(len(mine))
        found, expected = (source.read(everything, by_key.preprocessing, None) for source in (mine, other))
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.labels, expected.labels)


def test_every_class_is_counted_before_and_after(archive):
    tail = open_long_tail(section_of(archive([400, 60, 400])), 20.0)
    assert [counts.tolist() for counts in tail.counts] == [[400, 60, 400], [400, 60, 20]]
    assert tail_text(tail).splitlines() == [
        "class                      records    long tail 20",
        "class 0                        400             400",
        "class 1                         60              60",
        "class 2                        400              20",
        "all                            860             480",
        "largest / smallest             6.7            20.0",
        "classes: 1 with more than 100 records, 2 with 20 to 100, 0 with fewer than 20",
        "read balanced accuracy, not top-1; try first: imbalance.logit_adjustment=1",
        "with augmentation also data.sampling=balanced; docs/imbalance.md has more",
    ]


def test_without_a_ratio_the_set_is_counted_as_it_is(archive, capsys):
    path = archive([300, 3])
    imbalance(f"arrays:{path}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["class", "records"]
    assert lines[-1] == "few records teach a class little: start from pretrained weights, pcls finetune"
    assert "in a recipe" not in lines[-1]
    imbalance("digits")
    assert capsys.readouterr().out.splitlines()[-1] == "nearly balanced: nothing need be done about it"


@pytest.mark.parametrize("counts", [[5, 1], [1, 1, 1]])
def test_classes_of_one_image_keep_it(archive, counts):
    tail = open_long_tail(section_of(archive(counts)), 100.0)
    assert tail.counts[1].min() == 1
    assert tail_text(tail)


def test_a_long_tail_of_one_label_leaves_all():
    assert long_tailed(np.zeros(4, int), 100, 0).all()


@pytest.mark.parametrize(
    ("overrides", "ratio", "fault"),
    [
        ([], None, "--out writes what a long tail leaves out; add --ratio, as in --ratio 100"),
        (["data.per_class=4"], 10.0, "--out: a list is of the whole set, and data.per_class is set; leave that out"),
    ],
)
def test_a_list_that_would_say_nothing_or_something_else_is_refused(archive, tmp_path, overrides, ratio, fault):
    out = tmp_path / "list.txt"
    with pytest.raises(UserError) as raised:
        imbalance(f"arrays:{archive([9, 9])}", overrides, ratio, out)
    assert str(raised.value).startswith(fault)
    assert not out.exists()


def test_a_set_that_holds_out_a_share_has_no_list(tmp_path):
    with pytest.raises(UserError) as raised:
        imbalance("digits", None, 10.0, tmp_path / "list.txt")
    assert str(raised.value) == (
        "--out: the set has no evaluation part of its own, and what is held out of the records that a list leaves "
        "would have a long tail too; write data.long_tail=10 into the recipe instead"
    )


def test_a_place_that_cannot_be_written_is_told_first(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        imbalance("digits", None, 10.0, tmp_path / "no" / "list.txt")
