"""Real processes, interrupted and killed; what they leave goes on to the result of a run nobody disturbed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import pcls
from pcls.checkpoint.manifest import NAME
from pcls.cli import main
from pcls.run.folder import RunFolder

pytestmark = [pytest.mark.faults, pytest.mark.system]

STEPS, INTERVAL = 600, 50
SETTINGS = {
    "data.image_size": 10,
    "train.duration": f"{STEPS} steps",
    "train.batch_size": 32,
    "train.ema_decay": 0.99,
    "evaluate.every": "300 steps",
    "checkpoint.every": f"{INTERVAL} steps",
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, final_state):
    run = pcls.train("digits_rnn", SETTINGS | {"run.dir": str(tmp_path_factory.mktemp("undisturbed") / "run")})
    return final_state(run.path), run.evaluation.summary()


def started(path: Path, log: Path) -> subprocess.Popen[bytes]:
    """A training process that has saved its first checkpoint."""
    arguments = [f"{key}={value}" for key, value in (SETTINGS | {"run.dir": str(path)}).items()]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "pcls", "train", "digits_rnn", *arguments], stderr=errors, stdout=subprocess.DEVNULL
        )
    deadline = time.monotonic() + 120
    while not (path / "checkpoints" / str(INTERVAL) / NAME).exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    return process


@pytest.fixture
def process(tmp_path):
    process = started(tmp_path / "run", tmp_path / "log")
    yield process
    process.kill()
    process.wait()


def assert_resumes(path, undisturbed, final_state):
    assert main(["resume", str(path)]) == 0
    expected, summary = undisturbed
    found = final_state(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert pcls.evaluate(path).summary() == summary


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_says_how_to_go_on_and_loses_nothing(
    number, process, tmp_path, undisturbed, final_state
):
    path = tmp_path / "run"
    process.send_signal(number)
    assert process.wait(60) == 42
    lines = (tmp_path / "log").read_text().splitlines()
    status = RunFolder(path).status()
    assert f"{number.name}: saving after this step; Ctrl-C now ends at once" in lines
    assert lines[-1] == f"pcls: stopped and saved at step {status['step']:,}; go on with: pcls resume {path}"
    assert status["status"] == "stopped"
    assert INTERVAL <= status["step"] < STEPS
    assert (path / "checkpoints" / str(status["step"]) / NAME).exists()
    assert not (path / "lock").exists()
    assert_resumes(path, undisturbed, final_state)


def test_a_killed_run_resumes_from_its_last_checkpoint(process, tmp_path, undisturbed, final_state, capsys):
    path = tmp_path / "run"
    with pytest.raises(pcls.UserError, match=f"process {process.pid} on "):
        pcls.resume(path)
    process.kill()
    process.wait()
    assert (path / "lock").exists()
    assert RunFolder(path).status()["status"] == "running"
    assert_resumes(path, undisturbed, final_state)
    resumed_from = re.search(r"from step (\d+) to 600 steps", capsys.readouterr().err)
    assert resumed_from is not None
    assert int(resumed_from[1]) in range(INTERVAL, STEPS, INTERVAL)
    assert not (path / "lock").exists()


def test_a_second_interrupt_ends_at_once(tmp_path):
    from pcls.run.signals import stop_requests

    # A shell starts what runs in its background with interrupts ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    told = []
    with stop_requests(told.append) as requested:
        assert not requested(1)
        os.kill(os.getpid(), signal.SIGINT)
        assert requested(2)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert len(told) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


LATE = """
import os, signal, sys, threading
from pcls.run.signals import stop_requests

# A shell starts what runs in its background with interrupts ignored; Python then ignores them too.
signal.signal(signal.SIGINT, signal.default_int_handler)
with stop_requests(lambda text: print(text, flush=True), float(sys.argv[2])) as requested:
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    assert requested(1)
    threading.Event().wait(3)
print("done in time")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_what_is_not_saved_in_time_is_given_up(name):
    done = subprocess.run([sys.executable, "-c", LATE, name, "0.5"], capture_output=True, text=True, check=False)
    assert done.returncode == 42
    assert done.stdout == f"{name}: saving after this step; Ctrl-C now ends at once\n"
    assert done.stderr == "pcls: not saved within 0 s (checkpoint.stop_within); the last checkpoint stays\n"


@pytest.mark.parametrize(("name", "within"), [("SIGINT", "0.5"), ("SIGTERM", "0"), ("SIGTERM", "60")])
def test_who_asks_by_ctrl_c_waits_and_so_does_who_gives_time(name, within):
    done = subprocess.run([sys.executable, "-c", LATE, name, within], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "done in time"), done.stderr
