"""The operations that policies draw from.

Every example of a batch has another operation. A switch between them would compute all of them for all examples, so
they are grouped by what they do: one blend, one point-wise function, one warp, each of them the identity for what
belongs to another group.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pcls.data.augment.colour import (
    blended,
    equalising_table,
    grey_levels,
    histogram,
    looked_up,
    luma,
    mean_luma,
    smoothed,
)
from pcls.data.augment.geometry import rotation, warp


class Op(IntEnum):
    """What is done; in brackets what its argument means."""

    IDENTITY = 0
    SHEAR_X = 1  # factor
    SHEAR_Y = 2  # factor
    TRANSLATE_X = 3  # pixels
    TRANSLATE_Y = 4  # pixels
    ROTATE = 5  # degrees
    BRIGHTNESS = 6  # factor
    CONTRAST = 7  # factor
    POSTERIZE = 8  # bits that are kept
    SOLARIZE = 9  # level from which pixels are inverted
    SOLARIZE_ADD = 10  # levels that are added to pixels below 128
    INVERT = 11
    AUTO_CONTRAST = 12
    EQUALIZE = 13
    COLOR = 14  # factor
    SHARPNESS = 15  # factor


class Operation(NamedTuple):
    """One for each example, or stacked.

    Attributes:
      op: int32, of `Op`.
      argument: float32.
    """

    op: Array
    argument: Array


def applied(image: Array, operation: Operation, fill: Array) -> Array:
    """The image after an operation.

    Args:
      image: [height, width, channels] uint8.
      operation: scalars.
      fill: [channels] uint8, what geometric operations bring in.
    """
    op, argument = operation
    # Two of the three are the identity, so their order is free. Left to itself the compiler computes a stage anew for
    # every place where the next one reads it: with smoothing last, which reads nine warped pixels, CPUs took four times
    # as long. Barriers keep it from the rest (1.4 times as fast; jax 0.10 ignores them on CPU).
    image = enhanced(image, op, argument)
    image = pointwise(jax.lax.optimization_barrier(image), op, argument)
    matrix = matrix_of(op, argument, image.shape[0], image.shape[1])
    return warp(jax.lax.optimization_barrier(image), matrix, fill)


def matrix_of(op: Array, argument: Array, height: int, width: int) -> Array:
    """The matrix of `warp`; the identity for operations that move nothing."""

    def only(some: Op) -> Array:
        return jnp.where(op == some, argument, 0)

    other = [[0, only(Op.SHEAR_X), only(Op.TRANSLATE_X)], [only(Op.SHEAR_Y), 0, only(Op.TRANSLATE_Y)]]
    return rotation(only(Op.ROTATE), height, width) + jnp.array(other, jnp.float32)


def pointwise(image: Array, op: Array, argument: Array) -> Array:
    """What maps a grey level to another: two straight pieces and a mask, but for equalisation's table.

    Arithmetic instead of a table of 256 entries for all: it needs no gather and melts into what is around it.
    """
    pixels = image.astype(jnp.float32)
    low, high = pixels.min((0, 1)), pixels.max((0, 1))
    stretch = jnp.where(high > low, 255 / jnp.maximum(high - low, 1), 1)
    auto = op == Op.AUTO_CONTRAST
    pivot = jnp.where(op == Op.CONTRAST, mean_luma(image), jnp.where(auto & (high > low), low, 0))
    start = jnp.where(op == Op.CONTRAST, pivot, jnp.where(op == Op.SOLARIZE_ADD, argument, 0))
    scale = jnp.where(is_any(op, (Op.BRIGHTNESS, Op.CONTRAST)), argument, jnp.where(auto, stretch, 1))
    # Pixels from here on are inverted, or left alone.
    inverts = is_any(op, (Op.SOLARIZE, Op.INVERT))
    threshold = jnp.where(op == Op.SOLARIZE, argument, jnp.where(op == Op.INVERT, 0, 256))
    threshold = jnp.where(op == Op.SOLARIZE_ADD, 128, threshold)
    above = jnp.where(inverts, 255 - pixels, pixels)
    result = grey_levels(jnp.where(pixels >= threshold, above, start + scale * (pixels - pivot)))
    lost_bits = jnp.where(op == Op.POSTERIZE, 8 - argument, 0).astype(jnp.int32)
    result = result & ((255 << lost_bits) & 255).astype(jnp.uint8)
    equalised = looked_up(image, equalising_table(histogram(image)))
    return jnp.where(op == Op.EQUALIZE, equalised, result)


def enhanced(image: Array, op: Array, argument: Array) -> Array:
    """What blends an image with a poorer one: without its colours, or without its edges."""
    factor = jnp.where(is_any(op, (Op.COLOR, Op.SHARPNESS)), argument, 1)
    return blended(jnp.where(op == Op.COLOR, luma(image), smoothed(image)), image, factor)


def is_any(op: Array, ops: tuple[Op, ...]) -> Array:
    """Whether an operation is one of these."""
    return jnp.any(op == jnp.array(ops))
