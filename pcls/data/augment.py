"""Augmentation on the device, in the compiled step.

The key of each image is a pure function of (seed, epoch, record number): the same picture in the same epoch is
changed in the same way, whatever the batch, mesh or host that it passes through.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from pcls.config.schema import AugmentSection
from pcls.data.preprocessing import Preprocessing


def record_keys(key: Array, epochs: Array, records: Array) -> Array:
    """One key an image.

    Args:
      key: of the run.
      epochs, records: [batch] int32.

    Returns:
      [batch] keys.
    """
    return jax.vmap(lambda epoch, record: jax.random.fold_in(jax.random.fold_in(key, epoch), record))(epochs, records)


def augment(images: Array, keys: Array, section: AugmentSection) -> Array:
    """Applies what the recipe names, in its order: shift, then flip.

    Args:
      images: [batch, height, width, channels], any type.
      keys: [batch].

    Returns:
      The same shape and type.
    """
    if section.shift:
        images = jax.vmap(lambda image, key: shift(image, key, section.shift))(images, keys)
    if section.flip:
        images = jax.vmap(flip)(images, keys)
    return images


def shift(image: Array, key: Array, pixels: int) -> Array:
    """Moves an image by -pixels to +pixels on each axis, zeros moving in. [height, width, channels]."""
    offset = jax.random.randint(jax.random.fold_in(key, 0), (2,), 0, 2 * pixels + 1)
    padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
    return jax.lax.dynamic_slice(padded, (offset[0], offset[1], 0), image.shape)


def flip(image: Array, key: Array) -> Array:
    """Mirrors half of the images left to right. [height, width, channels]."""
    return jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 1)), image[:, ::-1], image)


def normalise(images: Array, preprocessing: Preprocessing, dtype: jnp.dtype) -> Array:
    """uint8 pixels to (x / 255 - mean) / std.

    Returns:
      The same shape, in `dtype`; computed in float32.
    """
    scale = 1 / (255 * jnp.asarray(preprocessing.std, jnp.float32))
    offset = jnp.asarray(preprocessing.mean, jnp.float32) / jnp.asarray(preprocessing.std, jnp.float32)
    return (images.astype(jnp.float32) * scale - offset).astype(dtype)
