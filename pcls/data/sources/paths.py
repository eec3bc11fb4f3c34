"""Ten million file paths in the memory of their bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

ENDS = np.dtype("<i8")


class PathColumn(Sequence[str]):
    """Texts in one run of bytes: as a Python string one of 25 characters takes 74 bytes, and 8 in a list.

    Args:
      text: [bytes] uint8, the UTF-8 of all texts, one behind the other.
      ends: [n] int64, where each ends.
      mapped: the two files that both are mapped from; they then travel to another process by name. None: in memory.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray, mapped: tuple[Path, Path] | None = None):
        self._text = text
        self._ends = ends
        self._mapped = mapped

    @classmethod
    def map(cls, text: Path, ends: Path) -> PathColumn:
        """A column whose bytes stay on the disk until they are asked for.

        Raises:
          ValueError: one of the files is empty, or they don't belong together.
        """
        column = cls(np.memmap(text, np.uint8, "r"), np.memmap(ends, ENDS, "r"), (text, ends))
        if len(column._text) != column._ends[-1]:
            raise ValueError(f"{text}: {len(column._text):,} bytes instead of {column._ends[-1]:,}")
        return column

    def __reduce__(self) -> tuple[Any, ...]:
        if self._mapped is None:
            return PathColumn, (self._text, self._ends)
        return PathColumn.map, self._mapped

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} of {len(self)} paths")
        index %= len(self)
        start = self._ends[index - 1] if index else 0
        return bytes(self._text[start : self._ends[index]]).decode()

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))
