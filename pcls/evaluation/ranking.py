"""How well scores rank the records that carry a label before those that do not."""

from __future__ import annotations

import numpy as np


def average_precision(carries: np.ndarray, scores: np.ndarray) -> float | None:
    """The mean, over the records that carry a label, of the precision among all that score as high or higher.

    Records of one score come in no order: each counts with the precision of all of them. None where no record carries
    the label.

    Args:
      carries: [n] bool.
      scores: [n], any increasing function of the probability; one that is no number counts as the lowest.
    """
    if not carries.any():
        return None
    scores = np.where(np.isnan(scores), -np.inf, scores)
    _, which, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    found = np.bincount(which, carries, len(counts))
    precision = np.cumsum(found) / np.cumsum(counts)
    return float((found * precision).sum() / found.sum())
