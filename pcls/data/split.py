"""Seeded, stratified choices of records."""

from __future__ import annotations

import numpy as np


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Chooses the same share of every class.

    Args:
      labels: [n].
      share: 0 to 1; rounded to whole records in each class, and always leaving one to train on.
      seed: of the choice.

    Returns:
      [n] bool, true for the records held out.
    """
    chosen = np.zeros(len(labels), bool)
    for records in _shuffled_by_class(labels, seed):
        count = min(round(len(records) * share), len(records) - 1)
        chosen[records[:count]] = True
    return chosen


def few_of_each(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Chooses at most `count` records of every class; [n] bool."""
    chosen = np.zeros(len(labels), bool)
    for records in _shuffled_by_class(labels, seed):
        chosen[records[:count]] = True
    return chosen


def _shuffled_by_class(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """Each class has a generator of its own, so that records of one class do not move another's choice."""
    return [
        np.random.default_rng((seed, int(label))).permutation(np.flatnonzero(labels == label))
        for label in np.unique(labels)
    ]
