"""What pixels become, each by itself or with its neighbours. Images are [height, width, channels] uint8.

As in Pillow, every result is cut down to whole grey levels, so an image may pass through several of these.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pcls.data.augment.keys import Draw
from pcls.nn.platform import target_platform


def grey_levels(values: Array) -> Array:
    """Float32 values as uint8: cut off, not rounded."""
    return jnp.clip(values, 0, 255).astype(jnp.uint8)


def luma(image: Array) -> Array:
    """Brightness as ITU-R 601-2 weighs the colours, in the integers of Pillow. [height, width, 1] uint8.

    What is neither grey nor RGB has no colours: the mean of its channels.
    """
    if image.shape[-1] == 1:
        return image
    if image.shape[-1] != 3:
        return jnp.round(jnp.mean(image, -1, keepdims=True, dtype=jnp.float32)).astype(jnp.uint8)
    red, green, blue = (image[..., channel : channel + 1].astype(jnp.int32) for channel in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(jnp.uint8)


def mean_luma(image: Array) -> Array:
    """The mean brightness in whole grey levels, a float32 scalar."""
    return jnp.floor(jnp.mean(luma(image), dtype=jnp.float32) + 0.5)


def blended(degenerate: Array, image: Array, factor: Array) -> Array:
    """Between 0, the degenerate image, and 1, the image; and beyond. All three broadcast."""
    start = degenerate.astype(jnp.float32)
    return grey_levels(start + factor * (image.astype(jnp.float32) - start))


def smoothed(image: Array) -> Array:
    """A mean over 3 x 3 pixels in which the middle counts five times; the outermost pixels stay as they are."""
    pixels = image.astype(jnp.float32)
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    boxes = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inner = grey_levels((boxes + 4 * pixels[1:-1, 1:-1]) / 13 + 0.5)
    return image.at[1:-1, 1:-1].set(inner)


def histogram(image: Array) -> Array:
    """Pixels of each grey level, [channels, 256] int32."""
    channels = image.shape[-1]
    if target_platform() != "tpu":
        return jnp.zeros(256 * channels, jnp.int32).at[places(image)].add(1).reshape(channels, 256)
    # TPUs scatter one element after the other. The same counts as a matrix product: the upper four bits of a level
    # say the row, the lower four the column. Products of ones are exact in bfloat16, sums of them in float32.
    upper, lower = digits(image)
    counts = jnp.einsum("hwcu,hwcl->cul", upper, lower, preferred_element_type=jnp.float32)
    return counts.reshape(channels, 256).astype(jnp.int32)


def places(image: Array) -> Array:
    """Where each pixel lies in a table of [channels, 256] that is laid out flat, int32."""
    return image.astype(jnp.int32) + 256 * jnp.arange(image.shape[-1], dtype=jnp.int32)


def digits(image: Array) -> tuple[Array, Array]:
    """The upper and the lower four bits of each pixel, as one-hot bfloat16 of 16."""
    return jax.nn.one_hot(image >> 4, 16, dtype=jnp.bfloat16), jax.nn.one_hot(image & 15, 16, dtype=jnp.bfloat16)


def equalising_table(counts: Array) -> Array:
    """The table of `looked_up` that spreads the levels of an image evenly, as Pillow's `equalize` does.

    Args:
      counts: [channels, 256] int32, of the image.

    Returns:
      [channels, 256] uint8; a channel that cannot be spread stays as it is.
    """
    below = jnp.cumsum(counts, 1) - counts
    # Pixels below the brightest level that occurs.
    step = jnp.max(jnp.where(counts > 0, below, 0), 1, keepdims=True) // 255
    table = (step // 2 + below) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(table, 255), jnp.arange(256)).astype(jnp.uint8)


def looked_up(image: Array, table: Array) -> Array:
    """`table[channel, level]` for every pixel; the table is [channels, 256] uint8."""
    if target_platform() != "tpu":
        return table.reshape(-1)[places(image)]
    # As in `histogram`: a gather for each pixel would be slow there. Levels up to 255 are exact in bfloat16.
    upper, lower = digits(image)
    rows = jnp.einsum("hwcu,cul->hwcl", upper, table.reshape(-1, 16, 16).astype(jnp.bfloat16))
    return jnp.sum(rows * lower, -1).astype(jnp.uint8)


def hue_turned(image: Array, turn: Array) -> Array:
    """Moves the hue by a share of the colour circle. RGB.

    In float32; Pillow's conversion to HSV and back rounds hue and saturation to 256 steps on the way.
    """
    pixels = image.astype(jnp.float32)
    value, least = pixels.max(-1, keepdims=True), pixels.min(-1, keepdims=True)
    chroma = value - least
    red, green, blue = (pixels[..., channel : channel + 1] for channel in range(3))
    safe = jnp.maximum(chroma, 1)
    sixths = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    place = (jnp.array([5, 3, 1], jnp.float32) + sixths + 6 * turn) % 6
    return grey_levels(value - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0, 1) + 0.5)


class Jitter(NamedTuple):
    """How far colours may be changed, as in torchvision.

    Attributes:
      brightness, contrast, saturation: a factor is uniform from 1 - this (at least 0) to 1 + this.
      hue: uniform from -this to +this, as a share of the colour circle.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float


def jittered(image: Array, key: Array, most: Jitter) -> Array:
    """Changes brightness, contrast, saturation and hue, in this order; torchvision draws the order too."""
    keys = jax.random.split(jax.random.fold_in(key, Draw.JITTER), len(most))

    def factor(index: int) -> Array:
        return jax.random.uniform(keys[index], minval=max(0.0, 1 - most[index]), maxval=1 + most[index])

    if most.brightness:
        image = blended(jnp.zeros_like(image), image, factor(0))
    if most.contrast:
        image = blended(mean_luma(image), image, factor(1))
    if most.saturation:
        image = blended(luma(image), image, factor(2))
    if most.hue:
        image = hue_turned(image, jax.random.uniform(keys[3], minval=-most.hue, maxval=most.hue))
    return image


def greyscaled(image: Array, key: Array, probability: float) -> Array:
    """Takes the colours away from a share of the images."""
    grey = jax.random.bernoulli(jax.random.fold_in(key, Draw.GREYSCALE), probability)
    return jnp.where(grey, luma(image), image)
