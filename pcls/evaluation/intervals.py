"""Confidence intervals of what was counted: 95 %, for the set as a draw from many such records."""

from __future__ import annotations

import math

Interval = tuple[float, float]

# The normal distribution's quantile of 0.975.
Z = 1.959963984540054


def wilson(hits: int, n: int) -> Interval:
    """The interval of a share, lower and upper end; (0, 1) of nothing.

    Unlike the share plus and minus its error it has a width where all or none are hits. Source: Wilson 1927.
    """
    if not n:
        return 0.0, 1.0
    share = hits / n
    middle = share + Z**2 / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + Z**2 / n) for sign in (-1, 1))
    # Exactly 0 and 1 at the ends, where rounding leaves 1e-17.
    return (0.0 if hits == 0 else low), (1.0 if hits == n else high)


def f1_interval(hits: int, support: int, predicted: int) -> Interval:
    """The interval of an F1.

    F1 is 2 J / (1 + J), with J the share of hits among the records that carry the class or were given it. Of so many
    records the hits are binomial, so the interval of J is Wilson's, and F1 rises with J.

    Args:
      hits: records of the class that were given it.
      support, predicted: records of the class, and those that were given it.
    """
    low, high = wilson(hits, support + predicted - hits)
    return 2 * low / (1 + low), 2 * high / (1 + high)
