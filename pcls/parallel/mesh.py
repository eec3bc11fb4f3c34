"""The device mesh and the shardings of batch and state."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pcls.errors import UserError

DATA, FSDP = "data", "fsdp"


def make_mesh(data: int, fsdp: int) -> Mesh:
    """All devices of all processes as data x fsdp.

    Args:
      data: devices along the data axis; -1: all that `fsdp` leaves.
      fsdp: devices along the fsdp axis.

    Raises:
      UserError: the two do not multiply to the number of devices.
    """
    devices = jax.device_count()
    rows = devices // fsdp if data == -1 else data
    if rows * fsdp != devices:
        raise UserError(
            f"mesh.data={data} and mesh.fsdp={fsdp} do not multiply to the {devices} devices here; "
            "set mesh.data=-1 for all that are left, and mesh.fsdp to a divisor"
        )
    return jax.make_mesh((rows, fsdp), (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch_size(key: str, batch_size: int, mesh: Mesh) -> None:
    """UserError unless every device gets the same number of images."""
    if batch_size % mesh.size:
        lower = batch_size // mesh.size * mesh.size
        choices = f"{lower} or {lower + mesh.size}" if lower else str(mesh.size)
        raise UserError(f"{key} is {batch_size} and does not divide by the {mesh.size} devices; write {choices}")


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over all devices."""
    return NamedSharding(mesh, P((DATA, FSDP)))


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """A sharding for every leaf of a state: its largest axis that divides is split over fsdp.

    Args:
      mesh: data x fsdp.
      state: a pytree of arrays or their shapes.
    """
    return jax.tree.map(lambda leaf: _fsdp_sharding(mesh, leaf.shape), state)


def _fsdp_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    size = mesh.shape[FSDP]
    fitting = [axis for axis in range(len(shape)) if shape[axis] % size == 0]
    if size == 1 or not fitting:
        return replicated(mesh)
    largest = max(fitting, key=lambda axis: shape[axis])
    return NamedSharding(mesh, P(*(FSDP if axis == largest else None for axis in range(len(shape)))))


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, ascending; [rows] int64."""
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices if index is not None]))
