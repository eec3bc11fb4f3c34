"""One process is the simplest case of several. (Several are tested where runs are.)"""

import os
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.errors import UserError
from pcls.parallel.mesh import batch_sharding, make_mesh, replicated
from pcls.parallel.processes import agreed, barrier, differing, everywhere, is_main, join, place, preempted


def test_one_process_is_main_agrees_with_itself_and_waits_for_nobody():
    assert is_main()
    assert agreed(7) == 7
    assert not preempted(3)
    barrier("alone")
    assert differing({"train.seed": 1}) == []


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


# Real processes


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def started(port, index, *arguments, timeout=60, processes=2):
    meeting = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(processes), "--process", str(index)]
    return subprocess.Popen(
        [sys.executable, "-m", "pcls", *meeting, "--join-timeout", str(timeout), *arguments],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.faults
@pytest.mark.parametrize("index", [0, 1], ids=["the others never come", "process 0 never comes"])
def test_a_process_that_waits_in_vain_ends_within_seconds_with_one_line(index, tmp_path):
    port, began = free_port(), time.monotonic()
    process = started(port, index, "train", "digits_rnn", f"run.dir={tmp_path}/run", timeout=3)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.splitlines() == [
        f"pcls: not all processes met at 127.0.0.1:{port} within 3 s; check that each was started, with "
        "this address and its own --process, or give them longer: --join-timeout SECONDS"
    ]
    assert time.monotonic() - began < 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["here", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", ":4242", "h:0", "h:65536"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UserError, match=r"host:port of process 0 is needed, as in 10\.0\.0\.1:4242, or auto"):
        join(address, 2, 0, timeout=10)


def test_a_number_that_no_process_has_is_refused():
    with pytest.raises(UserError, match="--process is 2; of --processes=2 they are 0 to 1"):
        join("127.0.0.1:4242", 2, 2, timeout=10)


@pytest.mark.faults
def test_a_port_that_is_taken_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = started(taken.getsockname()[1], 0, "models", "list", timeout=5)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    lines = [line for line in errors.splitlines() if line.startswith("pcls: ")]
    assert len(lines) == 1, errors


def test_where_no_cluster_is_detected_auto_is_refused():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "OMPI", "TPU"))}
    done = subprocess.run(
        [sys.executable, "-m", "pcls", "--coordinator", "auto", "--join-timeout", "10", "models", "list"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("pcls: cannot join the other processes at auto: ")


def test_processes_with_different_recipes_all_end_and_name_the_keys(tmp_path):
    port, same = free_port(), ["train", "digits_rnn", "data.image_size=10", f"run.dir={tmp_path}/run"]
    both = [
        started(port, 0, *same, "train.seed=1", "optimizer.lr=0.1"),
        started(port, 1, *same, "train.seed=2", "optimizer.lr=0.2"),
    ]
    try:
        told = [process.communicate(timeout=90)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [2, 2], told
    for errors in told:
        lines = [line for line in errors.splitlines() if line.startswith("pcls: ")]
        assert lines == [
            "pcls: the processes differ in train.seed, optimizer.lr; start all with the same recipe and overrides"
        ]
    assert list(tmp_path.iterdir()) == []
