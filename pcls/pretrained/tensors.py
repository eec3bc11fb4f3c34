"""Tensors of a safetensors file, each read when it is asked for: a large file never lies in memory twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from pcls.errors import UserError, first_line

FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; `numpy.asarray` reads it as float32.

    Attributes:
      key: its name.
      shape: as the header says it, which was checked against the file.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    _path: Path
    _file: Any

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The values.

        Raises:
          UserError: they are no floating-point numbers, some are not finite, or no array has such a shape.
        """
        if self.dtype not in FLOATS:
            raise UserError(f"{self._path}: {self.key} is of type {self.dtype}; weights are {', '.join(FLOATS)}")
        try:
            stored = self._file.get_tensor(self.key)
        # Of an array without elements, the header may claim any other size.
        except ValueError as error:
            raise UserError(f"{self._path}: {self.key} cannot be read ({first_line(error)})") from error
        with np.errstate(over="ignore"):
            values = stored.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise UserError(f"{self._path}: {self.key} holds values that are not finite in float32")
        return values


@dataclass(frozen=True)
class StoredTensors:
    """What a file holds.

    Attributes:
      tensors: by key.
      metadata: texts by name.
    """

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


@contextmanager
def open_tensors(path: Path) -> Iterator[StoredTensors]:
    """Opens a file; the header is checked against the file's size before any memory is taken.

    Raises:
      UserError: it is no whole safetensors file.
    """
    try:
        # Not mapped: the pages that were read of a mapped file would lie in memory beside the arrays.
        with safe_open(path, framework="np", backend="pread") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
            tensors = {
                key: StoredTensor(key, tuple(one.get_shape()), one.get_dtype(), path, file)
                for key, one in slices.items()
            }
            yield StoredTensors(tensors, file.metadata() or {})
    except SafetensorError as error:
        raise UserError(f"{path}: is no whole safetensors file ({first_line(error)})") from error
