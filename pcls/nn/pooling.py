"""Pooling over NHWC feature maps."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from pcls.nn.platform import target_platform

# Over all positions: the mean, the maximum, half of their sum, or both side by side.
Pool = Literal["avg", "max", "avgmax", "catavgmax"]


def max_pool_2x2(x: Array) -> Array:
    """Maximum over blocks of 2 x 2; an odd last row or column is left out. Of equal values the first gets the gradient.

    Not by `reduce_window`: its gradient (select-and-scatter) makes a small CNN's step twice as slow on CPU. Here the
    forward pass keeps which of the four won, one byte each, and the gradient is one select.

    Args:
      x: [batch, height, width, channels].

    Returns:
      [batch, height // 2, width // 2, channels].
    """
    return _pool_even(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2])


@jax.custom_vjp
def _pool_even(x: Array) -> Array:
    return functools.reduce(jnp.maximum, _corners(x))


def _pool_even_forward(x: Array) -> tuple[Array, Array]:
    top_left, top_right, bottom_left, bottom_right = _corners(x)
    top, bottom = jnp.maximum(top_left, top_right), jnp.maximum(bottom_left, bottom_right)
    right_of_top, right_of_bottom = (top_right > top_left), (bottom_right > bottom_left)
    winner = jnp.where(bottom > top, right_of_bottom + jnp.uint8(2), right_of_top + jnp.uint8(0))
    return jnp.maximum(top, bottom), winner


def _pool_even_backward(winner: Array, grads: Array) -> tuple[Array]:
    batch, height, width, channels = grads.shape
    corner = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    spread = jnp.where(winner[:, :, None, :, None] == corner, grads[:, :, None, :, None], 0)
    return (spread.reshape(batch, 2 * height, 2 * width, channels),)


_pool_even.defvjp(_pool_even_forward, _pool_even_backward)


def _corners(x: Array) -> tuple[Array, Array, Array, Array]:
    return x[:, ::2, ::2], x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]


def max_pool_3x3_stride_2(x: Array) -> Array:
    """Maximum over 3 x 3 windows at every second position, one position of padding: ResNet's stem.

    Args:
      x: [batch, height, width, channels].

    Returns:
      [batch, (height + 1) // 2, (width + 1) // 2, channels].
    """
    if target_platform() != "cpu":
        padding = ((0, 0), (1, 1), (1, 1), (0, 0))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    # Nine strided views and their maximum: the same numbers without select-and-scatter in the gradient.
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    views = [padded[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
    return functools.reduce(jnp.maximum, views)


def mean_pool_2x2(x: Array) -> Array:
    """Mean over blocks of 2 x 2; at an odd last row or column over those positions that there are.

    Args:
      x: [batch, height, width, channels].

    Returns:
      [batch, (height + 1) // 2, (width + 1) // 2, channels].
    """
    batch, height, width, channels = x.shape
    # The mean of a position and its copy is itself.
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return x.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels).mean((2, 4))


def global_pool(x: Array, pool: Pool) -> Array:
    """Over all positions: [batch, height, width, channels] to [batch, `pooled_width(channels, pool)`]."""
    if pool == "avg":
        return global_mean_pool(x)
    maximum = x.max((1, 2))
    if pool == "max":
        return maximum
    mean = global_mean_pool(x)
    return (mean + maximum) / 2 if pool == "avgmax" else jnp.concatenate([mean, maximum], -1)


def pooled_width(channels: int, pool: Pool) -> int:
    """Features that `global_pool` gives."""
    return 2 * channels if pool == "catavgmax" else channels


def global_mean_pool(x: Array) -> Array:
    """Mean over all positions, summed in float32: [batch, height, width, channels] to [batch, channels]."""
    return x.mean((1, 2), dtype=jnp.float32).astype(x.dtype)
