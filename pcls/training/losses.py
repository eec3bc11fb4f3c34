"""Losses of a batch of logits."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pcls.config.schema import AsymmetricSection, ImbalanceSection, Recipe, TrainSection
from pcls.errors import UserError

# [batch, classes] logits, [batch] int32 labels (or [batch, classes] of 0 and 1, where records carry several) and, if
# wanted, a share of smoothing to [batch] float32.
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


def yes_and_no(targets: Array, label_smoothing: float = 0.0) -> Array:
    """[batch, classes] float32 of 0 and 1, of which a share is spread over both answers."""
    return (1 - label_smoothing) * targets.astype(jnp.float32) + label_smoothing / 2


def label_sets_cross_entropy(
    logits: Array, targets: Array, label_smoothing: float = 0.0, positive_weights: Array | float = 1.0
) -> Array:
    """Binary cross-entropy of every label by itself, the mean over labels, in nats, computed in float32.

    Args:
      logits: [batch, classes].
      targets: [batch, classes] of 0 and 1.
      label_smoothing: share of the target that is spread over yes and no.
      positive_weights: [classes], of the loss of labels that a record carries.

    Returns:
      [batch] float32.
    """
    logits, targets = logits.astype(jnp.float32), yes_and_no(targets, label_smoothing)
    carried = positive_weights * targets * jax.nn.log_sigmoid(logits)
    return -jnp.mean(carried + (1 - targets) * jax.nn.log_sigmoid(-logits), -1)


def asymmetric_loss(
    logits: Array,
    targets: Array,
    label_smoothing: float = 0.0,
    positive_weights: Array | float = 1.0,
    *,
    section: AsymmetricSection,
) -> Array:
    """The same with less weight for easy answers, of labels that a record does not carry above all.

    Of a probability p that is `(1 - p)^gamma_pos log(p)` for a label that is carried, and else, with p lowered by the
    clip, `p^gamma_neg log(1 - p)`. Gradients go through the factors too.

    Source: Ridnik et al. 2021; there the sum over labels.
    """
    logits, targets = logits.astype(jnp.float32), yes_and_no(targets, label_smoothing)
    probability, wrong = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    # Not below 1e-12: there the gradient of a power below 1 is infinite.
    lowered = jnp.maximum(probability - section.clip, 1e-12)
    # Without a clip from the logit, whose gradient is right where the probability is 1.
    log_rest = jnp.log1p(-lowered) if section.clip else jax.nn.log_sigmoid(-logits)
    carried = jnp.maximum(wrong, 1e-12) ** section.gamma_pos * jax.nn.log_sigmoid(logits)
    return -jnp.mean(positive_weights * targets * carried + (1 - targets) * lowered**section.gamma_neg * log_rest, -1)


def loss_of_label_sets(train: TrainSection) -> Loss:
    """That of a recipe whose records carry several labels."""
    if train.loss == "asymmetric":
        return partial(asymmetric_loss, section=train.asymmetric)
    return label_sets_cross_entropy


def plain_loss(recipe: Recipe) -> Loss:
    """The loss that an evaluation counts: that of the recipe, without what it does about unbalanced classes."""
    return loss_of_label_sets(recipe.train) if recipe.data.holds_label_sets else LOSSES[recipe.train.loss]


# [batch, classes] logits, labels as of `Loss` and the step to [batch] float32: what is trained on.
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


def training_loss_of_label_sets(
    train: TrainSection,
    imbalance: ImbalanceSection,
    class_counts: np.ndarray,
    records: int,
    weighted_from: int = 0,
    class_names: Sequence[str] | None = None,
) -> TrainingLoss:
    """The same where records carry several labels: class weights are of those carried, against those that are not.

    Args:
      train, imbalance: of the recipe.
      class_counts: [classes] training records that carry each label.
      records: of the training set.
      weighted_from, class_names: as `training_loss` takes them.

    Raises:
      UserError: a weight is given for a class that is not there.
    """
    plain, weights = loss_of_label_sets(train), np.ones(len(class_counts))
    if imbalance.class_weights == "given" and class_names is not None:
        weights = given_weights(dict(imbalance.weights), class_names)
    elif imbalance.class_weights == "inverse":
        weights = positive_weights(class_counts, records)

    def loss(logits: Array, targets: Array, step: Array) -> Array:
        """Weights are compiled only where there are some."""
        if imbalance.class_weights == "none":
            return plain(logits, targets, train.label_smoothing)
        own = jnp.where(step >= weighted_from, jnp.asarray(weights, jnp.float32), 1)
        return plain(logits, targets, train.label_smoothing, own)

    return loss


def positive_weights(class_counts: np.ndarray, records: int) -> np.ndarray:
    """[classes] records without a label over those with it; 1 for a label that no record or each one carries."""
    without = records - class_counts
    return np.where((class_counts > 0) & (without > 0), without / np.maximum(class_counts, 1), 1.0)


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
