"""Losses of a batch of logits."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

# [batch, classes] logits, [batch] int32 labels and, if wanted, a share of smoothing to [batch] float32.
Loss = Callable[..., Array]


def softmax_cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
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


def sigmoid_cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
    """Binary cross-entropy of every class by itself, the mean over classes, in nats, computed in float32.

    Arguments and result as in `softmax_cross_entropy`. Source: Beyer et al. 2020; the mean as in Wightman et al. 2021.
    """
    logits = logits.astype(jnp.float32)
    hit = jax.nn.one_hot(labels, logits.shape[-1])
    targets = (1 - label_smoothing) * hit + label_smoothing / logits.shape[-1]
    return -jnp.mean(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits), -1)


LOSSES: dict[str, Loss] = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy}
