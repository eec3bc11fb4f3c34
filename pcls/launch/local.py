"""Processes of this machine."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pcls.errors import UserError
from pcls.launch.job import JOIN_TIMEOUT, Job
from pcls.launch.supervisor import Command, free_port

# On one machine all start at once; the rest is Python's own start.
LOCAL_JOIN_TIMEOUT = 300


@dataclass(frozen=True)
class Meeting:
    """Where processes of several machines meet.

    Attributes:
      coordinator: host:port of process 0, or `auto`; empty: all processes are on this machine.
      total: processes of all machines together, with host:port.
      first: the number of this machine's first.
    """

    coordinator: str = ""
    total: int = 0
    first: int = 0


def check_meeting(meeting: Meeting, processes: int) -> None:
    """UserError where the numbers contradict each other."""
    if meeting.coordinator in ("", "auto"):
        if meeting.total or meeting.first:
            raise UserError("--total and --first need --coordinator HOST:PORT")
        if meeting.coordinator and processes > 1:
            raise UserError(f"-n {processes}: with --coordinator auto a machine has one process; leave out -n")
    elif meeting.first + processes > meeting.total:
        raise UserError(
            f"--total is {meeting.total}; it counts the processes of all machines, and those of this one are "
            f"{meeting.first} to {meeting.first + processes - 1}"
        )


def local_commands(job: Job, run: Path, *, processes: int, gpus: int, meeting: Meeting) -> Callable[[], list[Command]]:
    """A function that makes the processes of one start; they meet at a port that is free at that time.

    Args:
      job: to run.
      run: the run's folder; logs are kept in it.
      processes: how many.
      gpus: each has so many GPUs for itself; 0: each sees all devices.
      meeting: with processes of other machines, or of this one only.

    Raises:
      UserError: the numbers contradict each other, or there are not so many GPUs in CUDA_VISIBLE_DEVICES.
    """
    check_meeting(meeting, processes)
    environments = [{"CUDA_VISIBLE_DEVICES": own} for own in _shares(processes, gpus)] if gpus else [{}] * processes

    def make() -> list[Command]:
        coordinator = meeting.coordinator or (f"127.0.0.1:{free_port()}" if processes > 1 else "")
        return [
            Command(
                (sys.executable, "-m", "pcls", *_joining(meeting, coordinator, processes, index), *job.train),
                log_file(run, meeting, index),
                environments[index],
            )
            for index in range(processes)
        ]

    return make


def log_file(run: Path, meeting: Meeting, index: int) -> Path:
    """Where a process's output goes; by the machine's name where numbers are not known here."""
    name = socket.gethostname() if meeting.coordinator == "auto" else str(meeting.first + index)
    return run / "logs" / f"process-{name}.log"


def newest_step(run: Path) -> int:
    """The highest step that a run has saved, by the names of its checkpoints; -1 before the first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return -1
    return max((int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()), default=-1)


def _joining(meeting: Meeting, coordinator: str, processes: int, index: int) -> tuple[str, ...]:
    if not coordinator:
        return ()
    if coordinator == "auto":
        return ("--coordinator", "auto", "--join-timeout", str(JOIN_TIMEOUT))
    timeout = JOIN_TIMEOUT if meeting.coordinator else LOCAL_JOIN_TIMEOUT
    return (
        *("--coordinator", coordinator, "--processes", str(meeting.total or processes)),
        *("--process", str(meeting.first + index), "--join-timeout", str(timeout)),
    )


def _shares(processes: int, gpus: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each process: its share of what this process may see itself."""
    needed, given = processes * gpus, os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = given.split(",") if given is not None else [str(gpu) for gpu in range(needed)]
    if len(visible) < needed:
        raise UserError(
            f"--gpus {gpus}: {processes} processes need {needed} GPUs, and CUDA_VISIBLE_DEVICES has {len(visible)} "
            f"({given})"
        )
    return [",".join(visible[first : first + gpus]) for first in range(0, needed, gpus)]
