"""How many threads read and decode: as many as help, by a short measurement on the data itself."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from pcls.data.crops import crop_draws
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.source import Source

# One measurement takes so long, and reads so many records in one go.
SECONDS = 0.3
RECORDS_AT_ONCE = 16
# More threads are worth it from this gain on.
WORTH = 1.1


class Measured(NamedTuple):
    """Rates by number of threads.

    Attributes:
      threads: the number chosen.
      rates: records/s of each number tried.
    """

    threads: int
    rates: dict[int, float]

    def __str__(self) -> str:
        tried = ", ".join(f"{rate:,.0f} with {count}" for count, rate in self.rates.items())
        return f"input: {self.threads} thread{'s' * (self.threads > 1)}, by a measurement (records/s: {tried})"


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_threads(source: Source, preprocessing: Preprocessing, *, random_crop: bool) -> Measured:
    """Doubles the threads, up to the cores, for as long as that reads a tenth more.

    Args:
      source: what is read.
      preprocessing: the size of the images.
      random_crop: cut as in training, or as in evaluation.
    """
    rates: dict[int, float] = {}
    for threads in _candidates(usable_cores()):
        rates[threads] = reading_rate(source, preprocessing, threads, random_crop=random_crop)
        if rates[threads] < WORTH * max([0.0, *list(rates.values())[:-1]]):
            break
    best = max(rates.values())
    return Measured(next(threads for threads, rate in rates.items() if WORTH * rate >= best), rates)


def reading_rate(
    source: Source, preprocessing: Preprocessing, threads: int, *, random_crop: bool, seconds: float = SECONDS
) -> float:
    """Images/s that so many threads read and decode, records anywhere in the set."""

    def read(thread: int) -> int:
        rng, count = np.random.default_rng(thread), 0
        while time.perf_counter() < end:
            records = rng.integers(len(source), size=RECORDS_AT_ONCE)
            source.read(records, preprocessing, crop_draws(0, records, records) if random_crop else None)
            count += len(records)
        return count

    start = time.perf_counter()
    end = start + seconds
    with ThreadPoolExecutor(threads) as pool:
        images = sum(pool.map(read, range(threads)))
    return images / (time.perf_counter() - start)


def _candidates(cores: int) -> Sequence[int]:
    return sorted({min(1 << power, cores) for power in range(cores.bit_length() + 1)})
