"""From pixels to what the first layer sees."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from pcls.data.preprocessing import Preprocessing


def normalise(images: Array, preprocessing: Preprocessing, dtype: jnp.dtype) -> Array:
    """uint8 pixels to (x / 255 - mean) / std.

    Returns:
      The same shape, in `dtype`; computed in float32.
    """
    scale = 1 / (255 * jnp.asarray(preprocessing.std, jnp.float32))
    offset = jnp.asarray(preprocessing.mean, jnp.float32) / jnp.asarray(preprocessing.std, jnp.float32)
    return (images.astype(jnp.float32) * scale - offset).astype(dtype)


def mean_colour(preprocessing: Preprocessing) -> tuple[int, ...]:
    """The grey levels that normalising takes to about 0, one a channel."""
    return tuple(min(255, round(255 * mean)) for mean in preprocessing.mean)
