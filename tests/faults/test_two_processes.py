"""One of two processes is asked to stop, or killed: the other does not go on alone, and the run ends as undisturbed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pcls.checkpoint.manifest import NAME
from pcls.launch.supervisor import free_port
from pcls.run.checkpoints import verify_checkpoints
from pcls.run.folder import RunFolder

from .conftest import TINY, command, digest_of

pytestmark = pytest.mark.faults

STEPS, HEARTBEAT = 800, 10
SETTINGS = TINY | {
    "train.duration": f"{STEPS} steps",
    "evaluate.every": f"{STEPS} steps",
    "checkpoint.every": "20 steps",
    "checkpoint.keep": 3,
}
TITLE = "two processes over gloo, a signal to one of them"
ENVIRONMENT = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


def start_one(path, index, port):
    meeting = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(index)]
    words = [*meeting, "--heartbeat", str(HEARTBEAT), *command("digits_rnn", path, SETTINGS)]
    with path.with_name(f"{path.name}-{index}.log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", "pcls", *words], env=ENVIRONMENT, stdout=log, stderr=log)


@pytest.fixture
def two(tmp_path):
    """Two processes of a run that has just saved its first step."""
    path, port = tmp_path / "run", free_port()
    processes = [start_one(path, index, port) for index in (0, 1)]
    try:
        wait_for(lambda: (path / "checkpoints" / "20" / NAME).exists(), processes)
        yield path, processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for(happened, processes, seconds=300):
    deadline = time.monotonic() + seconds
    while not happened():
        assert all(process.poll() is None for process in processes), [process.poll() for process in processes]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The digest of the same run under a supervisor that nobody disturbed."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    supervisor, told = supervised(path)
    assert supervisor.wait(timeout=600) == 0, told.read_text()
    return digest_of(path)


def supervised(path):
    """`pcls launch local -n 2` of a run, and the file that it speaks into."""
    words = command("digits_rnn", path, SETTINGS)[1:]
    told = path.with_name(f"{path.name}.told")
    with told.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pcls", "launch", "local", *words, "-n", "2", "--grace", "10"],
            env=ENVIRONMENT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return process, told


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("asked", [0, 1])
def test_sigterm_to_either_makes_both_save_the_same_step(asked, two, counted):
    path, processes = two
    processes[asked].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=120) for process in processes] == [42, 42]
    told = [path.with_name(f"{path.name}-{index}.log").read_text() for index in (0, 1)]
    steps = [re.search(r"stopped and saved at step ([\d,]+)", text)[1].replace(",", "") for text in told]
    status = RunFolder(path).status()
    assert steps == [str(status["step"])] * 2
    assert status["status"] == "stopped"
    # What one of the two had saved at another step would be no step: the other's part would be missing.
    found = list(verify_checkpoints(path))
    assert [each.problem for each in found] == [""] * len(found)
    assert found[-1].step == status["step"] < STEPS
    counted(TITLE)["SIGTERM: both saved the same step and ended with 42"] += 1


@pytest.mark.parametrize("killed", [0, 1])
def test_after_sigkill_to_one_the_other_ends_within_the_heartbeat_and_ten_seconds(killed, two, counted):
    path, processes = two
    processes[killed].kill()
    began = time.monotonic()
    code = processes[1 - killed].wait(timeout=HEARTBEAT + 60)
    assert time.monotonic() - began < HEARTBEAT + 10
    # A code after which a launcher starts again.
    assert code not in (0, 2, 43)
    assert max(each.step for each in verify_checkpoints(path) if not each.problem) >= 20
    counted(TITLE)[f"SIGKILL to process {killed}: the other ended within the heartbeat and 10 s"] += 1


@pytest.mark.parametrize("killed", [0, 1])
def test_after_sigkill_to_one_the_supervisor_starts_both_again_to_the_same_bits(killed, undisturbed, tmp_path, counted):
    path = tmp_path / "run"
    supervisor, told = supervised(path)
    try:
        wait_for(lambda: (path / "checkpoints" / "20" / NAME).exists(), [supervisor])
        victim = children_of(supervisor.pid)[killed]
        os.kill(victim, signal.SIGKILL)
        code = supervisor.wait(timeout=600)
    finally:
        supervisor.terminate()
        supervisor.wait()
    assert code == 0, told.read_text()
    assert re.search(rf"process {killed} was ended by SIGKILL; starting all again", told.read_text())
    assert digest_of(path) == undisturbed
    counted(TITLE)[f"SIGKILL to process {killed} under the supervisor: restarted, the undisturbed run's digest"] += 1
