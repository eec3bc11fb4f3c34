"""The batch script on a real Slurm of one node, with stand-ins for pcls and with pcls itself: `make test-slurm`."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pcls.checkpoint.manifest import NAME
from pcls.cli import main
from pcls.launch.supervisor import free_port
from pcls.run.folder import RunFolder

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, PROGRAMS)), reason="needs slurm-wlm and munge, and to be root"
    ),
]
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
KillWait=5
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 Sockets=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=1000
PartitionName=main Nodes={host} Default=YES State=UP
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Slurm whose tools find it by SLURM_CONF."""
    # The path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="pcls-slurm-"))
    host = socket.gethostname().partition(".")[0]
    file = folder / "slurm.conf"
    file.write_text(CONFIGURATION.format(host=host, folder=folder, controller=free_port(), node=free_port()))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    munged = [
        f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("socket", "key-file", "pid-file", "log-file")
    ]
    os.environ["SLURM_CONF"] = str(file)
    programs = (["munged", "--foreground", "--force", *munged], ["slurmctld", "-D"], ["slurmd", "-D"])
    started = []
    try:
        for argv in programs:
            with (folder / f"{argv[0]}.out").open("wb") as log:
                started.append(subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
            time.sleep(1)
        wait_for(lambda: "idle" in said("sinfo", "--noheader"))
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=20)
        del os.environ["SLURM_CONF"]
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def submitted(cluster, tmp_path, monkeypatch, capfd):
    """A function that submits a job of two tasks, in which pcls is a bash script; its number."""
    monkeypatch.chdir(tmp_path)

    def submit(script: str, *options: str) -> str:
        program = tmp_path / "pcls"
        program.write_text("#!/bin/bash\n" + script)
        program.chmod(0o755)
        words = ["launch", "slurm", "digits_cnn", "--tasks-per-node", "2", "--pcls", str(program), "--name", "try"]
        assert main([*words, "--grace", "5", *options, "--submit"]) == 0
        return re.search(r"Submitted batch job (\d+)", capfd.readouterr().out)[1]

    return submit


def said(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def job(number: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", said("scontrol", "show", "job", number)))


def wait_for(condition, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, said("squeue")
        time.sleep(0.2)


def test_a_run_that_asks_for_a_restart_goes_back_into_the_queue_and_ends_well(submitted, tmp_path):
    starts = f'echo "$SLURM_RESTART_COUNT" >> {tmp_path}/starts-$SLURM_PROCID\n'
    number = submitted(starts + '[ "${SLURM_RESTART_COUNT:-0}" = 0 ] && exit 42; exit 0\n')
    wait_for(lambda: job(number)["Restarts"] == "1" and job(number)["JobState"] == "PENDING")
    # Slurm itself waits two minutes.
    said("scontrol", "update", f"jobid={number}", "StartTime=now")
    wait_for(lambda: job(number)["JobState"] == "COMPLETED")
    assert (tmp_path / "starts-0").read_text() == (tmp_path / "starts-1").read_text() == "\n1\n"


def test_a_final_code_fails_the_job_though_the_other_task_aborts(submitted):
    number = submitted('[ "$SLURM_PROCID" = 0 ] && exit 43; sleep 1; kill -ABRT $$\n')
    wait_for(lambda: job(number)["JobState"] == "FAILED")
    assert (job(number)["ExitCode"], job(number)["Restarts"]) == ("43:0", "0")


def test_a_cancelled_run_saves_and_is_not_started_again(submitted, tmp_path):
    number = submitted(
        f"trap 'touch {tmp_path}/saved-$SLURM_PROCID; exit 42' TERM; touch {tmp_path}/ready-$SLURM_PROCID\n"
        "while :; do sleep 0.1; done\n"
    )
    wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
    said("scancel", number)
    wait_for(lambda: len(list(tmp_path.glob("saved-*"))) == 2)
    wait_for(lambda: job(number)["JobState"] == "CANCELLED")
    time.sleep(1)
    assert job(number)["Restarts"] == "0"


def test_two_tasks_train_as_one_run_and_a_requeued_job_goes_on_from_its_checkpoint(submitted, tmp_path):
    path, log = tmp_path / "run", tmp_path / "log"
    settings = {
        "run.dir": path,
        "data.image_size": 10,
        "train.batch_size": 32,
        "train.duration": "3000 steps",
        "evaluate.every": "3000 steps",
        "checkpoint.every": "100 steps",
    }
    number = submitted(
        "export XLA_FLAGS=--xla_force_host_platform_device_count=1\n"
        f'exec {sys.executable} -m pcls "$@" 2>> {log}-$SLURM_PROCID\n',
        *("--grace", "60", *(f"{key}={value}" for key, value in settings.items())),
    )
    wait_for(lambda: (path / "checkpoints" / "100" / NAME).exists(), 300)
    said("scontrol", "requeue", number)
    wait_for(lambda: job(number)["Restarts"] == "1" and job(number)["JobState"] == "PENDING", 120)
    assert RunFolder(path).status()["step"] < 3000
    said("scontrol", "update", f"jobid={number}", "StartTime=now")
    wait_for(lambda: job(number)["JobState"] == "COMPLETED", 600)
    told = Path(f"{log}-0").read_text()
    # Found by jax in what Slurm says: nobody named the other, or its address.
    starts = re.findall(r"; 2 x cpu; (for|from step ([\d,]+) to) 3,000 steps", told)
    assert [start.split()[0] for start, _ in starts] == ["for", "from"]
    assert int(starts[1][1].replace(",", "")) >= 100
    assert RunFolder(path).status() == {"status": "finished", "step": 3000, "steps": 3000}
