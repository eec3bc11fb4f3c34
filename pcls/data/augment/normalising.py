"""From pixels, or the steps of sequences, to what the first layer sees."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from pcls.data.preprocessing import Preprocessing


def normalise(images: Array, preprocessing: Preprocessing, dtype: jnp.dtype, lengths: Array | None = None) -> Array:
    """uint8 pixels to (x / 255 - mean) / std; sequences to (x - mean) / std, zero where they are padded.

    Args:
      images: [batch, height, width, channels] uint8, or [batch, steps, features, 1] float32.
      preprocessing: whose mean and deviation; `sequence` tells which of both the images are.
      dtype: of the result.
      lengths: [batch], steps that count; of sequences only.

    Returns:
      The same shape, in `dtype`; computed in float32.
    """
    if preprocessing.sequence is not None:
        assert lengths is not None
        return _normalised_steps(images, lengths, preprocessing).astype(dtype)
    scale = 1 / (255 * jnp.asarray(preprocessing.std, jnp.float32))
    offset = jnp.asarray(preprocessing.mean, jnp.float32) / jnp.asarray(preprocessing.std, jnp.float32)
    return (images.astype(jnp.float32) * scale - offset).astype(dtype)


def _normalised_steps(sequences: Array, lengths: Array, preprocessing: Preprocessing) -> Array:
    mean, std = (jnp.asarray(values, jnp.float32)[:, None] for values in (preprocessing.mean, preprocessing.std))
    counts = jnp.arange(sequences.shape[1]) < lengths[:, None]
    return jnp.where(counts[..., None, None], (sequences - mean) / std, 0)


def mean_colour(preprocessing: Preprocessing) -> tuple[int, ...]:
    """The grey levels that normalising takes to about 0, one a channel."""
    return tuple(min(255, round(255 * mean)) for mean in preprocessing.mean)
