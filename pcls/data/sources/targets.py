"""Records that carry several labels, or none: which, one row a record and one column a class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcls.errors import UserError

# What the targets of a set may take: those of 9 million records and 400 classes take 3.6 GB.
TARGET_BYTES = 1 << 32
ROWS_AT_ONCE = 1 << 14
SEPARATOR = ";"


@dataclass(frozen=True)
class LabelSets:
    """How a manifest says which labels a record carries.

    Attributes:
      separator: between the names in its column `label`.
      columns: one a class, in label order, whose cells are 0 or 1; empty: the names stand in the column `label`.
    """

    separator: str = SEPARATOR
    columns: tuple[str, ...] = ()

    def names(self, text: str) -> tuple[str, ...]:
        """The names in a cell; none of an empty one.

        Raises:
          ValueError: one of them is empty.
        """
        if not text.strip():
            return ()
        names = tuple(map(str.strip, text.split(self.separator)))
        if not all(names):
            raise ValueError(f"label {text!r} has an empty name")
        return names


def check_size(title: str, records: int, classes: int) -> None:
    """UserError where the targets of so many records and classes would take more than `TARGET_BYTES`."""
    if records * classes > TARGET_BYTES:
        raise UserError(
            f"{title}: which of {classes:,} labels each of {records:,} records carries takes "
            f"{records * classes / 1e9:.1f} GB; {TARGET_BYTES / 1e9:.1f} GB are allowed: take fewer records or labels"
        )


def rarest_labels(targets: np.ndarray) -> np.ndarray:
    """One label for each record, by which it is split: the rarest that it carries, of none the most common of all.

    Args:
      targets: [n, classes] of 0 and 1.

    Returns:
      [n] int32. Of equally rare labels the first.
    """
    counts = positives(targets)
    rarest_first = np.argsort(counts, kind="stable")
    labels = np.full(len(targets), counts.argmax(), np.int32)
    for start in range(0, len(targets), ROWS_AT_ONCE):
        some = targets[start : start + ROWS_AT_ONCE, rarest_first]
        carries = some.any(1)
        labels[start : start + ROWS_AT_ONCE][carries] = rarest_first[some.argmax(1)[carries]]
    return labels


def positives(targets: np.ndarray) -> np.ndarray:
    """[classes] int64, the records that carry each label."""
    # In parts: a whole set that lies in a file need not come into memory at once.
    parts = range(0, len(targets), ROWS_AT_ONCE)
    return sum(
        (targets[start : start + ROWS_AT_ONCE].sum(0, dtype=np.int64) for start in parts),
        np.zeros(targets.shape[1], np.int64),
    )
