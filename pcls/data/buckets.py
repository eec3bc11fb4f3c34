"""Length buckets: few padded lengths for sequences of many, so that few programs are compiled and little is padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Of more distinct lengths than this, their quantiles alone are considered as boundaries: the search is quadratic.
MAX_CANDIDATES = 512


@dataclass(frozen=True)
class Bucket:
    """Records that are padded to one length.

    Attributes:
      steps: that length.
      records: [n] int64, ascending.
    """

    steps: int
    records: np.ndarray


def padded_lengths(lengths: np.ndarray, longest: int, count: int) -> tuple[int, ...]:
    """The padded lengths with which training pads the fewest steps.

    Args:
      lengths: [n] of the training records, 1 or more.
      longest: of all records, the evaluation's too.
      count: of padded lengths at most; fewer where there are fewer distinct lengths.

    Returns:
      Ascending; the last is `longest`.
    """
    values, counts = np.unique(np.append(lengths, longest), return_counts=True)
    counts[-1] -= 1
    if len(values) > MAX_CANDIDATES:
        # The largest of all is one of them: the last record's.
        places = np.linspace(0, counts.sum() - 1, MAX_CANDIDATES).round().astype(np.int64)
        chosen = np.unique(np.append(np.searchsorted(np.cumsum(counts), places, side="right"), len(values) - 1))
        counts = np.diff(np.cumsum(counts)[chosen], prepend=0)
        values = values[chosen]
    return tuple(values[_boundaries(values, counts, count)].tolist())


def _boundaries(values: np.ndarray, counts: np.ndarray, count: int) -> list[int]:
    """Places in `values`, ascending, at which groups end that take the fewest steps when each is padded to its end.

    Dynamic programming over the number of groups; of equal costs the fewest groups.
    """
    size = len(values)
    before = np.concatenate([[0], np.cumsum(counts)])
    # [start, end]: the padded steps of a group; one that ends before it starts is none.
    group = (before[None, 1:] - before[:-1, None]) * values[None, :].astype(np.float64)
    group[np.tri(size, k=-1, dtype=bool)] = np.inf
    best, starts = group[0], [np.zeros(size, np.int64)]
    totals = [best[-1]]
    for _ in range(min(count, size) - 1):
        # One more group, from `start` to each end, after the best of those before it.
        costs = np.concatenate([[np.inf], best[:-1]])[:, None] + group
        starts.append(costs.argmin(0))
        best = costs.min(0)
        totals.append(best[-1])
    ends = [size - 1]
    for of_groups in reversed(starts[1 : int(np.argmin(totals)) + 1]):
        ends.append(int(of_groups[ends[-1]]) - 1)
    return ends[::-1]


def buckets_of(lengths: np.ndarray, padded: Sequence[int]) -> tuple[Bucket, ...]:
    """Each record in the bucket of the shortest padded length that holds it; buckets without records are left out.

    Args:
      lengths: [n], none above the last of `padded`.
      padded: ascending.
    """
    bucket = np.searchsorted(padded, lengths)
    parts = ((steps, np.flatnonzero(bucket == number)) for number, steps in enumerate(padded))
    return tuple(Bucket(steps, records) for steps, records in parts if len(records))


def padding_share(lengths: np.ndarray, padded: Sequence[int]) -> float:
    """The share of all steps that are padding when each record comes once."""
    read = sum(bucket.steps * len(bucket.records) for bucket in buckets_of(lengths, padded))
    return 1 - float(np.sum(lengths, dtype=np.int64)) / max(read, 1)
