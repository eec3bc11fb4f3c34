"""The protocol of a source, and the part of a source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from pcls.data.preprocessing import Preprocessing

# Draws the random crop of the i-th record asked for; None: the exact evaluation crop.
CropRng = Callable[[int], np.random.Generator] | None


@dataclass(frozen=True)
class Records:
    """Records read from a source.

    Attributes:
      images: [n, height, width, channels] uint8; zeros where a record could not be decoded.
      labels: [n] int32.
      decoded: [n] bool.
    """

    images: np.ndarray
    labels: np.ndarray
    decoded: np.ndarray


class Source(Protocol):
    """A set of labelled images with numbers 0 to len - 1."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the labels."""

    @property
    def labels(self) -> np.ndarray:
        """[n] int32, each in 0 to classes - 1. Some sources must read every record to know."""

    def __len__(self) -> int: ...

    def name(self, record: int) -> str:
        """What a person would call the record: its file, or its place in the set."""

    def read(self, records: np.ndarray, preprocessing: Preprocessing, rng: CropRng) -> Records:
        """Reads records by number; safe to call from several threads."""

    def failure(self, record: int, preprocessing: Preprocessing) -> str:
        """Why a record could not be decoded."""


class Subset:
    """Some records of a source, with its classes renumbered.

    Args:
      source: the whole.
      records: [n] numbers in `source`.
      classes: the labels kept, in their new order; None: all as they are.
    """

    def __init__(self, source: Source, records: np.ndarray, classes: tuple[int, ...] | None = None):
        self._source = source
        self._records = records
        kept = range(len(source.class_names)) if classes is None else classes
        self.class_names = tuple(source.class_names[label] for label in kept)
        self._new_label = np.full(len(source.class_names), -1, np.int32)
        self._new_label[np.asarray(kept, np.int64)] = np.arange(len(self.class_names))

    @cached_property
    def labels(self) -> np.ndarray:
        """[n] int32, renumbered."""
        return self._new_label[self._source.labels[self._records]]

    def __len__(self) -> int:
        return len(self._records)

    def name(self, record: int) -> str:
        """The record's name in the whole."""
        return self._source.name(int(self._records[record]))

    def read(self, records: np.ndarray, preprocessing: Preprocessing, rng: CropRng) -> Records:
        """Reads records by their number in the part."""
        read = self._source.read(self._records[records], preprocessing, rng)
        return Records(read.images, self._new_label[read.labels], read.decoded)

    def failure(self, record: int, preprocessing: Preprocessing) -> str:
        """Why a record could not be decoded."""
        return self._source.failure(int(self._records[record]), preprocessing)


def class_counts(source: Source) -> Mapping[str, int]:
    """Records of each class, in class order."""
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    return dict(zip(source.class_names, map(int, counts), strict=True))
