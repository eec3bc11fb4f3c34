"""Which records make up a step: arithmetic, no state.

Places run on through the passes over the set: place p is record `permutation_e(p mod n)` of pass `e = p div n`. So
every pass holds each record exactly once, and the whole state of the input is the step number. Host count, worker count
and mesh do not enter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

ROUNDS = 4
# Sets up to this size have each pass's permutation in memory, 8 bytes a record.
WHOLE_PASS = 1 << 20

Tail = Literal["carry", "drop", "pad"]


@dataclass(frozen=True)
class Order:
    """The order of a training.

    Attributes:
      size: records in the set.
      batch_size: rows of a global step.
      seed: of the order; each pass has a permutation of its own.
      tail: where the set does not divide into steps, the last records of a pass share a step with the first of the next
        (`carry`), are left out (`drop`: others in each pass), or have a step to themselves that is filled up (`pad`).
      repeats: how often a step holds each of its records, each time augmented in another way.
        Source: Hoffer et al. 2020; Berman et al. 2019.
    """

    size: int
    batch_size: int
    seed: int
    tail: Tail = "carry"
    repeats: int = 1

    @property
    def records_a_step(self) -> int:
        """Different records in a step."""
        return self.batch_size // self.repeats

    @property
    def pass_steps(self) -> float:
        """Steps in which each record comes once, but for a tail that is dropped; a fraction only with `carry`."""
        steps = self.size / self.records_a_step
        return {"carry": steps, "drop": math.floor(steps), "pad": math.ceil(steps)}[self.tail]

    @property
    def epoch_steps(self) -> float:
        """Steps of as many images as the set has: with repeats, one of several epochs that make up a pass."""
        return self.pass_steps / self.repeats

    @property
    def dropped(self) -> int:
        """Records that a pass leaves out."""
        return self.size % self.records_a_step if self.tail == "drop" else 0

    def records_of_step(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The records of a global step, counted from 0.

        Returns:
          Record numbers, -1 where a step is filled up, and their epochs, each [batch_size] int64. A record comes with
          each epoch at most once: what is drawn for (record, epoch) is drawn once.
        """
        records, passes = self._once(step)
        copies = np.repeat(np.arange(self.repeats), self.records_a_step)
        return np.tile(records, self.repeats), np.tile(passes, self.repeats) * self.repeats + copies

    def _once(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The different records of a step and their passes."""
        within = np.arange(self.records_a_step, dtype=np.int64)
        if self.tail == "carry":
            passes, places = np.divmod(step * self.records_a_step + within, self.size)
        else:
            number, step_of_pass = divmod(step, int(self.pass_steps))
            places, passes = step_of_pass * self.records_a_step + within, np.full_like(within, number)
        records = np.full_like(places, -1)
        for number in range(int(passes[0]), int(passes[-1]) + 1):
            rows = (passes == number) & (places < self.size)
            records[rows] = self._permuted(places[rows], number)
        return records, passes

    def _permuted(self, places: np.ndarray, number: int) -> np.ndarray:
        if self.size <= WHOLE_PASS:
            return _permuted_pass(self.size, self.seed, number)[places]
        return permuted(places, size=self.size, seed=self.seed, epoch=number)


def evaluation_records(batch: int, *, batch_size: int, size: int) -> np.ndarray:
    """The records of an evaluation batch, in file order; -1 fills the last batch.

    Returns:
      [batch_size] int64.
    """
    places = np.arange(batch * batch_size, (batch + 1) * batch_size, dtype=np.int64)
    return np.where(places < size, places, -1)


def permuted(places: np.ndarray, *, size: int, seed: int, epoch: int) -> np.ndarray:
    """A keyed permutation of 0 ... size - 1, at some places: constant memory and time for any size.

    Rounds of invertible arithmetic (times an odd number, plus a number, xor with the upper half) permute the next
    power of two (at least 64); a result outside the range is permuted again until it falls inside, which keeps it a
    permutation.
    Grain's index_shuffle does the same record by record, 8 times slower for a batch of 128.

    Args:
      places: [n] int64 in 0 ... size - 1.
      size: of the set.
      seed, epoch: the key; neighbouring keys give unrelated permutations.

    Returns:
      [n] int64.

    Source of the walk: Black & Rogaway 2002, Ciphers with arbitrary finite domains.
    """
    # Fewer bits leave the rounds too little to mix: of two records one would come first noticeably more often.
    bits = max(6, (size - 1).bit_length())
    key = np.random.SeedSequence((seed, epoch)).generate_state(2 * ROUNDS, np.uint64)
    values = _round_trip(places.astype(np.uint64), bits, key)
    while len(outside := np.flatnonzero(values >= np.uint64(size))):
        values[outside] = _round_trip(values[outside], bits, key)
    return values.astype(np.int64)


@lru_cache(maxsize=4)
def _permuted_pass(size: int, seed: int, epoch: int) -> np.ndarray:
    """A whole pass at once: a batch of a small set then costs one slice instead of 0.1 ms."""
    return permuted(np.arange(size, dtype=np.int64), size=size, seed=seed, epoch=epoch)


def _round_trip(values: np.ndarray, bits: int, key: np.ndarray) -> np.ndarray:
    mask, half = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
    for multiplier, addend in key.reshape(ROUNDS, 2):
        values = (values * (multiplier | np.uint64(1)) + addend) & mask
        values = values ^ (values >> half)
    return values
