"""Whether devices that should hold the same arrays do: digests taken where the arrays lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

# Odd, and far from each other in binary: each place of an array scrambles its bits in another way.
PLACE, SCRAMBLE = 0x9E3779B1, 0x85EBCA6B


def make_digests(shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> Callable[[Mapping[str, Any]], Array]:
    """A compiled pass over arrays that reads what each device holds, and moves nothing but a number a leaf.

    Args:
      shapes: name to shape, type and sharding over the mesh; no elements of more than four bytes.
      mesh: of the devices.

    Returns:
      `(arrays) -> [devices, leaves] uint32`: two numbers of a leaf differ if one element of it does.
    """
    specs = {name: leaf.sharding.spec for name, leaf in shapes.items()}

    def of_a_device(arrays: Mapping[str, Array]) -> Array:
        return jnp.stack([_digest(arrays[name]) for name in specs])[None]

    over_devices = jax.shard_map(
        of_a_device, mesh=mesh, in_specs=(specs,), out_specs=P(mesh.axis_names), check_vma=False
    )
    return jax.jit(over_devices)


def differing_devices(
    digests: Array, shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh
) -> tuple[str, list[jax.Device]] | None:
    """The first leaf whose copies differ, and the devices that hold others than most do; of equally many, all.

    Every process gets the same answer.

    Args:
      digests: [devices, leaves], of `make_digests`.
      shapes, mesh: as given to it.

    Returns:
      None where all copies agree.
    """
    found, devices = on_host(digests), list(mesh.devices.flat)
    for column, (name, leaf) in enumerate(shapes.items()):
        parts = leaf.sharding.devices_indices_map(leaf.shape)
        copies: dict[str, list[int]] = {}
        for row, device in enumerate(devices):
            copies.setdefault(str(parts[device]), []).append(row)
        for rows in copies.values():
            odd = _odd_ones([int(found[row, column]) for row in rows])
            if odd:
                return name, [devices[rows[place]] for place in odd]
    return None


def on_host(digests: Array) -> np.ndarray:
    """[devices, leaves] of all processes, in each of them."""
    if jax.process_count() == 1:
        return np.asarray(digests)
    return np.asarray(multihost_utils.process_allgather(digests, tiled=True))


def _digest(array: Array) -> Array:
    """uint32, of the bits of an array's elements, each by its place."""
    words = _words(array).reshape(-1)
    places = lax.iota(jnp.uint32, words.size)
    # For a given place each step can be undone, so one changed element always shows in the sum.
    mixed = (words ^ (places * jnp.uint32(PLACE))) * jnp.uint32(SCRAMBLE)
    mixed ^= mixed >> 15
    return jnp.sum(mixed * (2 * places + 1), dtype=jnp.uint32)


def _words(array: Array) -> Array:
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    return lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


def _odd_ones(values: list[int]) -> list[int]:
    """The places of values that are not the most common one; all where several are equally common."""
    counts = Counter(values).most_common(2)
    if len(counts) == 1:
        return []
    if counts[0][1] == counts[1][1]:
        return list(range(len(values)))
    return [place for place, value in enumerate(values) if value != counts[0][0]]
