"""Random crops: a pure function of the seed, the epoch and the record, for a whole batch at once."""

from __future__ import annotations

import math

import numpy as np

# The area and aspect ratio of a random crop, relative to the image. Source: Szegedy et al. 2015.
AREA = (0.08, 1.0)
LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))
# A crop that does not fit is drawn again, so often; each time area, aspect, left and top.
ATTEMPTS, DRAWS = 10, 4

GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Box = tuple[float, float, float, float]


def crop_draws(seed: int, epochs: np.ndarray, records: np.ndarray) -> np.ndarray:
    """What the crops of some records are made from.

    A generator for each record would take 20 µs an image, 3 % of decoding a photograph.

    Args:
      seed: of the run.
      epochs, records: [n] integers.

    Returns:
      [n, ATTEMPTS, DRAWS] float64, uniform in 0 to 1, 1 excluded.

    Source of the mixing: Steele, Lea & Flood 2014, Fast splittable pseudorandom number generators.
    """
    with np.errstate(over="ignore"):
        key = _mixed(np.uint64(seed) * GOLDEN + GOLDEN)
        for part in (epochs, records):
            key = _mixed(key + part.astype(np.int64).astype(np.uint64) * GOLDEN)
        steps = np.arange(1, ATTEMPTS * DRAWS + 1, dtype=np.uint64) * GOLDEN
        bits = _mixed(key[:, None] + steps) >> np.uint64(11)
    return (bits * 2.0**-53).reshape(-1, ATTEMPTS, DRAWS)


def random_box(width: int, height: int, draws: np.ndarray) -> Box:
    """A random part of an image: 8 to 100 % of its area, aspect 3/4 to 4/3. Source: Szegedy et al. 2015.

    Args:
      width, height: of the image in pixels.
      draws: [ATTEMPTS, DRAWS], of `crop_draws`.

    Returns:
      Left, top, right, bottom.
    """
    for area, aspect, left, top in draws.tolist():
        area = (AREA[0] + area * (AREA[1] - AREA[0])) * width * height
        aspect = math.exp(LOG_ASPECT[0] + aspect * (LOG_ASPECT[1] - LOG_ASPECT[0]))
        box_width, box_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if box_width <= width and box_height <= height:
            left, top = left * (width - box_width), top * (height - box_height)
            return left, top, left + box_width, top + box_height
    # A very long image fits no such crop: take its largest centred square.
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _mixed(values: np.ndarray | np.uint64) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))
