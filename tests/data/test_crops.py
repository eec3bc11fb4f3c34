"""Random crops: where they fall, and what they are drawn from."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcls.data.crops import ATTEMPTS, DRAWS, crop_draws, random_box

SIZES = st.integers(1, 20_000)


def drawn(seed: int) -> np.ndarray:
    return crop_draws(seed, np.zeros(1, int), np.zeros(1, int))[0]


def assert_inside(box, width, height):
    left, top, right, bottom = box
    assert -1e-6 * width <= left < right <= width * (1 + 1e-6)
    assert -1e-6 * height <= top < bottom <= height * (1 + 1e-6)


@given(SIZES, SIZES, st.integers(0, 2**32 - 1))
def test_a_random_crop_is_inside_the_picture(width, height, seed):
    box = left, top, right, bottom = random_box(width, height, drawn(seed))
    assert_inside(box, width, height)
    assert (right - left) * (bottom - top) <= width * height * (1 + 1e-9)
    assert 3 / 4 - 1e-6 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-6


def test_random_crops_spread_over_area_aspect_and_place():
    records = np.arange(2000)
    boxes = np.array([random_box(400, 300, draws) for draws in crop_draws(0, records, records)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas = widths * heights / (400 * 300)
    assert 0.08 <= areas.min() < 0.1
    assert 0.95 < areas.max() <= 1
    assert np.log(widths / heights).min() < math.log(3 / 4) + 0.02
    assert np.log(widths / heights).max() > math.log(4 / 3) - 0.02
    assert abs((boxes[:, 0] + boxes[:, 2]).mean() / 2 - 200) < 5
    assert abs((boxes[:, 1] + boxes[:, 3]).mean() / 2 - 150) < 5


def test_a_crop_that_fits_only_later_is_drawn_again_and_one_that_never_does_is_the_middle():
    draws = np.zeros((ATTEMPTS, DRAWS))
    draws[0] = [0.999, 0, 0, 0]  # of all of the area, 3/4: too high
    draws[1] = [0.0, 0.5, 1, 0]
    side = math.sqrt(0.08 * 100 * 100)
    assert random_box(100, 100, draws) == pytest.approx((100 - side, 0, 100, side))
    assert random_box(1000, 10, np.full((ATTEMPTS, DRAWS), 0.9)) == (495, 0, 505, 10)


def test_draws_are_of_the_record_whatever_its_batch():
    records, epochs = np.arange(100), np.arange(100) // 7
    whole = crop_draws(5, epochs, records)
    order = np.random.default_rng(0).permutation(100)
    assert np.array_equal(crop_draws(5, epochs[order], records[order]), whole[order])
    assert whole.shape == (100, ATTEMPTS, DRAWS)
    # What fills a step up is drawn for too.
    assert crop_draws(5, np.array([0]), np.array([-1])).shape == (1, ATTEMPTS, DRAWS)


def test_draws_are_the_same_on_every_machine_and_version():
    assert crop_draws(1, np.array([2]), np.array([3]))[0, 0].tolist() == [
        0.30487977145345335,
        0.2640323221420162,
        0.18127298445985296,
        0.5985013132466759,
    ]


@pytest.mark.parametrize("vary", ["seed", "epoch", "record"])
def test_draws_are_uniform_and_neighbours_unrelated(vary):
    n, zeros = 4000, np.zeros(1, int)
    numbers = np.arange(n)
    if vary == "seed":
        draws = np.concatenate([crop_draws(seed, zeros, zeros) for seed in range(n)])
    else:
        draws = crop_draws(9, numbers if vary == "epoch" else numbers * 0, numbers if vary == "record" else numbers * 0)
    draws = draws.reshape(n, -1)
    assert draws.min() >= 0 and draws.max() < 1
    # Means and correlations of uniform numbers, five deviations wide.
    assert np.abs(draws.mean(0) - 0.5).max() < 5 * math.sqrt(1 / 12 / n)
    counts = np.stack([np.histogram(column, 16, (0, 1))[0] for column in draws.T])
    chi_square = ((counts - n / 16) ** 2).sum(1) / (n / 16)
    assert chi_square.max() < 15 + 5 * math.sqrt(30)
    neighbours = [np.corrcoef(draws[1:, i], draws[:-1, j])[0, 1] for i in range(8) for j in range(8)]
    assert np.abs(neighbours).max() < 5 / math.sqrt(n)
    others = np.corrcoef(draws.T) - np.eye(draws.shape[1])
    assert np.abs(others).max() < 5.5 / math.sqrt(n)
