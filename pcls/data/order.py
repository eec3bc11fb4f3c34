"""Which records make up a step: arithmetic, no state.

Places run on through the passes over the set: place p is record `permutation_e(p mod n)` of pass `e = p div n`. So
every pass holds each record exactly once, and the whole state of the input is the step number. Host count, worker count
and mesh do not enter.

With length buckets each bucket has such a stream of its own, and which bucket a step belongs to is arithmetic too.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from pcls.data.buckets import Bucket

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

    def fillers(self, step: int, places: np.ndarray) -> np.ndarray:
        """Records that may stand where a step is filled up: any.

        Args:
          step: global.
          places: [n] integers >= 0; others give others.
        """
        return places % self.size

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


@dataclass(frozen=True)
class BucketedOrder:
    """The order of a training on sequences, each step of one bucket; used as `Order` is.

    The buckets take turns in proportion to their sizes: of bucket b, which has w_b steps in a pass, the k-th step (from
    0) stands at (k + 1/2) / w_b, and the steps of all come in the order of where they stand, of equal ones the bucket
    of shorter sequences first. With the tails `drop` and `pad` the passes of all buckets then end together; with
    `carry` each bucket carries over by itself.

    Attributes:
      buckets: with their records.
      batch_size, seed, tail, repeats: as of `Order`. A bucket with fewer records than a step repeats some in it
        (`carry`) or is filled up (`pad`); `drop` would leave all of it out, and must not be asked for.
    """

    buckets: tuple[Bucket, ...]
    batch_size: int
    seed: int
    tail: Tail = "carry"
    repeats: int = 1

    @cached_property
    def orders(self) -> tuple[Order, ...]:
        """Of the records of each bucket, by their place in it."""
        seeds = np.random.SeedSequence(self.seed).generate_state(len(self.buckets), np.uint64)
        return tuple(
            Order(len(bucket.records), self.batch_size, int(seed), self.tail, self.repeats)
            for bucket, seed in zip(self.buckets, seeds, strict=True)
        )

    @property
    def size(self) -> int:
        """Records in the set."""
        return sum(order.size for order in self.orders)

    @property
    def records_a_step(self) -> int:
        """Different records in a step."""
        return self.batch_size // self.repeats

    @property
    def pass_steps(self) -> float:
        """Steps in which each record comes once, but for tails that are dropped; a fraction only with `carry`."""
        if self.tail == "carry":
            return self.size / self.records_a_step
        return sum(order.pass_steps for order in self.orders)

    @property
    def epoch_steps(self) -> float:
        """As of `Order`."""
        return self.pass_steps / self.repeats

    @property
    def dropped(self) -> int:
        """Records that a pass leaves out."""
        return sum(order.dropped for order in self.orders)

    def records_of_step(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """As of `Order`; the epochs are those of the step's bucket."""
        number, own = self.place_of_step(step)
        places, epochs = self.orders[number].records_of_step(own)
        return np.where(places < 0, -1, self.buckets[number].records[places]), epochs

    def fillers(self, step: int, places: np.ndarray) -> np.ndarray:
        """As of `Order`: any of the step's bucket."""
        records = self.buckets[self.place_of_step(step)[0]].records
        return records[places % len(records)]

    def place_of_step(self, step: int) -> tuple[int, int]:
        """The number of the bucket that a global step belongs to, and the step's number in the bucket's own stream."""
        done = self.done_before(step)
        number = min(range(len(done)), key=lambda number: self._stands(number, done[number]))
        return number, done[number]

    def done_before(self, step: int) -> list[int]:
        """How many of the first `step` global steps belong to each bucket."""
        total, count = sum(self._weights), len(self._weights)
        # Those that stand at (step - count / 2) / total or before it: never more than `step`, and fewer by less than
        # `count`. What is left comes one by one.
        done = [max(0, ((2 * step - count) * weight + total) // (2 * total)) for weight in self._weights]
        ahead = [(self._stands(number, own), number) for number, own in enumerate(done)]
        heapq.heapify(ahead)
        for _ in range(step - sum(done)):
            number = ahead[0][1]
            done[number] += 1
            heapq.heapreplace(ahead, (self._stands(number, done[number]), number))
        return done

    def first_steps(self, start: int) -> list[int]:
        """The global step at which each bucket comes next, `start` included."""
        return [self._step_of(number, own) for number, own in enumerate(self.done_before(start))]

    def _step_of(self, number: int, own: int) -> int:
        """The global step of a bucket's own one: the steps of all buckets that come before it."""
        weight, place = self._weights[number], 2 * own + 1
        # Of a bucket that wins where both stand alike, those at the place itself come before it too.
        return sum(
            (place * other + weight - (rival >= number)) // (2 * weight) for rival, other in enumerate(self._weights)
        )

    def _stands(self, number: int, own: int) -> int:
        """Where a bucket's own step stands among all: exact, in units so small that different places stay different."""
        return ((2 * own + 1) << 2 * max(self._weights).bit_length()) // self._weights[number]

    @cached_property
    def _weights(self) -> tuple[int, ...]:
        """Whole numbers in proportion to the buckets' steps in a pass."""
        return tuple(order.size if self.tail == "carry" else int(order.pass_steps) for order in self.orders)


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
