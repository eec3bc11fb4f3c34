"""Held-out records whose given label the model doubts: candidates for a wrong label."""

from __future__ import annotations

import numpy as np


def label_issues(labels: np.ndarray, predicted: np.ndarray, probability: np.ndarray, nll: np.ndarray) -> np.ndarray:
    """Records that the model confidently puts into another class, the widest margin first.

    Confident is a probability of at least what records of that class get for it on average, so that a class of which
    the model is never sure is judged by its own measure. The margin is the predicted class's probability minus the
    label's. The model must not have been trained on these records.

    Args:
      labels, predicted: [n] class numbers.
      probability: [n], of the predicted class.
      nll: [n], minus the logarithm of the label's probability.

    Returns:
      Places among the n.

    Source: Northcutt et al. 2021 (confident learning), of whose confident joint these are the entries off the diagonal
    that the most probable class makes.
    """
    own = np.exp(-nll)
    classes = int(max(labels.max(initial=-1), predicted.max(initial=-1))) + 1
    counts = np.bincount(labels, minlength=classes)
    # A class without held-out records has no measure of its own.
    usual = np.where(counts > 0, np.bincount(labels, own, classes) / np.maximum(counts, 1), np.inf)
    margin = probability - own
    # "At least" is false of NaN: a model that answers it doubts nothing.
    found = np.flatnonzero((predicted != labels) & (probability >= usual[predicted]) & (margin > 0))
    return found[np.argsort(-margin[found], kind="stable")]
