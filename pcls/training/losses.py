"""Losses of a batch of logits."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pcls.config.schema import ImbalanceSection

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

# Of the effective number of a class's records. Source: Cui et al. 2019.
EFFECTIVE_BETA = 0.9999


def training_loss(name: str, imbalance: ImbalanceSection, class_counts: np.ndarray) -> Loss:
    """A loss of `LOSSES` with what the recipe does about unbalanced classes, but for their weights.

    Args:
      name: of `LOSSES`; `softmax` where logits are changed.
      imbalance: of the recipe.
      class_counts: [classes] training records.
    """
    plain, counts = LOSSES[name], np.maximum(class_counts, 1)
    added = imbalance.logit_adjustment * np.log(counts / counts.sum())
    lowered = imbalance.margin * (counts.min() / counts) ** 0.25

    def loss(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
        logits = logits.astype(jnp.float32)
        if imbalance.logit_adjustment:
            logits = logits + jnp.asarray(added, jnp.float32)
        if imbalance.margin:
            logits = logits - jax.nn.one_hot(labels, len(counts)) * jnp.asarray(lowered, jnp.float32)
        losses = plain(logits, labels, label_smoothing)
        if not imbalance.focal:
            return losses
        # From the logarithm, whose gradient is finite where the probability is 1.
        wrong = -jnp.expm1(-softmax_cross_entropy(logits, labels))
        return jnp.maximum(wrong, 1e-12) ** imbalance.focal * losses

    return loss


def class_weights(kind: str, class_counts: np.ndarray) -> np.ndarray:
    """[classes] float32 weights of the losses, whose mean over the training records is 1.

    Args:
      kind: `none`, `inverse` or `effective`, as the recipe's `imbalance.class_weights` says.
      class_counts: [classes] training records; a class without any has the weight of one with one.
    """
    counts = np.maximum(class_counts, 1)
    match kind:
        case "inverse":
            weights = 1 / counts
        case "effective":
            weights = (1 - EFFECTIVE_BETA) / -np.expm1(counts * np.log(EFFECTIVE_BETA))
        case _:
            weights = np.ones(len(counts))
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)
