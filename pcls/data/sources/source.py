"""What a source of labelled images is, the one that decodes them, and the part of a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol, cast

import numpy as np

from pcls.data.decode import DecodeError, decode, fit_pixels
from pcls.data.preprocessing import Preprocessing, SequenceFeatures
from pcls.data.sources.targets import positives, rarest_labels

LABELS_AT_ONCE = 1024


class Unreadable(NamedTuple):
    """Stands in for an image whose bytes cannot be had; `reason` in a few words."""

    reason: str


class Stored(NamedTuple):
    """A record as it is stored.

    Attributes:
      image: the bytes of a JPEG, PNG or WebP file; or pixels [height, width, channels] uint8; or a sequence
        [steps, features] float32; or why there is none.
      label: 0 to classes - 1.
    """

    image: bytes | np.ndarray | Unreadable
    label: int


class Records(NamedTuple):
    """Records at the size of a model.

    Attributes:
      images: [n, height, width, channels] uint8; of sequences [n, steps, features, 1] float32, zeros after the length.
        Zeros where a record could not be decoded.
      labels: [n] int32; where records carry several [n, classes] uint8 of 0 and 1.
      decoded: [n] bool.
      lengths: [n] int32, the steps of each sequence that count; None: pictures.
    """

    images: np.ndarray
    labels: np.ndarray
    decoded: np.ndarray
    lengths: np.ndarray | None = None


class Store(Protocol):
    """Where stored records come from, by number; safe in several threads, and when sent to another process."""

    def __len__(self) -> int: ...

    def __getitems__(self, records: Sequence[int]) -> list[Stored]:
        """Reads a batch of records in one go; one that cannot be read comes out as `Unreadable`."""

    def name(self, record: int) -> str:
        """What a person would call the record: its file, or its place in the set."""


class Source(Store, Protocol):
    """A set of labelled images with numbers 0 to len - 1."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the labels."""

    @property
    def labels(self) -> np.ndarray:
        """[n] int32, each in 0 to classes - 1. Some sources must read every record to know.

        Where records carry several, one of them, by which records are split: `rarest_labels`.
        """

    @property
    def targets(self) -> np.ndarray | None:
        """[n, classes] uint8 of 0 and 1, the labels that each record carries, or none; None: each carries one."""

    @property
    def groups(self) -> np.ndarray | None:
        """[n] int32: records of one group (a patient, a scene) are never parted by a split; None: each is its own."""

    def read(self, records: np.ndarray, preprocessing: Preprocessing, draws: np.ndarray | None) -> Records:
        """Reads records by number and brings them to size.

        Args:
          records: [n] int64.
          preprocessing: the size.
          draws: [n, ...] of random crops, from `crop_draws`; None: the exact evaluation crop.
        """

    def failure(self, record: int, preprocessing: Preprocessing) -> str:
        """Why a record could not be decoded."""


class Sequences(Source, Protocol):
    """A source whose records are sequences."""

    @property
    def lengths(self) -> np.ndarray:
        """[n] int32, steps of each record; known without reading them."""

    @property
    def features(self) -> int:
        """Numbers in a step."""

    @property
    def sequence(self) -> SequenceFeatures:
        """What these numbers are."""

    @property
    def notice(self) -> str:
        """What the user should be told of the set, once, in one line; empty: nothing."""


class StoredSource:
    """What every source leaves to the store that its records lie in."""

    store: Store
    targets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.store)

    def __getitems__(self, records: Sequence[int]) -> list[Stored]:
        """The records as they are stored."""
        return self.store.__getitems__(records)

    def name(self, record: int) -> str:
        """As the store calls it."""
        return self.store.name(record)


class ImageSource(StoredSource):
    """A source over stored images, which it decodes when asked for them.

    Args:
      store: where they lie.
      class_names: in label order.
      labels: [n] integers; None: they are read with the images.
      groups: [n] integers, or None.
      targets: [n, classes] uint8 of 0 and 1, where records carry several labels; `labels` are then the rarest.
    """

    def __init__(
        self,
        store: Store,
        class_names: tuple[str, ...],
        labels: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        targets: np.ndarray | None = None,
    ):
        self.store = store
        self.class_names = class_names
        self.groups = groups
        self.targets = targets
        self._labels = labels

    @cached_property
    def labels(self) -> np.ndarray:
        """[n] int32; where the store alone knows them, every record is read once, some at a time."""
        if self._labels is not None:
            return np.asarray(self._labels, np.int32)
        labels = np.empty(len(self), np.int32)
        for start in range(0, len(self), LABELS_AT_ONCE):
            records = range(start, min(start + LABELS_AT_ONCE, len(self)))
            labels[start : records.stop] = [stored.label for stored in self.store.__getitems__(records)]
        return labels

    def read(self, records: np.ndarray, preprocessing: Preprocessing, draws: np.ndarray | None) -> Records:
        """Decodes the records; one that fails comes out as zeros, not decoded."""
        stored = self.store.__getitems__(records.tolist())
        images = np.empty((len(records), *preprocessing.shape), np.uint8)
        decoded = np.zeros(len(records), bool)
        for index, (image, _) in enumerate(stored):
            try:
                _decode_into(images[index], image, preprocessing, None if draws is None else draws[index])
                decoded[index] = True
            except DecodeError:
                # Weight 0 downstream: counted and named there by `failure`, and limited.
                images[index] = 0
        labels = np.asarray([label for _, label in stored], np.int32) if self.targets is None else self.targets[records]
        return Records(images, labels, decoded)

    def failure(self, record: int, preprocessing: Preprocessing) -> str:
        """Decodes once more for the reason; rare, so that batches need not carry texts."""
        (stored,) = self.store.__getitems__([record])
        if isinstance(stored.image, Unreadable):
            return f"cannot be read ({stored.image.reason})"
        try:
            _decode_into(np.empty(preprocessing.shape, np.uint8), stored.image, preprocessing, None)
        except DecodeError as error:
            return f"cannot be decoded ({error})"
        return "could not be decoded before, and can be now"


def _decode_into(
    out: np.ndarray, image: bytes | np.ndarray | Unreadable, preprocessing: Preprocessing, draws: np.ndarray | None
) -> None:
    if isinstance(image, Unreadable):
        raise DecodeError(image.reason)
    if isinstance(image, bytes):
        decode(image, preprocessing, draws, out)
    else:
        fit_pixels(image, preprocessing, draws, out)


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
        self._kept = np.asarray(kept, np.int64)

    @cached_property
    def labels(self) -> np.ndarray:
        """[n] int32, renumbered."""
        if self.targets is not None:
            return rarest_labels(self.targets)
        return self._new_label[self._source.labels[self._records]]

    @cached_property
    def targets(self) -> np.ndarray | None:
        """[n, classes] uint8, of the classes kept; None: each record carries one label."""
        whole = self._source.targets
        return None if whole is None else whole[self._records[:, None], self._kept]

    @property
    def groups(self) -> np.ndarray | None:
        """Those of the whole."""
        return None if self._source.groups is None else self._source.groups[self._records]

    @property
    def lengths(self) -> np.ndarray:
        """[n] int32, steps of each record; only where the whole holds sequences."""
        return cast(Sequences, self._source).lengths[self._records]

    @property
    def features(self) -> int:
        """Numbers in a step; only where the whole holds sequences."""
        return cast(Sequences, self._source).features

    @property
    def sequence(self) -> SequenceFeatures:
        """What these numbers are; only where the whole holds sequences."""
        return cast(Sequences, self._source).sequence

    @property
    def notice(self) -> str:
        """That of the whole; only where it holds sequences."""
        return cast(Sequences, self._source).notice

    def __len__(self) -> int:
        return len(self._records)

    def __getitems__(self, records: Sequence[int]) -> list[Stored]:
        """The records as they are stored, by their number in the part."""
        stored = self._source.__getitems__(self._records[np.asarray(records)].tolist())
        labels = self.labels[records] if self.targets is not None else [self._new_label[label] for _, label in stored]
        return [Stored(image, int(label)) for (image, _), label in zip(stored, labels, strict=True)]

    def name(self, record: int) -> str:
        """The record's name in the whole."""
        return self._source.name(int(self._records[record]))

    def read(self, records: np.ndarray, preprocessing: Preprocessing, draws: np.ndarray | None) -> Records:
        """Reads records by their number in the part."""
        read = self._source.read(self._records[records], preprocessing, draws)
        several = read.labels.ndim > 1
        return read._replace(labels=read.labels[:, self._kept] if several else self._new_label[read.labels])

    def failure(self, record: int, preprocessing: Preprocessing) -> str:
        """Why a record could not be decoded."""
        return self._source.failure(int(self._records[record]), preprocessing)


def label_counts(source: Source) -> np.ndarray:
    """[classes] int64, the records that carry each label."""
    if source.targets is not None:
        return positives(source.targets)
    return np.bincount(source.labels, minlength=len(source.class_names))


def class_counts(source: Source) -> Mapping[str, int]:
    """Records of each class, in class order."""
    return dict(zip(source.class_names, map(int, label_counts(source)), strict=True))
