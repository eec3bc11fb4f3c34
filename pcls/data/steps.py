"""What is known of the steps of a set of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, cast

import numpy as np

from pcls.data.buckets import padding_share
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.source import Sequences, Source
from pcls.data.workers import usable_cores

# Read at once by a thread, padded to the longest of them.
RECORDS_AT_ONCE = 64


class Moments(NamedTuple):
    """Of some steps, by feature.

    Attributes:
      steps: their number.
      mean: [features] float64.
      squares: [features] float64, the sum of the squared distances from the mean.
    """

    steps: int
    mean: np.ndarray
    squares: np.ndarray

    def joined(self, other: Moments) -> Moments:
        """Of both. Source: Chan, Golub & LeVeque 1979."""
        steps = self.steps + other.steps
        apart, share = other.mean - self.mean, other.steps / max(steps, 1)
        squares = self.squares + other.squares + apart**2 * (self.steps * share)
        return Moments(steps, self.mean + apart * share, squares)


def as_sequences(source: Source) -> Sequences:
    """The source, known to hold sequences."""
    return cast(Sequences, source)


def step_statistics(source: Sequences) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each feature over all steps that count; records that cannot be decoded have none."""
    records = np.arange(len(source))
    parts = np.split(records, records[RECORDS_AT_ONCE::RECORDS_AT_ONCE])
    lengths, total = source.lengths, _nothing(source.features)
    with ThreadPoolExecutor(usable_cores()) as pool:
        # In the order of the records, whoever is done first: the sum is the same on any machine.
        for moments in pool.map(lambda part: _moments(source, part, int(lengths[part].max())), parts):
            total = total.joined(moments)
    deviations = np.sqrt(total.squares / max(total.steps, 1))
    # A feature of one value has no deviation that float32 could tell; 1 leaves it as it is instead of dividing by 0.
    told = deviations > np.finfo(np.float32).eps * np.abs(total.mean) + np.finfo(np.float32).tiny
    return tuple(total.mean.tolist()), tuple(np.where(told, deviations, 1.0).tolist())


def lengths_text(source: Source, padded: Sequence[int]) -> str:
    """Lengths, features and padding of a set of sequences, a line each."""
    sequences = as_sequences(source)
    lengths, features = sequences.lengths, sequences.sequence
    window, hop, rate = features.window_ms, features.hop_ms, features.sample_rate
    sound = f"  (log mel energies of {window:g} ms every {hop:g} ms, at {rate:,} Hz)" if rate else ""
    share = padding_share(lengths, padded)
    return "\n".join(
        [
            f"steps       {lengths.min():,} to {lengths.max():,}, median {np.median(lengths):,g}",
            f"features    {sequences.features:,}{sound}",
            f"padded to   {', '.join(f'{steps:,}' for steps in padded)}: {share:.1%} of all steps are padding",
        ]
    )


def _moments(source: Sequences, records: np.ndarray, longest: int) -> Moments:
    read = source.read(records, Preprocessing(longest, source.features, 1, (), ()), None)
    assert read.lengths is not None
    counts = (np.arange(longest) < read.lengths[:, None]) & read.decoded[:, None]
    steps = read.images[..., 0][counts].astype(np.float64)
    if not len(steps):
        return _nothing(source.features)
    mean = steps.mean(0)
    return Moments(len(steps), mean, ((steps - mean) ** 2).sum(0))


def _nothing(features: int) -> Moments:
    return Moments(0, np.zeros(features), np.zeros(features))
