"""From which probability on a label is given: one threshold for each, chosen by F1."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit

# Records with a label and without it, below which its own threshold would be chosen by chance.
MIN_CARRIERS = 10
# Where nothing can be chosen.
EVEN = 0.5
# What the threshold of all labels may be: 0.01, 0.02 ... 0.99.
GRID = np.arange(1, 100) / 100


class Thresholds(NamedTuple):
    """Thresholds of labels.

    Attributes:
      values: [classes] float64; a label is given from this probability on.
      own: [classes] bool, whether it is the label's own, not that of all labels together.
    """

    values: np.ndarray
    own: np.ndarray

    @classmethod
    def even(cls, classes: int) -> Thresholds:
        """0.5 for all."""
        return cls(np.full(classes, EVEN), np.zeros(classes, bool))


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Of labels, float64; of a logit that is no number 0. A prediction computes them alike."""
    return np.nan_to_num(expit(logits.astype(np.float64)), nan=0.0)


def choose(targets: np.ndarray, logits: np.ndarray) -> Thresholds:
    """The threshold of each label with the best F1; of one that few records carry, or lack, that of all together.

    Args:
      targets: [n, classes] of 0 and 1.
      logits: [n, classes].
    """
    found = Thresholds.even(targets.shape[1])
    found.values[:] = threshold_of_all(targets, logits)
    for label, carries in enumerate(targets.T > 0):
        if min(carries.sum(), (~carries).sum()) >= MIN_CARRIERS:
            found.values[label] = best_threshold(carries, probabilities(logits[:, label]))
            found.own[label] = True
    return found


def best_threshold(carries: np.ndarray, scores: np.ndarray) -> float:
    """The threshold with the best F1, of equally good ones the highest; halfway between two scores.

    Args:
      carries: [n] bool, of some records true.
      scores: [n] probabilities.
    """
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    f1 = 2 * np.cumsum(carries[order]) / (np.arange(1, len(order) + 1) + carries.sum())
    # Records of one score are all above a threshold or all below it.
    last = np.append(falling[1:] < falling[:-1], True)
    place = int(np.where(last, f1, -1).argmax())
    above, below = falling[place], falling[place + 1] if place + 1 < len(falling) else 0.0
    halfway = (above + below) / 2
    # Between neighbours among the numbers there is no other.
    return float(halfway if halfway > below else above)


def threshold_of_all(targets: np.ndarray, logits: np.ndarray) -> float:
    """The one threshold of a grid with the best F1 over all labels together; 0.5 where no record carries any."""
    every, carried = np.zeros(len(GRID) + 1), np.zeros(len(GRID) + 1)
    for label, carries in enumerate(targets.T > 0):
        # By how many thresholds a probability reaches.
        reached = np.searchsorted(GRID, probabilities(logits[:, label]), side="right")
        every += np.bincount(reached, minlength=len(every))
        carried += np.bincount(reached[carries], minlength=len(every))
    if not carried.any():
        return EVEN
    given, hits = every[::-1].cumsum()[::-1][1:], carried[::-1].cumsum()[::-1][1:]
    f1 = 2 * hits / np.maximum(given + carried.sum(), 1)
    # The middle of the best: at an end of them the next records would tip it over.
    best = np.flatnonzero(f1 == f1.max())
    return float(GRID[best[len(best) // 2]])
