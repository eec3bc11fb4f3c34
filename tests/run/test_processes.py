"""The same eight devices in one process, in two and in four: the same training, over gloo."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import pcls
from pcls.checkpoint.manifest import NAME
from pcls.observe.sinks import read_metrics
from pcls.run.evaluate import read_evaluation
from pcls.run.folder import RunFolder
from pcls.run.rollback import rollbacks_of

pytestmark = pytest.mark.system

SETTINGS = {
    "data.image_size": 10,
    "train.duration": "50 steps",
    "train.batch_size": 32,
    "train.ema_decay": 0.9,
    "evaluate.every": "50 steps",
    # 359 held-out records: neither processes nor batches divide them.
    "evaluate.batch_size": 48,
    "checkpoint.every": "50 steps",
}
# Overrides of `japanese_vowels_gru`. Three lengths, two of them padded alike.
SEQUENCES = {
    "data.source": "sequences",
    "data.buckets": 2,
    "data.tail": "pad",
    "model.name": "rnn",
    "model.bidirectional": False,
    "model.hidden": 4,
    "train.duration": "6 steps",
    "train.batch_size": 16,
    "evaluate.every": "6 steps",
    "checkpoint.every": "6 steps",
}


def start(path, processes, devices, recipe="digits_rnn", settings=SETTINGS, **overrides):
    """A run of so many processes, each with so many devices."""
    settings = settings | {"run.dir": str(path)} | overrides
    arguments = ["train", recipe, *(f"{key}={value}" for key, value in settings.items())]
    meeting = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(processes), "--process"]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "pcls", *([*meeting, str(index)] if processes > 1 else []), *arguments],
            env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def ended(processes, timeout=240):
    """Exit codes, and what each wrote to standard error."""
    try:
        told = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], told


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By the number of processes: the folder of a run, and what its processes wrote to the screen."""
    folder = tmp_path_factory.mktemp("processes")
    found = {}
    for count in (1, 2, 4):
        codes, told = ended(start(folder / str(count), count, 8 // count))
        assert codes == [0] * count, told
        found[count] = folder / str(count), told
    return found


SEVERAL = pytest.mark.parametrize("count", [2, 4])


def curve(path):
    return {row["step"]: row["loss"] for row in read_metrics(path) if row["kind"] == "train"}


@SEVERAL
def test_several_processes_have_the_loss_curve_of_one(runs, count):
    one, several = curve(runs[1][0]), curve(runs[count][0])
    assert list(one) == list(several) == [10, 20, 30, 40, 50]
    np.testing.assert_allclose(list(several.values()), list(one.values()), rtol=1e-5)


@SEVERAL
def test_several_processes_count_every_held_out_record_once_with_the_same_result(runs, count):
    (one, first), (several, second) = (read_evaluation(RunFolder(runs[n][0])) for n in (1, count))
    assert (several.n, several.undecodable) == (one.n, one.undecodable) == (359, 0)
    assert (several.top1, several.top5) == (one.top1, one.top5)
    assert several.loss == pytest.approx(one.loss, rel=1e-5)
    np.testing.assert_array_equal(second.records, np.arange(359))
    np.testing.assert_array_equal(second.predicted, first.predicted)
    np.testing.assert_array_equal(several.confusion, one.confusion)


@SEVERAL
def test_the_same_weights_have_the_same_evaluation_to_the_last_digit_in_one_process(runs, count, tmp_path):
    path = shutil.copytree(runs[count][0], tmp_path / "run")
    written = (path / "evaluation.json").read_text()
    pcls.evaluate(path)
    assert (path / "evaluation.json").read_text() == written


@SEVERAL
def test_only_process_0_writes_and_speaks(runs, count):
    path, (first, *others) = runs[count]
    ours = ("step ", "eval ", "finished: ", "checkpoint ", f"{path}: ")
    told, *silent = ([line for line in text.splitlines() if line.startswith(ours)] for text in (first, *others))
    assert len(told) >= 4
    # XLA and gloo may log something there.
    assert silent == [[]] * (count - 1)
    assert RunFolder(path).status() == {"status": "finished", "step": 50, "steps": 50}
    assert len(list((path / "tensorboard").iterdir())) == 1
    assert len([row for row in read_metrics(path) if row["kind"] == "eval"]) == 1
    assert not (path / "lock").exists()


@SEVERAL
def test_a_checkpoint_of_several_processes_is_whole(runs, final_state, count):
    one, several = final_state(runs[1][0]), final_state(runs[count][0])
    assert one.keys() == several.keys()
    for name, value in one.items():
        np.testing.assert_allclose(several[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_two_processes_train_on_length_buckets_as_one_does(tmp_path, final_state):
    settings = SEQUENCES | {"data.path": sequences(tmp_path / "set.npz")}
    codes, told = ended(start(tmp_path / "two", 2, 4, "japanese_vowels_gru", settings))
    assert codes == [0, 0], told
    assert "sequences/s" in told[0]
    run = pcls.train("japanese_vowels_gru", settings | {"run.dir": str(tmp_path / "one")})
    one, two = final_state(tmp_path / "one"), final_state(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    evaluation, _ = read_evaluation(RunFolder(tmp_path / "two"))
    assert evaluation.n == run.evaluation.n == 10
    assert evaluation.loss == pytest.approx(run.evaluation.loss, rel=1e-5)


def sequences(path):
    """An archive of 50 noisy sequences of 8 features and 2, 3 or 7 steps, of two classes; no batch divides them."""
    rng, lengths, labels = np.random.default_rng(0), np.arange(50) % 3, np.arange(50) % 2
    lengths = np.array([2, 3, 7])[lengths]
    values = rng.normal(np.repeat(labels, lengths)[:, None], 1, (lengths.sum(), 8))
    np.savez(path, values=values, lengths=lengths, labels=labels)
    return str(path)


@pytest.mark.faults
def test_a_signal_to_one_process_stops_all_at_the_same_dispatch(tmp_path):
    path = tmp_path / "run"
    processes = start(
        path, 2, 2, **{"train.duration": "5000 steps", "train.steps_per_dispatch": 4, "evaluate.every": "5000 steps"}
    )
    try:
        wait_for(path / "checkpoints" / "50" / NAME, processes)
        processes[1].send_signal(signal.SIGTERM)
        codes, told = ended(processes, timeout=60)
    finally:
        for process in processes:
            process.kill()
    assert codes == [42, 42], told
    status = RunFolder(path).status()
    assert status["status"] == "stopped"
    assert 50 <= status["step"] < 5000
    assert (path / "checkpoints" / str(status["step"]) / NAME).exists()


def wait_for(path, processes):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert all(process.poll() is None for process in processes), [p.stderr.read() for p in processes]
        assert time.monotonic() < deadline
        time.sleep(0.01)


# What a process does otherwise before it starts as usual; its first argument is its number.
CHANGED = """
import sys, time
from pcls.cli import main
index = sys.argv.pop(1)
{change}
sys.exit(main(sys.argv[1:]))
"""
SLOW = """
from pcls.run import session
place = session.placed
session.placed = lambda setup, batch: (time.sleep(0.2 * (index == "1")), place(setup, batch))[1]
"""
# The losses of steps 6 to 8 are not numbers.
LOST = """
import jax.numpy as jnp
from pcls.training import program
make = program.training_loss
def training_loss(*arguments, **options):
    loss_of = make(*arguments, **options)
    return lambda logits, label, step: loss_of(logits, label, step) * jnp.where((step > 4) & (step < 8), jnp.nan, 1.0)
program.training_loss = training_loss
"""


def changed_run(change, path, processes, **settings):
    """A run of processes that share two devices; returns what each wrote to standard error."""
    settings = SETTINGS | settings | {"run.dir": str(path)}
    arguments = ["train", "digits_rnn", *(f"{key}={value}" for key, value in settings.items())]
    meeting = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(processes), "--process"]
    program = CHANGED.format(change=change)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(index), *([*meeting, str(index)] if processes > 1 else []), *arguments],
            env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={2 // processes}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    codes, told = ended(started)
    assert codes == [0] * processes, told
    return told


def test_the_process_that_holds_up_the_others_is_named(tmp_path):
    path = tmp_path / "run"
    told = changed_run(SLOW, path, 2, **{"train.duration": "20 steps"})
    rows = [row for row in read_metrics(path) if row["kind"] == "train"]
    assert {row["slowest_process"] for row in rows} == {1}
    assert min(row["slowest_host_seconds"] for row in rows) > 0.2 > rows[-1]["host_seconds"]
    (line,) = [line for line in told[0].splitlines() if line.startswith("process ")]
    assert line.startswith(f"process 1 on {socket.gethostname()} takes 0.") and "look at its data" in line


def test_two_processes_go_back_together_as_one_does(tmp_path, final_state):
    settings = {
        "train.duration": "12 steps",
        "checkpoint.every": "2 steps",
        "guard.not_finite": 2,
        "guard.verify": "4 steps",
    }
    for processes in (1, 2):
        told = changed_run(LOST, tmp_path / str(processes), processes, **settings)
        assert "back to the weights of step 4, on with the data of step 8" in told[0]
    one, two = (rollbacks_of(RunFolder(tmp_path / str(processes))) for processes in (1, 2))
    assert one == two and len(one) == 1
    expected = final_state(tmp_path / "1")
    for name, leaf in final_state(tmp_path / "2").items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
