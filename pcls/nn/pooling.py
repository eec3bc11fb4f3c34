"""Pooling over NHWC feature maps."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array


def max_pool_2x2(x: Array) -> Array:
    """Maximum over blocks of 2 x 2; an odd last row or column is left out.

    By reshape, because `reduce_window`'s gradient (select-and-scatter) makes a small CNN's step 2.1x slower on CPU.

    Args:
      x: [batch, height, width, channels].

    Returns:
      [batch, height // 2, width // 2, channels].
    """
    batch, height, width, channels = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


def max_pool_3x3_stride_2(x: Array) -> Array:
    """Maximum over 3 x 3 windows at every second position, one position of padding: ResNet's stem.

    Args:
      x: [batch, height, width, channels].

    Returns:
      [batch, (height + 1) // 2, (width + 1) // 2, channels].
    """
    if jax.default_backend() != "cpu":
        padding = ((0, 0), (1, 1), (1, 1), (0, 0))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    # Nine strided views and their maximum: the same numbers without select-and-scatter in the gradient.
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    views = [padded[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
    return functools.reduce(jnp.maximum, views)


def global_mean_pool(x: Array) -> Array:
    """Mean over all positions, summed in float32: [batch, height, width, channels] to [batch, channels]."""
    return x.mean((1, 2), dtype=jnp.float32).astype(x.dtype)
