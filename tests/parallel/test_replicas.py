"""Copies of an array on several devices that should be the same. Eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pcls.parallel.mesh import make_mesh
from pcls.parallel.replicas import differing_devices, make_digests

MESH = make_mesh(-1, 2)
DTYPES = [np.float32, np.int32, np.uint8, np.bool_, jnp.bfloat16]


def placed(array, spec=P(), odd=()):
    """The array over the mesh; on the devices whose numbers are in `odd` its last element's lowest bit is flipped."""
    sharding = NamedSharding(MESH, spec)
    pieces = []
    for number, device in enumerate(MESH.devices.flat):
        piece = np.array(array[sharding.devices_indices_map(array.shape)[device]], order="C")
        if number in odd:
            piece.reshape(-1)[-1:].view(np.uint8)[0] ^= 1
        pieces.append(jax.device_put(piece, device))
    return jax.make_array_from_single_device_arrays(array.shape, sharding, pieces)


def found_in(arrays):
    shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for name, a in arrays.items()}
    return differing_devices(make_digests(shapes, MESH)(arrays), shapes, MESH)


def numbers(shape, dtype=np.float32):
    return np.random.default_rng(0).integers(0, 2, shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_one_flipped_bit_on_one_device_is_found(dtype):
    good = {"a": placed(numbers((3, 4), dtype)), "b": placed(numbers((), dtype))}
    assert found_in(good) is None
    assert found_in(good | {"b": placed(numbers((), dtype), odd=[5])}) == ("b", [MESH.devices.flat[5]])
    assert found_in(good | {"a": placed(numbers((3, 4), dtype), odd=[0])}) == ("a", [MESH.devices.flat[0]])


def test_only_copies_of_the_same_part_are_compared():
    parts = numbers((4, 6))
    parts[:, 3:] += 7
    assert found_in({"split": placed(parts, P(None, "fsdp"))}) is None
    name, devices = found_in({"split": placed(parts, P(None, "fsdp"), odd=[3])})
    assert (name, devices) == ("split", [MESH.devices.flat[3]])


def test_a_leaf_that_is_nowhere_twice_tells_nothing():
    assert found_in({"split": placed(numbers((8, 2)), P(("data", "fsdp")), odd=[3])}) is None


def test_where_no_majority_is_right_all_are_named():
    name, devices = found_in({"a": placed(numbers((5,)), odd=[0, 1, 2, 3])})
    assert name == "a" and len(devices) == 8


def test_two_elements_that_change_places_are_found():
    array = np.arange(6, dtype=np.float32)
    swapped = placed(array)
    other = array.copy()
    other[[1, 4]] = other[[4, 1]]
    pieces = [jax.device_put(other if n == 2 else array, d) for n, d in enumerate(MESH.devices.flat)]
    changed = jax.make_array_from_single_device_arrays(array.shape, swapped.sharding, pieces)
    assert found_in({"a": changed}) == ("a", [MESH.devices.flat[2]])
