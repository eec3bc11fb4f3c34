"""The orders in which a picture is read as a sequence."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from pcls.errors import UserError

Order = Literal["rows", "columns", "pixels", "patches", "hilbert"]

CUSTOMARY_ORDER: Order = "rows"
# Divides 28, 32, 48, 64, 96 and 224.
CUSTOMARY_PATCH = 4


@dataclass(frozen=True)
class Reading:
    """How a picture becomes a sequence of steps.

    Attributes:
      order: a step is one of the `rows` or `columns`, of the `pixels` row by row, of the square `patches` row by row,
        or of the pixels along a `hilbert` curve, on which neighbours stay near each other.
      patch: height and width of a patch in pixels.
    """

    order: Order
    patch: int = CUSTOMARY_PATCH

    def features(self, height: int, width: int, channels: int) -> int:
        """Numbers in a step.

        Raises:
          UserError: the patch does not divide the picture.
        """
        if self.order == "patches" and (height % self.patch or width % self.patch):
            divisors = [str(size) for size in range(1, min(height, width) + 1) if not (height % size or width % size)]
            # The recipe may have left the size to us.
            raise UserError(
                f"patches of {self.patch} x {self.patch} pixels do not divide images of {height} x {width}; "
                f"write model.patch={' or '.join(divisors)}"
            )
        across = {"rows": width, "columns": height, "patches": self.patch**2}
        return across.get(self.order, 1) * channels

    def __call__(self, images: Array, lengths: Array | None = None) -> Array:
        """Reads.

        Args:
          images: [batch, height, width, channels]; where `lengths` is given, sequences: the rows are their steps.
          lengths: [batch] int32, rows that count.

        Returns:
          [batch, steps, features].

        Raises:
          UserError: sequences that are not read by rows.
        """
        if lengths is not None and self.order != "rows":
            raise UserError(f"model.read is {self.order!r}, and sequences are read by rows, their steps; leave it out")
        batch, height, width, channels = images.shape
        if self.order == "rows":
            return images.reshape(batch, height, -1)
        if self.order == "columns":
            return images.swapaxes(1, 2).reshape(batch, width, -1)
        if self.order == "patches":
            rows, columns = height // self.patch, width // self.patch
            blocks = images.reshape(batch, rows, self.patch, columns, self.patch, channels)
            return blocks.swapaxes(2, 3).reshape(batch, rows * columns, -1)
        pixels = images.reshape(batch, height * width, channels)
        return pixels if self.order == "pixels" else jnp.take(pixels, hilbert_curve(height, width), 1)


@functools.cache
def hilbert_curve(height: int, width: int) -> np.ndarray:
    """The pixels of a picture along a Hilbert curve that is generalised to any rectangle.

    In squares of 2^n pixels it is Hilbert's. Each step goes to one of the four neighbours, but for one step along a
    diagonal where the longer side is odd and the shorter even.

    Returns:
      [height * width] int32, row * width + column of each pixel.

    Source: Hilbert 1891; rectangles: Červený 2018 ("gilbert").
    """
    if width >= height:
        points = _walk(0, complex(width), complex(0, height))
    else:
        points = _walk(0, complex(0, height), complex(width))
    order = np.array([round(point.imag) * width + round(point.real) for point in points], np.int32)
    order.flags.writeable = False
    return order


def _walk(start: complex, along: complex, across: complex) -> Iterator[complex]:
    """Every point of a box, x + iy, from `start` to the other end of its side `along`.

    Args:
      start: a corner.
      along, across: the box's sides, each parallel to an axis.
    """
    length, breadth = round(abs(along)), round(abs(across))
    ahead, aside = along / length, across / breadth
    if breadth == 1:
        yield from (start + ahead * step for step in range(length))
    elif length == 1:
        yield from (start + aside * step for step in range(breadth))
    elif 2 * length > 3 * breadth:
        near = ahead * _even_half(length)
        yield from _walk(start, near, across)
        yield from _walk(start + near, along - near, across)
    else:
        # To the side, along, and back.
        near, half = aside * _even_half(breadth), ahead * (length // 2)
        yield from _walk(start, near, half)
        yield from _walk(start + near, along, across - near)
        yield from _walk(start + along - ahead + near - aside, -near, half - along)


def _even_half(size: int) -> int:
    """Half of a side, even where it can be: an odd box leaves the walk in another corner than an even one."""
    half = size // 2
    return half + 1 if half % 2 and size > 2 else half
