"""All records of a set looked at, in threads; and what is said of one of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

from pcls.data.doctor.look import KINDS, LOOK, MODES, look_at
from pcls.data.sources.source import Source

RECORDS_AT_ONCE = 64


@dataclass(frozen=True)
class Survey:
    """What was seen of the records of all splits, which are numbered one split after the other.

    Attributes:
      sources: by split, of the same classes.
      looks: [n] of LOOK.
      reasons: record -> why it cannot be decoded.
    """

    sources: Mapping[str, Source]
    looks: np.ndarray
    reasons: Mapping[int, str]

    @property
    def splits(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.sources)

    @property
    def class_names(self) -> tuple[str, ...]:
        """In label order; of the split that knows the most."""
        return max((source.class_names for source in self.sources.values()), key=len)

    @property
    def starts(self) -> np.ndarray:
        """[splits + 1]: where each split begins, and where the last ends."""
        return np.cumsum([0, *map(len, self.sources.values())])

    def split_of(self, records: np.ndarray) -> np.ndarray:
        """The number of each record's split."""
        return np.searchsorted(self.starts, records, side="right") - 1

    def of_split(self, split: str) -> np.ndarray:
        """The looks of one split."""
        number = self.splits.index(split)
        return self.looks[self.starts[number] : self.starts[number + 1]]

    def place(self, record: int) -> tuple[str, int]:
        """The record's split, and its number there."""
        number = int(self.split_of(np.asarray(record)))
        return self.splits[number], record - int(self.starts[number])

    def name(self, record: int) -> str:
        """As its source calls it."""
        split, number = self.place(record)
        return self.sources[split].name(number)

    def label(self, record: int) -> str:
        """The name of its class."""
        return self.class_names[self.looks["label"][record]]

    def description(self, record: int) -> str:
        """Size, format and mode; or why it cannot be decoded."""
        look = self.looks[record]
        if not look["decoded"]:
            return self.reasons[record]
        mode = MODES[look["mode"]]
        return f"{look['width']:,} x {look['height']:,} {KINDS[look['kind']]}{'' if mode == 'RGB' else ' ' + mode}"


def survey(
    sources: Mapping[str, Source], *, workers: int, advance: Callable[[int], None] = lambda records: None
) -> Survey:
    """Reads every record once.

    Args:
      sources: by split.
      workers: threads.
      advance: told how many records are done since it was last told.
    """
    counts = [len(source) for source in sources.values()]
    looks = np.zeros(sum(counts), LOOK)
    reasons: dict[int, str] = {}
    parts = np.split(looks, np.cumsum(counts)[:-1])
    offsets = np.cumsum([0, *counts])
    blocks = [
        (source, part, start, int(offset))
        for source, part, offset in zip(sources.values(), parts, offsets, strict=False)
        for start in range(0, len(source), RECORDS_AT_ONCE)
    ]
    # Filters are the process's, not the thread's: set around all threads, not in them.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        futures = [pool.submit(_look_at_block, *block) for block in blocks]
        try:
            for future in as_completed(futures):
                found, count = future.result()
                reasons.update(found)
                advance(count)
        finally:
            # After an interrupt what has not begun is not waited for.
            pool.shutdown(wait=False, cancel_futures=True)
    return Survey(sources, looks, reasons)


def _look_at_block(source: Source, looks: np.ndarray, start: int, offset: int) -> tuple[dict[int, str], int]:
    records = range(start, min(start + RECORDS_AT_ONCE, len(source)))
    reasons = {}
    for record, stored in zip(records, source.__getitems__(records), strict=True):
        reason = look_at(stored, source.name(record), looks[record])
        if reason:
            reasons[offset + record] = reason
    return reasons, len(records)


def groups_of_equal(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Numbers of the elements that are equal to another, group by group, in the order of their first.

    Args:
      keys: [n] or [n, k].
    """
    _, first, inverse, counts = np.unique(keys, axis=0, return_index=True, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    members = np.flatnonzero(counts[inverse] > 1)
    order = members[np.argsort(first[inverse[members]], kind="stable")]
    ends = np.flatnonzero(np.diff(inverse[order])) + 1
    return iter(np.split(order, ends)) if len(order) else iter(())
