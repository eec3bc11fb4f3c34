"""A part of a source, with its classes renumbered."""

import numpy as np

from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.arrays import ArraySource
from pcls.data.sources.source import Subset, class_counts

PREPROCESSING = Preprocessing(1, 1, 1, (), ())
WHOLE = ArraySource(np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1), np.arange(8) % 4, ("a", "b", "c", "d"), "set")


def test_a_part_renumbers_records_and_classes_in_the_order_given():
    part = Subset(WHOLE, np.array([7, 1, 3]), (3, 1))
    assert len(part) == 3
    assert part.class_names == ("d", "b")
    assert part.labels.tolist() == [0, 1, 0]
    read = part.read(np.array([2, 0, 1]), PREPROCESSING, None)
    assert read.images.ravel().tolist() == [3, 7, 1]
    assert read.labels.tolist() == [0, 0, 1]
    assert (read.labels.dtype, part.labels.dtype) == (np.int32, np.int32)
    assert part.name(0) == "set #7"


def test_a_part_of_a_part_names_the_record_of_the_whole():
    part = Subset(Subset(WHOLE, np.array([7, 1, 3]), (3, 1)), np.array([1]))
    assert (part.name(0), part.class_names, part.labels.tolist()) == ("set #1", ("d", "b"), [1])


def test_classes_are_counted_in_their_order():
    assert class_counts(Subset(WHOLE, np.array([7, 1, 3]))) == {"a": 0, "b": 1, "c": 0, "d": 2}
