"""One process is the simplest case of several. (Several are tested where runs are.)"""

import jax
import jax.numpy as jnp
import numpy as np

from pcls.parallel.mesh import batch_sharding, make_mesh, replicated
from pcls.parallel.processes import agreed, barrier, everywhere, is_main, place, preempted


def test_one_process_is_main_agrees_with_itself_and_waits_for_nobody():
    assert is_main()
    assert agreed(7) == 7
    assert not preempted(3)
    barrier("alone")


def test_a_compiled_step_splits_a_placed_batch_over_the_devices():
    sharding = batch_sharding(make_mesh(-1, 2))
    host = {"image": np.arange(16 * 3, dtype=np.uint8).reshape(16, 3), "label": np.arange(16, dtype=np.int32)}
    taken = jax.jit(lambda batch: batch, in_shardings=sharding, out_shardings=sharding)(place(host, sharding, 16))
    assert taken["image"].dtype == jnp.uint8
    for name, array in host.items():
        assert taken[name].sharding == sharding
        assert np.array_equal(taken[name], array)


def test_what_is_the_same_in_every_process_is_put_whole_on_every_device():
    mesh = make_mesh(-1, 2)
    host = {"image": np.arange(6, dtype=np.uint8).reshape(3, 2), "label": np.arange(3, dtype=np.int32)}
    placed = everywhere(host, replicated(mesh))
    for name, array in host.items():
        assert placed[name].dtype == array.dtype
        assert [shard.data.tolist() for shard in placed[name].addressable_shards] == [array.tolist()] * 8
