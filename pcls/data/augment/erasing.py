"""Random erasing, of normalised images. Source: Zhong et al. 2020."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

from pcls.config.schema import AugmentSection
from pcls.data.augment.keys import Draw
from pcls.data.augment.mixing import Box, box_mask

# Shares of the image's area, and height by width of the box.
AREA, ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)


def erase(images: Array, keys: Array, section: AugmentSection) -> Array:
    """Erases a box of some of the images.

    Args:
      images: [batch, height, width, channels], normalised.
      keys: [batch].
      section: of the recipe.

    Returns:
      The same shape and type.
    """
    if not section.erase:
        return images
    noise = section.erase_fill == "noise"
    return jax.vmap(lambda image, key: erased(image, key, section.erase, noise=noise))(images, keys)


def erased(image: Array, key: Array, probability: float, *, noise: bool) -> Array:
    """An image with a box of zeros or of normal noise, or as it is."""
    whether, shape, place, fill = jax.random.split(jax.random.fold_in(key, Draw.ERASE), 4)
    height, width, _ = image.shape
    mask = box_mask(erased_box(shape, place, height, width), height, width) & jax.random.bernoulli(whether, probability)
    filling = jax.random.normal(fill, image.shape, image.dtype) if noise else jnp.zeros((), image.dtype)
    return jnp.where(mask[..., None], filling, image)


def erased_box(shape: Array, place: Array, height: int, width: int) -> Box:
    """A box within the image.

    Its area is uniform, its aspect uniform in the logarithm. One that is longer than the image is cut to its length;
    the paper draws again, which would be a loop.
    """
    area, aspect = jax.random.uniform(shape, (2,))
    area = (AREA[0] + area * (AREA[1] - AREA[0])) * height * width
    aspect = jnp.exp(math.log(ASPECT[0]) + aspect * math.log(ASPECT[1] / ASPECT[0]))
    rows = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, height).astype(jnp.int32)
    columns = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, width).astype(jnp.int32)
    corner = jax.random.randint(place, (2,), 0, jnp.stack([height - rows, width - columns]) + 1)
    return Box(corner[0], corner[0] + rows, corner[1], corner[1] + columns)
