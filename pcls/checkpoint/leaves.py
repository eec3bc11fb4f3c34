"""The arrays of a saved step, read by TensorStore alone: on one process, of whatever mesh they were saved on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorstore as ts

from pcls.checkpoint.manifest import Damaged, Leaf, leaf_of
from pcls.errors import first_line

# Where Orbax lays the arrays of a pytree that was saved without a name.
ARRAYS = "state"


def read_leaves(folder: Path, leaves: Mapping[str, Leaf]) -> Iterator[tuple[str, np.ndarray]]:
    """Reads the arrays of a step one by one.

    Args:
      folder: of the step.
      leaves: what is expected; their digests play no part.

    Raises:
      Damaged: one cannot be read, or has another shape or type.
    """
    for name, leaf in leaves.items():
        try:
            store = ts.open(_spec(folder, name), open=True, read=True).result()
            found = Leaf(tuple(store.shape), store.dtype.name)
            # Before memory is taken: what a damaged file claims may be any size.
            if (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
                raise Damaged(f"leaf {name} is {found} and not {leaf}")
            array = store.read().result()
        except (ValueError, OSError, OverflowError) as error:
            raise Damaged(f"leaf {name} cannot be read ({first_line(error)})") from error
        yield name, array


def stored_leaves(folder: Path, leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """The digests of the arrays as they can be read back; raises Damaged as `read_leaves` does."""
    return {name: leaf_of(array) for name, array in read_leaves(folder, leaves)}


def verify_leaves(folder: Path, leaves: Mapping[str, Leaf]) -> None:
    """Compares the digest of every array with the manifest's; raises Damaged with the first that differs."""
    for name, array in read_leaves(folder, leaves):
        if leaf_of(array) != leaves[name]:
            raise Damaged(f"leaf {name}: digest differs")


def _spec(folder: Path, name: str) -> dict[str, object]:
    # A file URL would need escapes; a path is a path.
    base = {"driver": "file", "path": f"{folder.absolute() / ARRAYS}/"}
    return {"driver": "zarr3", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
