"""Which records make up a step: arithmetic, no state.

Places run on through the passes over the set: place p is record `permutation_e(p mod n)` of pass `e = p div n`. So
every pass holds each record exactly once, and the whole state of the input is the step number. Host count, worker count
and mesh do not enter.

With length buckets each bucket has such a stream of its own, and which bucket a step belongs to is arithmetic too.
Where classes are sampled, a place of a pass means a class, and each class goes through its own records.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from pcls.data.buckets import Bucket

ROUNDS = 4
# Sets up to this size have each pass's permutation in memory, 8 bytes a record.
WHOLE_PASS = 1 << 20

Tail = Literal["carry", "drop", "pad"]
Sampling = Literal["balanced", "square_root", "progressive"]


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
        records, epochs = self._once(step)
        copies = np.repeat(np.arange(self.repeats), self.records_a_step)
        return np.tile(records, self.repeats), np.tile(epochs, self.repeats) * self.repeats + copies

    def fillers(self, step: int, places: np.ndarray) -> np.ndarray:
        """Records that may stand where a step is filled up: any.

        Args:
          step: global.
          places: [n] integers >= 0; others give others.
        """
        return places % self.size

    def _once(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The records of a step, each once, and how often each has come before."""
        within = np.arange(self.records_a_step, dtype=np.int64)
        if self.tail == "carry":
            passes, places = np.divmod(step * self.records_a_step + within, self.size)
        else:
            number, step_of_pass = divmod(step, int(self.pass_steps))
            places, passes = step_of_pass * self.records_a_step + within, np.full_like(within, number)
        records, epochs = np.full_like(places, -1), passes.copy()
        for number in range(int(passes[0]), int(passes[-1]) + 1):
            rows = (passes == number) & (places < self.size)
            records[rows], epochs[rows] = self._of_pass(places[rows], number)
        return records, epochs

    def _of_pass(self, places: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The records at some places of a pass, and how often each has come before."""
        if self.size <= WHOLE_PASS:
            records = _permuted_pass(self.size, self.seed, number)[places]
        else:
            records = permuted(places, size=self.size, seed=self.seed, epoch=number)
        return records, np.full_like(records, number)


@dataclass(frozen=True, eq=False)
class SampledOrder(Order):
    """The order of a training that draws its classes in other shares than the set has them.

    A pass has as many places as the set has records. Each class has a quota of them, the whole number beside its share
    (of equal remainders the larger goes to the class with fewer records); they are mixed as the records of `Order` are.
    The uses of a class run on through its places: use u is record `permutation_e(u mod n)` of the n that it has, where
    `e = u div n` is the epoch that is told. So of one class every record comes equally often, and of its augmentations
    none twice.

    Attributes:
      labels: [size] int32, of the records.
      sampling: a class's share is the same for all (`balanced`), as the square root of its records (`square_root`,
        Mahajan et al. 2018), or its share of the records in the first pass, from which it moves to the same for all in
        the last, in equal parts (`progressive`, Kang et al. 2020).
      passes: of the run; only `progressive` asks. Those after it are as the last.
    """

    labels: np.ndarray = field(kw_only=True, repr=False)
    sampling: Sampling = field(kw_only=True)
    passes: int = field(kw_only=True, default=1)

    @cached_property
    def quotas(self) -> np.ndarray:
        """[passes or 1, classes] places of each class in a pass; all later passes are as the last."""
        even = (self._counts > 0) / np.count_nonzero(self._counts)
        if self.sampling == "balanced":
            return quotas(even, self._counts)[None]
        if self.sampling == "square_root":
            return quotas(np.sqrt(self._counts), self._counts)[None]
        moved = np.linspace(0, 1, self.passes)
        return np.stack([quotas((1 - t) * self._counts / self.size + t * even, self._counts) for t in moved])

    def _of_pass(self, places: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        mixed, _ = super()._of_pass(places, number)
        row = min(number, len(self.quotas) - 1)
        ends = self._ends[row]
        labels = np.searchsorted(ends, mixed, side="right")
        uses = mixed - ends[labels] + self.quotas[row, labels] + self._used(number)[labels]
        epochs, within = np.divmod(uses, self._counts[labels])
        records = np.empty_like(mixed)
        for rows in _alike(labels, epochs):
            label = int(labels[rows[0]])
            first = self._first[label]
            of_class = self._by_class[first : first + self._counts[label]]
            records[rows] = of_class[self._permutation(label, int(epochs[rows[0]]))[within[rows]]]
        return records, epochs

    def _used(self, number: int) -> np.ndarray:
        """[classes] places that each had before a pass."""
        row = min(number, len(self.quotas) - 1)
        return self._used_before[row] + (number - row) * self.quotas[row]

    def _permutation(self, label: int, epoch: int) -> np.ndarray:
        """Of the records of a class. The last two of each class are kept: steps that are read at once ask for both."""
        kept = self._kept.get((label, epoch % 2))
        if kept is None or kept[0] != epoch:
            # By sorting: for a few records faster than the walk of `permuted`, which is made for a few places of many.
            keys = np.random.SeedSequence(self.seed, spawn_key=(label, epoch))
            drawn = keys.generate_state(int(self._counts[label]), np.uint64)
            kept = self._kept[label, epoch % 2] = epoch, np.argsort(drawn, kind="stable")
        return kept[1]

    @cached_property
    def _kept(self) -> dict[tuple[int, int], tuple[int, np.ndarray]]:
        return {}

    @cached_property
    def _counts(self) -> np.ndarray:
        return np.bincount(self.labels)

    @cached_property
    def _first(self) -> np.ndarray:
        return np.cumsum(self._counts) - self._counts

    @cached_property
    def _by_class(self) -> np.ndarray:
        """The records, class by class."""
        return np.argsort(self.labels, kind="stable")

    @cached_property
    def _ends(self) -> np.ndarray:
        """As `quotas`: the first place after each class's."""
        return np.cumsum(self.quotas, 1)

    @cached_property
    def _used_before(self) -> np.ndarray:
        return np.cumsum(self.quotas, 0) - self.quotas


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


def quotas(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[classes] whole numbers in proportion to the weights, by the method of the largest remainder.

    Args:
      weights: [classes], 0 or more; of some more.
      counts: [classes] records; the quotas add up to all of them. Of equal remainders the class with fewer comes first.
    """
    exact = weights * (counts.sum() / weights.sum())
    # 2 may come out of a division as 1.9999999999999998.
    found = np.floor(exact + 1e-9).astype(np.int64)
    left = int(counts.sum() - found.sum())
    found[np.lexsort((counts, np.round(found - exact, 9)))[:left]] += 1
    return found


def _alike(labels: np.ndarray, epochs: np.ndarray) -> list[np.ndarray]:
    """The places of equal pairs."""
    order = np.lexsort((epochs, labels))
    differs = (np.diff(labels[order]) != 0) | (np.diff(epochs[order]) != 0)
    return np.split(order, np.flatnonzero(differs) + 1) if len(order) else []


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
