"""Losses of a batch of logits."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pcls.config.schema import ImbalanceSection, TrainSection
from pcls.errors import UserError

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

# [batch, classes] logits, [batch] int32 labels and the step to [batch] float32: what is trained on.
TrainingLoss = Callable[[Array, Array, Array], Array]

# Of the effective number of a class's records. Source: Cui et al. 2019.
EFFECTIVE_BETA = 0.9999
# Names of classes that an error lists.
SHOWN = 8


def training_loss(
    train: TrainSection,
    imbalance: ImbalanceSection,
    class_counts: np.ndarray,
    weighted_from: int = 0,
    class_names: Sequence[str] | None = None,
) -> TrainingLoss:
    """The loss that a recipe trains with, and what it does about unbalanced classes.

    Args:
      train, imbalance: of the recipe.
      class_counts: [classes] training records.
      weighted_from: the step from which class weights hold.
      class_names: in label order; None: unknown, given weights are all 1.

    Raises:
      UserError: a weight is given for a class that is not there.
    """
    plain, counts = LOSSES[train.loss], np.maximum(class_counts, 1)
    added = imbalance.logit_adjustment * log_shares(class_counts)
    lowered = imbalance.margin * (counts.min() / counts) ** 0.25
    given = np.ones(len(counts)) if class_names is None else given_weights(dict(imbalance.weights), class_names)
    weights = class_weights(imbalance.class_weights, class_counts, given)

    def loss(logits: Array, labels: Array, step: Array) -> Array:
        """Only what the recipe asks for is compiled."""
        logits = logits.astype(jnp.float32)
        if imbalance.logit_adjustment:
            logits = logits + jnp.asarray(added, jnp.float32)
        if imbalance.margin:
            logits = logits - _of_labels(labels, lowered)[:, None] * jax.nn.one_hot(labels, len(counts))
        losses = plain(logits, labels, train.label_smoothing)
        if imbalance.focal:
            # From the logarithm, whose gradient is finite where the probability is 1.
            wrong = -jnp.expm1(-softmax_cross_entropy(logits, labels))
            losses = jnp.maximum(wrong, 1e-12) ** imbalance.focal * losses
        if imbalance.class_weights != "none":
            losses = losses * jnp.where(step >= weighted_from, _of_labels(labels, weights), 1)
        return losses

    return loss


def _of_labels(labels: Array, by_class: np.ndarray) -> Array:
    """[batch] numbers of the labels' classes; a product instead of a gather, as in the loss."""
    return jnp.sum(jax.nn.one_hot(labels, len(by_class)) * jnp.asarray(by_class, jnp.float32), -1)


def log_shares(class_counts: np.ndarray) -> np.ndarray:
    """[classes] logarithms of the classes' shares of the records; one without any counts as one with one."""
    counts = np.maximum(class_counts, 1)
    return np.log(counts / counts.sum())


def given_weights(weights: Mapping[str, float], class_names: Sequence[str]) -> np.ndarray:
    """[classes] weights by name; those of classes that are not named are 1.

    Raises:
      UserError: a name that no class has.
    """
    for name in weights:
        if name not in class_names:
            close = difflib.get_close_matches(name, class_names, n=3)
            known = f"the nearest: {', '.join(close)}" if close else f"classes: {', '.join(class_names[:SHOWN])}"
            more = ", ..." if not close and len(class_names) > SHOWN else ""
            raise UserError(f"imbalance.weights names {name!r}, and the data has no such class; {known}{more}")
    return np.array([weights.get(name, 1.0) for name in class_names])


def class_weights(kind: str, class_counts: np.ndarray, given: np.ndarray | float = 1.0) -> np.ndarray:
    """[classes] float32 weights of the losses, whose mean over the training records is 1.

    Args:
      kind: `none`, `inverse`, `effective` or `given`, as the recipe's `imbalance.class_weights` says.
      class_counts: [classes] training records; a class without any has the weight of one with one.
      given: [classes], those of `given`.
    """
    counts = np.maximum(class_counts, 1)
    match kind:
        case "given":
            weights = given * np.ones(len(counts))
        case "inverse":
            weights = 1 / counts
        case "effective":
            weights = (1 - EFFECTIVE_BETA) / -np.expm1(counts * np.log(EFFECTIVE_BETA))
        case _:
            weights = np.ones(len(counts))
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)
