"""Seeded, stratified choices of records."""

from __future__ import annotations

import numpy as np


def held_out(labels: np.ndarray, share: float, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Chooses the same share of every class.

    Args:
      labels: [n].
      share: 0 to 1; rounded to whole records in each class, and always leaving one to train on.
      seed: of the choice.
      groups: [n]; records of one group stay together; None: each record is a group.

    Returns:
      [n] bool, true for the records held out.
    """
    if groups is not None:
        return _held_out_groups(labels, share, seed, groups)
    chosen = np.zeros(len(labels), bool)
    for records in _shuffled_by_class(labels, seed):
        count = min(round(len(records) * share), len(records) - 1)
        chosen[records[:count]] = True
    return chosen


def _held_out_groups(labels: np.ndarray, share: float, seed: int, groups: np.ndarray) -> np.ndarray:
    """The same for whole groups; each counts to the class of its first record."""
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    sizes = np.bincount(group)
    chosen = np.zeros(len(first), bool)
    for some in _shuffled_by_class(labels[first], seed):
        middle = np.cumsum(sizes[some]) - sizes[some] / 2
        within = some[middle <= share * sizes[some].sum()]
        chosen[within[: len(some) - 1]] = True
    return chosen[group]


def few_of_each(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Chooses at most `count` records of every class; [n] bool."""
    chosen = np.zeros(len(labels), bool)
    for records in _shuffled_by_class(labels, seed):
        chosen[records[:count]] = True
    return chosen


def long_tailed(labels: np.ndarray, ratio: float, seed: int) -> np.ndarray:
    """Chooses ever fewer records of the classes, in their order; [n] bool.

    Args:
      labels: [n].
      ratio: how many times fewer the last class gets than the first, 1 or more; each keeps one record at least, and no
        more than it has.
      seed: of the choice.

    Source: Cui et al. 2019 (the exponential profile).
    """
    chosen = np.zeros(len(labels), bool)
    by_class = _shuffled_by_class(labels, seed)
    most = max(map(len, by_class))
    for place, records in enumerate(by_class):
        share = place / max(len(by_class) - 1, 1)
        chosen[records[: max(1, int(most * ratio**-share))]] = True
    return chosen


def _shuffled_by_class(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """Each class has a generator of its own, so that records of one class do not move another's choice."""
    return [
        np.random.default_rng((seed, int(label))).permutation(np.flatnonzero(labels == label))
        for label in np.unique(labels)
    ]
