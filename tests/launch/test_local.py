"""`pcls launch local`: what it starts, and a real run of two processes that is interrupted and goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pcls.checkpoint.manifest import NAME
from pcls.cli import main
from pcls.errors import UserError
from pcls.launch.job import make_job
from pcls.launch.local import Meeting, local_commands, newest_step
from pcls.launch.policy import Policy
from pcls.observe.sinks import read_metrics
from pcls.run.folder import RunFolder

ALONE = Meeting()
STEPS = 240
SETTINGS = {
    "data.image_size": 10,
    "augment.shift": 1,
    "train.duration": f"{STEPS} steps",
    "train.batch_size": 32,
    "train.ema_decay": 0.9,
    "evaluate.every": f"{STEPS} steps",
    "checkpoint.every": "20 steps",
}


def made(processes=1, gpus=0, meeting=ALONE):
    job = make_job("digits_cnn", ["train.seed=3"], Policy())
    return local_commands(job, Path("runs/x"), processes=processes, gpus=gpus, meeting=meeting)()


def test_one_process_needs_no_meeting():
    (command,) = made()
    assert command.argv == (sys.executable, "-m", "pcls", "train", "--resume", "--", "digits_cnn", "train.seed=3")
    assert command.env == {}
    assert command.log == Path("runs/x/logs/process-0.log")


def test_several_meet_at_a_port_of_this_machine_that_is_drawn_anew():
    first, second = made(2), made(2)
    joining = [command.argv[3:11] for command in first]
    assert [words[0::2] for words in joining] == [("--coordinator", "--processes", "--process", "--join-timeout")] * 2
    assert [words[1::2] for words in joining] == [(joining[0][1], "2", str(index), "300") for index in (0, 1)]
    assert joining[0][1].startswith("127.0.0.1:")
    assert first[0].argv[4] != second[0].argv[4]


@pytest.mark.parametrize(
    ("visible", "shares"),
    [(None, ["0,1", "2,3"]), ("4,5,6,7", ["4,5", "6,7"]), ("GPU-a,GPU-b,1,0,9", ["GPU-a,GPU-b", "1,0"])],
)
def test_each_process_sees_its_share_of_the_gpus(visible, shares, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [command.env for command in made(2, gpus=2)] == [{"CUDA_VISIBLE_DEVICES": share} for share in shares]


def test_more_gpus_than_may_be_seen_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(UserError, match=r"2 processes need 2 GPUs, and CUDA_VISIBLE_DEVICES has 1 \(3\)"):
        made(2, gpus=1)


def test_processes_of_several_machines_are_numbered_through():
    commands = made(2, meeting=Meeting("node1:4242", total=6, first=4))
    assert [command.argv[3:11] for command in commands] == [
        ("--coordinator", "node1:4242", "--processes", "6", "--process", str(index), "--join-timeout", "900")
        for index in (4, 5)
    ]
    assert [command.log.name for command in commands] == ["process-4.log", "process-5.log"]


@pytest.mark.parametrize(
    ("processes", "meeting", "message"),
    [
        (1, Meeting(total=4), "--total and --first need --coordinator HOST:PORT"),
        (1, Meeting("auto", first=1), "--total and --first need --coordinator HOST:PORT"),
        (2, Meeting("auto"), "with --coordinator auto a machine has one process"),
        (2, Meeting("node1:4242", total=4, first=3), "those of this one are 3 to 4"),
        (1, Meeting("node1:4242"), "--total is 0"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(processes, meeting, message):
    with pytest.raises(UserError, match=message):
        made(processes, meeting=meeting)


def test_progress_is_the_newest_checkpoint(tmp_path):
    assert newest_step(tmp_path) == -1
    for name in ("20", "100", "100.corrupt", "tmp-3", "300.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_step(tmp_path) == 100


def test_a_wrong_recipe_starts_nothing(tmp_path, capsys):
    assert main(["launch", "local", "digits_cnn", "train.batch_sise=2", f"run.dir={tmp_path / 'run'}"]) == 2
    assert "train.batch_size" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults
@pytest.mark.system
def test_a_run_of_two_processes_that_is_asked_to_stop_starts_again_and_finishes(tmp_path):
    path = tmp_path / "run"
    settings = [f"{key}={value}" for key, value in (SETTINGS | {"run.dir": path}).items()]
    command = [sys.executable, "-m", "pcls", "launch", "local", "digits_cnn", *settings, "-n", "2"]
    supervisor = subprocess.Popen(
        command,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        first = wait_for_checkpoint(path, supervisor)
        children = children_of(supervisor.pid)
        assert len(children) == 2
        os.kill(children[1], signal.SIGTERM)
        told, _ = supervisor.communicate(timeout=240)
    finally:
        supervisor.kill()
        supervisor.communicate()
    assert supervisor.returncode == 0, told
    assert "ended with exit code 42; starting all again in" in told
    assert "finished: " in told
    # Process 0 speaks for both, marked as such.
    assert all(line.startswith(("[0] ", "process ")) for line in told.splitlines())
    for index in (0, 1):
        log = (path / "logs" / f"process-{index}.log").read_text()
        assert log.count("== start ") == 2
    assert RunFolder(path).status() == {"status": "finished", "step": STEPS, "steps": STEPS}
    steps = [row["step"] for row in read_metrics(path) if row["kind"] == "train"]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS > first


def wait_for_checkpoint(path: Path, supervisor: subprocess.Popen[str]) -> int:
    deadline = time.monotonic() + 120
    while not (found := list((path / "checkpoints").glob(f"[0-9]*/{NAME}"))):
        assert supervisor.poll() is None, supervisor.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(found[0].parent.name)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
