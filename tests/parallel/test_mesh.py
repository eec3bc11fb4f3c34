"""The mesh, and how a batch lies on it. Eight devices."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.errors import UserError
from pcls.parallel.mesh import batch_sharding, local_rows, make_mesh, replicated, shard_count
from pcls.parallel.shares import check_batch_size


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ((-1,), (8, 1, 1)),
        ((8,), (8, 1, 1)),
        ((-1, 2), (4, 2, 1)),
        ((-1, 8), (1, 8, 1)),
        ((4, 2), (4, 2, 1)),
        ((-1, 1, 2), (4, 1, 2)),
        ((-1, 2, 2), (2, 2, 2)),
        ((1, 1, 8), (1, 1, 8)),
    ],
)
def test_all_devices_make_up_the_mesh(axes, shape):
    mesh = make_mesh(*axes)
    assert mesh.axis_names == ("data", "fsdp", "model")
    assert mesh.devices.shape == shape
    assert sorted(mesh.devices.ravel(), key=lambda device: device.id) == jax.devices()


@pytest.mark.parametrize("axes", [(-1, 3, 1), (-1, 16, 1), (-1, 4, 4), (4, 1, 1), (16, 1, 1), (3, 2, 1), (2, 2, 1)])
def test_a_mesh_of_another_number_of_devices_is_refused(axes):
    data, fsdp, model = axes
    with pytest.raises(UserError) as raised:
        make_mesh(data, fsdp, model)
    assert str(raised.value) == (
        f"mesh.data={data}, mesh.fsdp={fsdp} and mesh.model={model} do not multiply to the 8 devices here; "
        "set mesh.data=-1 for all that are left, and the others to divisors"
    )


def test_a_mesh_may_take_some_of_the_devices():
    some = jax.devices()[2:6]
    assert make_mesh(-1, 2, devices=some).devices.tolist() == [[[some[0]], [some[1]]], [[some[2]], [some[3]]]]
    with pytest.raises(UserError, match="do not multiply to the 4 devices here"):
        make_mesh(8, devices=some)


@dataclass(frozen=True)
class ChipOfASlice:
    """What a mesh asks of a device of a multi-slice TPU job."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "stub"


def test_slices_lie_along_the_data_axis_and_no_other():
    chips = [ChipOfASlice(number, slice_index=number % 2) for number in range(8)]
    mesh = make_mesh(-1, 2, devices=chips)
    assert mesh.devices.shape == (4, 2, 1)
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    # The first half of the rows is one slice: a batch is split so that neighbours in it are neighbours in the network.
    assert slices[:, :, 0].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert len(set(mesh.devices.ravel())) == 8


def test_hosts_of_gpus_are_no_slices():
    gpus = [ChipOfASlice(number, slice_index=number // 4, platform="gpu") for number in range(8)]
    assert make_mesh(1, 8, devices=gpus).devices.shape == (1, 8, 1)


@pytest.mark.parametrize(("axes", "rows"), [((-1, 4, 2), 1), ((-1, 8, 1), 1), ((3, 2, 2), 3)])
def test_slices_that_do_not_divide_the_data_axis_are_refused(axes, rows):
    count = rows * axes[1] * axes[2]
    chips = [ChipOfASlice(number, slice_index=number * 2 // count) for number in range(count)]
    with pytest.raises(UserError) as raised:
        make_mesh(*axes, devices=chips)
    assert str(raised.value) == (
        f"the data axis of {rows} does not divide by the 2 slices; "
        "set mesh.fsdp and mesh.model so that data (devices / (fsdp * model)) is a multiple of 2"
    )


@pytest.mark.parametrize(("axes", "parts"), [((-1,), 8), ((-1, 2), 8), ((-1, 8), 8), ((-1, 1, 2), 4), ((1, 2, 4), 2)])
def test_a_batch_is_split_over_data_and_fsdp_but_not_over_model(axes, parts):
    mesh = make_mesh(*axes)
    sharding = batch_sharding(mesh)
    assert shard_count(mesh) == parts
    assert local_rows(sharding, 24).tolist() == list(range(24))
    held = [np.arange(24)[index].tolist() for index in sharding.devices_indices_map((24,)).values()]
    assert {len(rows) for rows in held} == {24 // parts}
    # Devices along the model axis hold the same rows.
    assert sorted(row for rows in held for row in rows) == sorted([*range(24)] * (8 // parts))


@pytest.mark.parametrize(("batch", "advice"), [(100, "96 or 104"), (1, "8"), (7, "8"), (9, "8 or 16")])
def test_a_batch_that_does_not_divide_is_refused_with_the_sizes_around_it(batch, advice):
    with pytest.raises(UserError) as raised:
        check_batch_size("train.batch_size", batch, shard_count(make_mesh(-1, 2)))
    assert str(raised.value) == f"train.batch_size is {batch} and does not divide by the 8 devices; write {advice}"


@pytest.mark.parametrize(("axes", "batch"), [((-1,), 8), ((-1,), 128), ((-1, 1, 2), 4), ((-1, 2, 4), 1 * 2)])
def test_a_batch_that_divides_passes(axes, batch):
    check_batch_size("train.batch_size", batch, shard_count(make_mesh(*axes)))


def test_a_replicated_array_is_whole_on_every_device():
    mesh = make_mesh(-1, 2, 2)
    assert local_rows(replicated(mesh), 5).tolist() == list(range(5))
    array = jax.device_put(jnp.arange(6), replicated(mesh))
    assert [shard.data.shape for shard in array.addressable_shards] == [(6,)] * 8
