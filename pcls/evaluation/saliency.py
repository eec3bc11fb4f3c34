"""Where a model looks: which parts of an image, or which steps, speak for a class and which against it.

Each map says how a score, the logit of a class, hangs on the parts of the input. It is a property of the model at one
input, not a proof of what the model has learned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Images [batch, height, width, channels] to logits [batch, classes].
Predict = Callable[[Array], Array]


def grad_cam(classify: Predict, maps: Array, classes: Array) -> Array:
    """The weighted sum of a convolutional network's last maps, where it is positive.

    A channel's weight is the mean of the score's gradient over its positions.

    Args:
      classify: maps to logits.
      maps: [batch, rows, columns, channels].
      classes: [batch] class numbers.

    Returns:
      [batch, rows, columns] float32.

    Source: Selvaraju et al. 2017.
    """
    weights = _gradient(classify, maps, classes).mean((1, 2), keepdims=True)
    return jax.nn.relu((weights * maps).sum(-1)).astype(jnp.float32)


def gradient_times_input(predict: Predict, images: Array, classes: Array) -> Array:
    """The score's gradient times the input.

    Of a linear model these are its terms: they sum to the score minus that of an input of zeros.

    Args:
      predict: images to logits.
      images: [batch, height, width, channels], normalised: zero is the mean of the set.
      classes: [batch] class numbers.

    Returns:
      [batch, height, width, channels] float32.

    Source: Shrikumar et al. 2016.
    """
    return (_gradient(predict, images, classes) * images).astype(jnp.float32)


def integrated_gradients(predict: Predict, images: Array, classes: Array, steps: int = 32) -> Array:
    """The mean gradient on the way from an input of zeros, times the input.

    They sum to the score minus that of zeros, up to the error of the mean over so many points (the midpoint rule).

    Args:
      predict, images, classes: as for `gradient_times_input`.
      steps: points on the way.

    Returns:
      [batch, height, width, channels] float32.

    Source: Sundararajan et al. 2017.
    """
    shares = (jnp.arange(steps, dtype=images.dtype) + 0.5) / steps
    # All points in one batch: convolutions in a loop's body are slow on CPU.
    points = (images[:, None] * shares[:, None, None, None]).reshape(-1, *images.shape[1:])
    gradients = _gradient(predict, points, jnp.repeat(classes, steps)).astype(jnp.float32)
    return gradients.reshape(-1, steps, *images.shape[1:]).mean(1) * images.astype(jnp.float32)


def _gradient(predict: Predict, inputs: Array, classes: Array) -> Array:
    """Of each row's own score, in the row; a prediction mixes no rows, so the gradient of the sum has all of them."""

    def score(values: Array) -> Array:
        return jnp.take_along_axis(predict(values), classes[:, None], 1).astype(jnp.float32).sum()

    return jax.grad(score)(inputs)


def step_relevance(relevance: np.ndarray, order: Literal["rows", "columns"]) -> np.ndarray:
    """The relevance of each step of a model that reads by rows or by columns: the sum over what is in the step.

    Args:
      relevance: [height, width, channels].
      order: of reading.

    Returns:
      [steps] float64.
    """
    return np.asarray(relevance.sum((1 if order == "rows" else 0, 2), dtype=np.float64))


def patch_relevance(relevance: np.ndarray, patch: int) -> np.ndarray:
    """The relevance of each square patch, at every pixel of it.

    Args:
      relevance: [height, width, channels]; sides are multiples of `patch`.
      patch: its side.

    Returns:
      [height, width] float64.
    """
    height, width, _ = relevance.shape
    blocks = relevance.sum(-1, dtype=np.float64).reshape(height // patch, patch, width // patch, patch)
    return np.asarray(blocks.sum((1, 3)).repeat(patch, 0).repeat(patch, 1))


# Blue speaks for the class, orange against it: Okabe and Ito's, which all kinds of sight tell apart.
FOR, AGAINST = np.array([0, 130, 220]), np.array([230, 100, 0])


def coloured(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The picture in pale grey, and over it what speaks for a class in blue and what against it in orange.

    Args:
      picture: uint8 [height, width, 1 or 3].
      heat: [height, width]; the strongest gets full colour, whatever its number is.

    Returns:
      [height, width, 3] uint8.
    """
    grey = 120 + 0.5 * picture.astype(np.float64).mean(-1, keepdims=True)
    strength = np.abs(heat) / max(float(np.abs(heat).max()), 1e-30)
    colour = np.where(heat[..., None] > 0, FOR, AGAINST)
    opacity = 0.85 * np.sqrt(strength)[..., None]
    return np.round(opacity * colour + (1 - opacity) * grey).clip(0, 255).astype(np.uint8)
