"""The batch script, run by bash with stand-ins for srun and scontrol."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pcls.cli import main
from pcls.launch.job import Job
from pcls.launch.policy import Policy
from pcls.launch.slurm import Slurm, sbatch_script

# As srun: a process a task, and the highest code of all; one that it kills itself hides the others' codes (seen with
# 22.05), so it must be told to be patient.
SRUN = """
while [[ $1 == -* ]]; do
    case $1 in --wait=*) [ "${1#--wait=}" -ge 120 ] && patience=1;; --kill-on-bad-exit=0) patient=1;; esac
    shift
done
[ "$patience$patient" = 11 ] || exit 99
for ((rank = 0; rank < TASKS; rank++)); do SLURM_PROCID=$rank "$@" & pids+=($!); done
highest=0
for pid in "${pids[@]}"; do
    wait "$pid"; code=$?
    [ "$code" -gt "$highest" ] && highest=$code
done
exit "$highest"
"""


@pytest.fixture
def batch(tools, tmp_path, monkeypatch):
    """A function that runs a job's script: its tasks end with the codes; the exit code, and whether it was requeued."""
    requeued = tmp_path / "requeued"
    tools("srun", SRUN)
    tools("scontrol", f'echo "$@" >> {requeued}\n')
    tools("pcls", 'read -ra codes <<< "$CODES"; exit "${codes[SLURM_PROCID]}"\n')

    def run(codes, *, restarts=0, cap=3):
        job = Job("x", "digits_cnn", policy=Policy(max_restarts=cap))
        target = Slurm(job, tasks_per_node=len(codes))
        script = tmp_path / "x.sbatch"
        script.write_text(sbatch_script(target))
        environment = os.environ | {
            "CODES": " ".join(map(str, codes)),
            "TASKS": str(len(codes)),
            "SLURM_JOB_ID": "77",
            "SLURM_RESTART_COUNT": str(restarts),
        }
        done = subprocess.run(
            ["bash", str(script)], env=environment, cwd=tmp_path, timeout=30, stdout=subprocess.DEVNULL
        )
        told = requeued.read_text() if requeued.exists() else ""
        requeued.unlink(missing_ok=True)
        assert told in ("", "requeue 77\n")
        return done.returncode, bool(told)

    return run


@pytest.mark.parametrize(
    ("codes", "code", "requeued"),
    [
        ([0], 0, False),
        ([42], 42, True),
        ([1], 1, False),
        ([2], 2, False),
        ([43], 43, False),
        ([137], 137, True),
        ([0, 0], 0, False),
        ([42, 42], 42, True),
        ([1, 1], 1, True),
        # A code that is final wins over the signals that srun ends the others by.
        ([2, 137], 2, False),
        ([43, 143], 43, False),
    ],
)
def test_the_job_is_requeued_by_its_exit_codes(batch, codes, code, requeued):
    assert batch(codes) == (code, requeued)


def test_a_final_code_decides_though_the_others_abort_later(batch, tools):
    tools("pcls", '[ "$SLURM_PROCID" = 0 ] && exit 2; sleep 0.3; kill -ABRT $$\n')
    assert batch([0, 0, 0]) == (2, False)


def test_a_task_that_still_saves_when_another_has_ended_is_let_be(batch, tools, tmp_path):
    tools("pcls", f'[ "$SLURM_PROCID" = 0 ] && exit 42; sleep 0.5; touch {tmp_path / "saved"}; exit 42\n')
    assert batch([0, 0]) == (42, True)
    assert (tmp_path / "saved").exists()


def test_restarts_have_a_cap(batch):
    assert batch([42], restarts=2) == (42, True)
    assert batch([42], restarts=3) == (42, False)
    assert batch([42], cap=0) == (42, False)


def test_a_task_lives_through_the_signal_that_asks_it_to_save(tools, tmp_path):
    tools("srun", SRUN)
    tools("scontrol", f"touch {tmp_path / 'requeued'}\n")
    tools("pcls", f"trap 'exit 42' TERM; touch {tmp_path / 'ready'}; while :; do sleep 0.05; done\n")
    script = tmp_path / "x.sbatch"
    script.write_text(sbatch_script(Slurm(Job("x", "digits_cnn"))))
    environment = os.environ | {"TASKS": "1", "SLURM_JOB_ID": "77"}
    job = subprocess.Popen(["bash", str(script)], env=environment, cwd=tmp_path, start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # As at the end of the time, or by scancel: the tasks and the batch shell, all of them.
        found = subprocess.run(["pgrep", "-s", str(job.pid)], capture_output=True, text=True, check=True).stdout
        for pid in found.split():
            # The stand-in's sleeps come and go.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if not is_srun(pid):
                    os.kill(int(pid), signal.SIGTERM)
        assert job.wait(timeout=20) == 42
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(job.pid)], check=False)
        job.wait()
    assert not (tmp_path / "requeued").exists()


def is_srun(pid: str) -> bool:
    return any(Path(word).name == "srun" for word in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:2])


def test_directives_come_before_the_first_command_and_ask_for_time_to_save():
    script = sbatch_script(Slurm(Job("x", "digits_cnn", policy=Policy(grace=300.0)), time="12:00:00", nodes=2))
    head, *rest = script.splitlines()
    assert head == "#!/bin/bash"
    directives = [line for line in rest if line.startswith("#SBATCH ")]
    assert rest[: len(directives)] == directives
    assert "#SBATCH --signal=TERM@300" in directives
    assert "#SBATCH --requeue" in directives
    assert "#SBATCH --time=12:00:00" in directives


def test_a_batch_that_tasks_cannot_share_is_refused_and_a_relative_folder_told(capsys):
    argv = ["launch", "slurm", "digits_cnn", "--dry-run", "--nodes", "3", "--tasks-per-node", "5"]
    assert main([*argv, "train.batch_size=64"]) == 2
    told = "pcls: train.batch_size is 64 and does not divide by the 15 devices; write 60 or 75\n"
    assert capsys.readouterr().err == told
    fits = [*argv, "train.batch_size=60", "evaluate.batch_size=30"]
    assert main(fits) == 0
    text, errors = capsys.readouterr()
    assert text.startswith("cat")
    assert errors.startswith(
        "run.dir is runs/digits_cnn, in the folder that the job starts in; all nodes must share it"
    )
    assert main([*fits, "run.dir=/shared/runs/a"]) == 0
    assert capsys.readouterr().err == ""
    # Two devices see the same images.
    assert main([*argv[:-1], "4", "train.batch_size=66", "evaluate.batch_size=66", "mesh.model=2"]) == 0
