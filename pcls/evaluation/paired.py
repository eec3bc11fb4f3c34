"""Two classifiers on the same records: is the difference of their accuracies more than chance?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr

from pcls.evaluation.intervals import Interval

RESAMPLES, SEED = 10_000, 0


@dataclass(frozen=True)
class ClassWins:
    """One class's records: how many, and how many only one of the two gets right."""

    name: str
    n: int
    only_first: int
    only_second: int


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same records.

    Attributes:
      n: records.
      both, only_first, only_second, neither: records that both, one, or none of them get right.
      interval: 95 % of the second's accuracy minus the first's.
      p: probability of so uneven a split of the records that only one gets right, or a more uneven one, if both were
        equally good; two-sided, exact.
      classes: those with records, in their order.
    """

    n: int
    both: int
    only_first: int
    only_second: int
    neither: int
    interval: Interval
    p: float
    classes: tuple[ClassWins, ...]

    @property
    def first(self) -> float:
        """Accuracy of the first."""
        return (self.both + self.only_first) / self.n

    @property
    def second(self) -> float:
        """Accuracy of the second."""
        return (self.both + self.only_second) / self.n

    @property
    def difference(self) -> float:
        """The second's accuracy minus the first's."""
        return (self.only_second - self.only_first) / self.n


def compare(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, class_names: Sequence[str], seed: int = SEED
) -> Comparison:
    """Compares two lists of answers.

    Args:
      labels, first, second: [n] class numbers, n at least 1: the labels, and what each of the two predicts.
      class_names: in label order.
      seed: of the resamples.
    """
    one, two = labels == first, labels == second
    only_first, only_second = one & ~two, two & ~one
    wins = [np.bincount(labels[some], minlength=len(class_names)) for some in (one | ~one, only_first, only_second)]
    b, c = int(only_first.sum()), int(only_second.sum())
    return Comparison(
        n=len(labels),
        both=int((one & two).sum()),
        only_first=b,
        only_second=c,
        neither=int((~one & ~two).sum()),
        interval=bootstrap_interval(len(labels), b, c, seed),
        p=mcnemar(b, c),
        classes=tuple(
            ClassWins(name, int(n), int(left), int(right))
            for name, n, left, right in zip(class_names, *wins, strict=True)
            if n
        ),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's test; exact (binomial) for any number of records.

    Source: McNemar 1947.
    """
    if only_first == only_second:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def bootstrap_interval(n: int, only_first: int, only_second: int, seed: int = SEED) -> Interval:
    """The 95 % percentile interval of the difference of two accuracies, over resamples of the records in pairs.

    A resample is known by how many of its n records are of each kind, and these numbers are a multinomial draw.

    Args:
      n: records, of which some only the first and others only the second gets right.
      only_first, only_second: how many these are.
      seed: of the draws.
    """
    kinds = np.array([only_first, only_second, n - only_first - only_second]) / n
    drawn = np.random.default_rng(seed).multinomial(n, kinds, RESAMPLES)
    low, high = np.percentile((drawn[:, 1] - drawn[:, 0]) / n, [2.5, 97.5])
    return float(low), float(high)
