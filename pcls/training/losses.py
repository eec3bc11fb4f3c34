"""Losses of a batch of logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
    """Softmax cross-entropy of each example, in nats, computed in float32.

    Args:
      logits: [batch, classes].
      labels: [batch] int32.
      label_smoothing: share of the target that is spread evenly over all classes. Source: Szegedy et al. 2016.

    Returns:
      [batch] float32.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    # A one-hot product instead of a gather: its gradient is a product too, not a scatter.
    hit = jnp.sum(log_probabilities * jax.nn.one_hot(labels, logits.shape[-1]), -1)
    return -(1 - label_smoothing) * hit - label_smoothing * jnp.mean(log_probabilities, -1)


def weighted_mean(values: Array, weights: Array) -> Array:
    """Mean of [batch] values; 0 where all weights are 0."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1)
