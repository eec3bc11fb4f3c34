"""The device mesh, and how a batch lies on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pcls.errors import UserError

# The batch is split over data and fsdp, parameters over fsdp by choice, channels over model.
DATA, FSDP, MODEL = AXES = ("data", "fsdp", "model")
BATCH_AXES = (DATA, FSDP)


def make_mesh(data: int, fsdp: int = 1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Devices as data x fsdp x model.

    Slices of a multi-slice TPU job lie along the data axis: the network between them is slow, and the data axis asks
    least of it.

    Args:
      data, fsdp, model: devices along each axis; one `data` of -1 takes all that the others leave.
      devices: those to use; None: all of all processes.

    Raises:
      UserError: the axes do not multiply to the number of devices, or `data` does not divide by the slices.
    """
    devices = jax.devices() if devices is None else devices
    rows = len(devices) // (fsdp * model) if data == -1 else data
    if rows * fsdp * model != len(devices):
        raise UserError(
            f"mesh.data={data}, mesh.fsdp={fsdp} and mesh.model={model} do not multiply to the {len(devices)} devices "
            "here; set mesh.data=-1 for all that are left, and the others to divisors"
        )
    return Mesh(_arranged((rows, fsdp, model), devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(shape: tuple[int, int, int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices in the order that suits their network."""
    # A GPU's slice is its host, and any shape may cross hosts.
    gpus = devices[0].platform in ("gpu", "cuda", "rocm")
    slices = 1 if gpus else len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    rows, fsdp, model = shape
    if rows % slices:
        raise UserError(
            f"the data axis of {rows} does not divide by the {slices} slices; "
            f"set mesh.fsdp and mesh.model so that data (devices / (fsdp * model)) is a multiple of {slices}"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (rows // slices, fsdp, model), (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def shard_count(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over data and fsdp."""
    return NamedSharding(mesh, P(BATCH_AXES))


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, ascending; [rows] int64."""
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices if index is not None]))
