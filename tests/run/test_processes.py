"""Two processes over gloo train what one process trains."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from pcls.observe.sinks import read_metrics
from pcls.run.evaluate import read_evaluation
from pcls.run.folder import RunFolder

SETTINGS = {
    "data.image_size": 10,
    "train.duration": "40 steps",
    "train.batch_size": 32,
    "mesh.fsdp": 2,
    "evaluate.every": "20 steps",
    # 359 held-out records: neither processes nor batches divide them.
    "evaluate.batch_size": 16,
    "checkpoint.every": "20 steps",
}


def start(path, devices, *options):
    arguments = [f"{key}={value}" for key, value in (SETTINGS | {"run.dir": str(path)}).items()]
    return subprocess.Popen(
        [sys.executable, "-m", "pcls", *options, "train", "digits_rnn", *arguments],
        env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a run of one process and of a run of two, and what the two wrote to the screen."""
    folder = tmp_path_factory.mktemp("processes")
    meeting = ("--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2")
    both = [start(folder / "two", 2, *meeting, "--process", str(index)) for index in range(2)]
    processes = [*both, start(folder / "one", 4)]
    try:
        told = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], told
    return folder / "one", folder / "two", [errors for _, errors in told[:2]]


def curve(path):
    return {row["step"]: row["loss"] for row in read_metrics(path) if row["kind"] == "train"}


def test_two_processes_have_the_loss_curve_of_one(runs):
    one, two = curve(runs[0]), curve(runs[1])
    assert list(one) == list(two) == [10, 20, 30, 40]
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)


def test_two_processes_count_every_held_out_record_once_with_the_same_result(runs):
    (one, first), (two, second) = (read_evaluation(RunFolder(path)) for path in runs[:2])
    assert two.n == one.n == 359
    assert two.top1 == one.top1
    assert two.loss == pytest.approx(one.loss, rel=1e-5)
    np.testing.assert_array_equal(second.records, np.arange(359))
    np.testing.assert_array_equal(second.predicted, first.predicted)
    np.testing.assert_array_equal(two.confusion, one.confusion)


def test_only_process_0_writes_and_speaks(runs):
    _, path, (first, second) = runs
    ours = ("step ", "eval ", "finished: ", "checkpoint ", f"{path}: ")
    told, silent = ([line for line in text.splitlines() if line.startswith(ours)] for text in (first, second))
    assert len(told) >= 4
    # XLA and gloo may log something there.
    assert silent == []
    assert RunFolder(path).status() == {"status": "finished", "step": 40, "steps": 40}
    assert len(list((path / "tensorboard").iterdir())) == 1
    assert len([row for row in read_metrics(path) if row["kind"] == "eval"]) == 2
    assert not (path / "lock").exists()


def test_a_checkpoint_of_two_processes_is_whole(runs, final_state):
    one, two = final_state(runs[0]), final_state(runs[1])
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
