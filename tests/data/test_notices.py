"""What is odd about a set is told once, and named."""

import numpy as np

from pcls.data.notices import notices
from pcls.data.sources.arrays import ArraySource


def source(labels, names, *, seed=0, images=None):
    made = np.random.default_rng(seed).integers(0, 255, (len(labels), 4, 4, 1), np.uint8)
    return ArraySource(made if images is None else images, np.array(labels), names, "image")


def test_a_set_without_oddities_is_not_talked_about():
    assert list(notices(source([0, 1], ("a", "b")), source([1, 0], ("a", "b"), seed=1))) == []


def test_images_that_are_trained_and_evaluated_on_are_counted_and_named():
    train, held = source([0, 1, 1], ("a", "b")), source([0, 1, 0], ("a", "b"), seed=1)
    held.images[1] = train.images[2]
    (told,) = notices(train, held)
    assert told.startswith("1 of 3 held-out images are trained on too, pixel by pixel (image #1 first)"), told


def test_classes_without_held_out_records_are_named():
    names = ("a", "b", "c", "d", "e")
    (told,) = notices(source([0, 1, 2, 3, 4], names), source([2], names, seed=1))
    assert told == "4 of 5 classes have no held-out record, and no number (a, b, d, ...)"


def test_names_that_differ_in_capital_letters_are_told():
    names = ("Cat", "cat", "dog")
    (told,) = notices(source([0, 1, 2], names), source([0, 1, 2], names, seed=1))
    assert told == "classes 'Cat' and 'cat' differ in capital letters only; are they one?"
