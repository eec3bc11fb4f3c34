"""The mesh, and what is split over it. Eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pcls.errors import UserError
from pcls.parallel.mesh import batch_sharding, check_batch_size, local_rows, make_mesh, replicated, state_shardings


@pytest.mark.parametrize(
    ("data", "fsdp", "shape"),
    [(-1, 1, (8, 1)), (-1, 2, (4, 2)), (-1, 8, (1, 8)), (4, 2, (4, 2)), (8, 1, (8, 1))],
)
def test_all_devices_make_up_the_mesh(data, fsdp, shape):
    mesh = make_mesh(data, fsdp)
    assert (mesh.shape["data"], mesh.shape["fsdp"]) == shape
    assert set(mesh.devices.ravel()) == set(jax.devices())


@pytest.mark.parametrize(("data", "fsdp"), [(-1, 3), (-1, 16), (4, 1), (16, 1), (3, 2)])
def test_a_mesh_of_another_number_of_devices_is_refused(data, fsdp):
    with pytest.raises(UserError) as raised:
        make_mesh(data, fsdp)
    assert str(raised.value) == (
        f"mesh.data={data} and mesh.fsdp={fsdp} do not multiply to the 8 devices here; "
        "set mesh.data=-1 for all that are left, and mesh.fsdp to a divisor"
    )


@pytest.mark.parametrize(("batch", "advice"), [(100, "96 or 104"), (1, "8"), (7, "8"), (9, "8 or 16")])
def test_a_batch_that_does_not_divide_is_refused_with_the_sizes_around_it(batch, advice):
    with pytest.raises(UserError) as raised:
        check_batch_size("train.batch_size", batch, make_mesh(-1, 2))
    assert str(raised.value) == f"train.batch_size is {batch} and does not divide by the 8 devices; write {advice}"


@pytest.mark.parametrize("batch", [8, 16, 128])
def test_a_batch_that_divides_passes(batch):
    check_batch_size("train.batch_size", batch, make_mesh(-1, 1))


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_the_batch_is_split_over_all_devices_and_each_row_is_read_once(fsdp):
    sharding = batch_sharding(make_mesh(-1, fsdp))
    assert local_rows(sharding, 24).tolist() == list(range(24))
    held = [np.arange(24)[index].tolist() for index in sharding.devices_indices_map((24,)).values()]
    assert sorted(row for rows in held for row in rows) == list(range(24))
    assert {len(rows) for rows in held} == {3}


def test_a_replicated_array_is_whole_on_every_device():
    mesh = make_mesh(-1, 2)
    assert local_rows(replicated(mesh), 5).tolist() == list(range(5))
    array = jax.device_put(jnp.arange(6), replicated(mesh))
    assert [shard.data.shape for shard in array.addressable_shards] == [(6,)] * 8


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 64, 128), P(None, None, None, "fsdp")),
        ((3, 3, 128, 64), P(None, None, "fsdp", None)),
        ((64, 64), P("fsdp", None)),  # of equals the first
        ((512, 1001), P("fsdp", None)),  # the largest does not divide
        ((4,), P("fsdp")),
        ((10,), P()),
        ((3, 5, 7), P()),
        ((), P()),
    ],
)
def test_state_is_split_along_its_largest_axis_that_divides(shape, spec):
    shardings = state_shardings(make_mesh(-1, 4), {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)})
    assert shardings["kernel"].spec == spec


def test_state_is_whole_everywhere_without_an_fsdp_axis():
    shardings = state_shardings(make_mesh(-1, 1), {"kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)})
    assert shardings["kernel"].is_fully_replicated


def test_a_split_state_takes_its_share_of_each_device():
    mesh = make_mesh(-1, 4)
    kernel = jnp.zeros((3, 3, 16, 32))
    placed = jax.device_put(kernel, state_shardings(mesh, {"kernel": kernel})["kernel"])
    assert {shard.data.size for shard in placed.addressable_shards} == {kernel.size // 4}
