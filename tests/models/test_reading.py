"""Orders of reading: nothing is lost, nothing is read twice, and neighbours stay near."""

import jax.numpy as jnp
import numpy as np
import pytest

from pcls.errors import UserError
from pcls.models.reading import Reading, hilbert_curve

ORDERS = ["rows", "columns", "pixels", "patches", "hilbert"]


def picture(height=4, width=6, channels=2):
    """Its numbers say where they stand: 100 * row + 10 * column + channel."""
    row, column, channel = np.indices((height, width, channels))
    return jnp.asarray(100 * row + 10 * column + channel, jnp.float32)


def read(order, image=None, patch=2):
    return np.asarray(Reading(order, patch)((picture() if image is None else image)[None])[0]).astype(int)


@pytest.mark.parametrize(
    ("order", "steps", "first", "second"),
    [
        ("rows", 4, [0, 1, 10, 11, 20, 21, 30, 31, 40, 41, 50, 51], [100, 101, 110, 111, 120, 121]),
        ("columns", 6, [0, 1, 100, 101, 200, 201, 300, 301], [10, 11, 110, 111, 210, 211, 310, 311]),
        ("pixels", 24, [0, 1], [10, 11]),
        ("patches", 6, [0, 1, 10, 11, 100, 101, 110, 111], [20, 21, 30, 31, 120, 121, 130, 131]),
    ],
)
def test_a_step_holds_what_the_order_says(order, steps, first, second):
    found = read(order)
    assert found.shape == (steps, len(first))
    assert found[0].tolist() == first
    assert found[1, : len(second)].tolist() == second


@pytest.mark.parametrize("order", ORDERS)
def test_every_number_is_read_once_and_a_step_has_the_stated_features(order):
    found = read(order)
    assert sorted(found.ravel()) == sorted(np.asarray(picture()).ravel())
    assert Reading(order, 2).features(4, 6, 2) == found.shape[1]


@pytest.mark.parametrize("order", ORDERS)
def test_images_of_a_batch_are_read_apart(order):
    reading, images = Reading(order, 2), jnp.stack([picture(), 1000 + picture()])
    np.testing.assert_array_equal(reading(images)[1], reading(images)[0] + 1000)


def test_hilberts_curve_reads_whole_pixels():
    found = read("hilbert", picture(4, 4))
    assert found[:, 1].tolist() == (found[:, 0] + 1).tolist()
    assert found[:5, 0].tolist() == [0, 10, 110, 100, 200]


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32])
def test_in_squares_of_powers_of_two_it_is_hilberts(size):
    """Whole quarters one after another, at every scale, and each step to one of the four neighbours."""
    rows, columns = np.divmod(hilbert_curve(size, size), size)
    assert set(np.abs(np.diff(rows)) + np.abs(np.diff(columns))) <= {1}
    assert (rows[0], columns[0], rows[-1], columns[-1]) == (0, 0, 0, size - 1)
    block = size // 2
    while block > 1:
        squares = (rows // block * size + columns // block).reshape(-1, block * block)
        assert (squares == squares[:, :1]).all()
        block //= 2


def test_in_other_boxes_it_visits_every_pixel_once_with_one_diagonal_step_at_most():
    diagonal = {}
    for height in range(1, 18):
        for width in range(1, 18):
            order = hilbert_curve(height, width)
            assert np.array_equal(np.sort(order), np.arange(height * width))
            rows, columns = np.divmod(order, width)
            steps = np.abs(np.diff(rows)), np.abs(np.diff(columns))
            assert max(step.max(initial=0) for step in steps) <= 1
            diagonal[height, width] = int(np.sum(steps[0] + steps[1] == 2))
    assert set(diagonal.values()) == {0, 1}
    # Where the longer side is odd and the shorter even.
    for sides, count in diagonal.items():
        assert count == 0 or (max(sides) % 2, min(sides) % 2) == (1, 0)


def test_a_patch_that_does_not_divide_is_refused_with_those_that_do():
    with pytest.raises(UserError) as raised:
        Reading("patches", 5).features(28, 42, 1)
    assert (
        str(raised.value)
        == "patches of 5 x 5 pixels do not divide images of 28 x 42; write model.patch=1 or 2 or 7 or 14"
    )


@pytest.mark.parametrize("order", ORDERS[1:])
def test_sequences_are_read_by_rows_only(order):
    with pytest.raises(UserError) as raised:
        Reading(order, 2)(picture()[None], jnp.array([3]))
    assert str(raised.value) == (f"model.read is '{order}', and sequences are read by rows, their steps; leave it out")
