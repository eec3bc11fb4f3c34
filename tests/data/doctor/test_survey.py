"""Every record is looked at once, in any number of threads."""

import threading

import numpy as np
import pytest

from pcls.data.doctor.survey import Survey, groups_of_equal, survey
from pcls.data.sources.arrays import ArraySource


def source(count: int, title: str, classes: tuple[str, ...] = ("a", "b")) -> ArraySource:
    images = np.random.default_rng(count).integers(0, 256, (count, 8, 9, 3), np.uint8)
    return ArraySource(images, np.arange(count) % len(classes), classes, title)


@pytest.mark.parametrize("workers", [1, 5])
def test_records_of_all_splits_are_seen_in_order(workers):
    told = []
    sources = {"train": source(150, "t"), "evaluation": source(70, "e", ("a", "b", "c"))}
    seen = survey(sources, workers=workers, advance=told.append)
    assert seen.looks["label"].tolist() == [i % 2 for i in range(150)] + [i % 3 for i in range(70)]
    assert len({tuple(digest) for digest in seen.looks["digest"].tolist()}) == 220
    assert (seen.place(149), seen.place(150), seen.name(219)) == (("train", 149), ("evaluation", 0), "e #69")
    assert seen.class_names == ("a", "b", "c")
    assert seen.description(3) == "9 x 8 pixels"
    assert (sum(told), len(told)) == (220, 5)
    assert [len(seen.of_split(split)) for split in seen.splits] == [150, 70]


def test_reasons_stand_under_the_number_in_the_whole(examined):
    files = {"train/a/1.jpg": 1, "train/b/1.jpg": b"", "val/a/1.jpg": 2, "val/b/1.jpg": b"<html>"}
    seen = examined(files)
    assert seen.reasons == {1: "the file is empty", 3: "not a JPEG, PNG or WebP image, 6 bytes"}
    assert (seen.description(3), seen.label(3)) == ("not a JPEG, PNG or WebP image, 6 bytes", "b")
    assert seen.looks["decoded"].tolist() == [True, False, True, False]


def test_a_failing_source_ends_the_survey_and_its_threads():
    class Failing(ArraySource):
        def __getitems__(self, records):
            raise RuntimeError("broken")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="broken"):
        survey({"train": Failing(source(200, "t").images, np.zeros(200), ("a",), "t")}, workers=2)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("keys", "groups"),
    [
        ([], []),
        ([1, 2, 3], []),
        ([5, 1, 5, 1, 9, 5], [[0, 2, 5], [1, 3]]),
        ([[1, 2], [1, 3], [1, 2]], [[0, 2]]),
    ],
)
def test_equal_keys_are_grouped_by_their_first(keys, groups):
    assert [group.tolist() for group in groups_of_equal(np.array(keys, np.uint64))] == groups


def test_a_survey_knows_where_splits_begin():
    seen = Survey({"train": source(3, "t"), "evaluation": source(2, "e")}, np.zeros(5), {})
    assert seen.starts.tolist() == [0, 3, 5]
    assert seen.split_of(np.arange(5)).tolist() == [0, 0, 0, 1, 1]
