"""Several processes as one: started together, stopped together, and started again by the policy of all launchers."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from pcls.errors import PclsError, RestartRequested, UserError
from pcls.launch.policy import Policy, deciding, restarts, shell_code

POLL_SECONDS = 0.05
# Linux: the signal that a process gets when the one that started it has ended.
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Command:
    """One process to start.

    Attributes:
      argv: program and arguments.
      log: the file that its output is appended to.
      env: variables besides the supervisor's own.
      stops_at_eof: it is asked to stop by the end of its standard input, not by a signal: what it started elsewhere
        would not get one.
    """

    argv: tuple[str, ...]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    stops_at_eof: bool = False


def supervise(
    commands: Callable[[], Sequence[Command]],
    policy: Policy,
    progress: Callable[[], int],
    *,
    alone: bool,
    say: Callable[[str], None],
    rng: random.Random,
) -> int:
    """Runs processes until all are done, one is beyond help, or somebody asks to stop.

    Args:
      commands: makes what to start, anew each time; the first is the one that people hear.
      policy: of restarts.
      progress: a number that grows while the work gets on: a restart after progress does not count as one in a row.
      alone: there is no other process anywhere that this work waits for.
      say: hears of starts and ends, and what the first process says.
      rng: of the delays.

    Returns:
      0; or the code of the process that ended it, as a shell tells it.

    Raises:
      UserError: a program cannot be started.
      PclsError: too many restarts without progress.
    """
    failures, best = 0, progress()
    with _signals() as asked:
        for attempt in itertools.count(1):
            ended = _run_once(commands(), attempt, policy, asked, say)
            if ended.code == 0:
                return 0
            if asked or not restarts(ended.code, alone=alone):
                say(f"{ended.told}; not started again")
                return shell_code(ended.code)
            reached = progress()
            failures = 1 if reached > best else failures + 1
            best = max(best, reached)
            if failures > policy.max_restarts:
                raise PclsError(
                    f"{ended.told}; given up after {policy.max_restarts} restarts without a new checkpoint; "
                    f"see {ended.log}"
                )
            delay = policy.delay(failures, rng)
            say(f"{ended.told}; starting all again in {delay:.1f} s ({failures} of {policy.max_restarts})")
            if not _waited(delay, asked):
                return shell_code(ended.code)
    raise AssertionError("unreachable")


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


@dataclass(frozen=True)
class _Ended:
    """What an attempt came to: the code that speaks for it, in words, and where to read on."""

    code: int
    told: str
    log: Path


def _run_once(
    commands: Sequence[Command], attempt: int, policy: Policy, asked: list[int], say: Callable[[str], None]
) -> _Ended:
    """Starts all, and returns when none is left, whatever happens."""
    first: int | None = None
    deadline = float("inf")
    forwarded = False
    with closing(_Group(commands, attempt)) as group, closing(_Lines(commands[0].log, group.first_byte)) as shown:
        while group.running:
            ended = group.ended()
            shown.say_new(say)
            if first is None and any(ended.values()):
                first = next(i for i in ended if ended[i] == deciding(ended.values()))
                deadline = time.monotonic() + policy.grace
                # On request all stop at the same step by themselves, and are saving now.
                if ended[first] != RestartRequested.exit_code and not forwarded:
                    group.stop(signal.SIGTERM)
            if asked and not forwarded:
                group.stop(asked[0])
                forwarded = True
                deadline = min(deadline, time.monotonic() + policy.grace)
            if len(asked) > 1 or time.monotonic() > deadline:
                group.kill()
            time.sleep(POLL_SECONDS)
        shown.say_new(say)
    speaker = 0 if first is None else first
    return _Ended(group.codes[speaker], _told(speaker, group.codes[speaker]), commands[speaker].log)


class _Group:
    """Started processes, each at the head of a process group of its own: a signal of the terminal reaches none."""

    def __init__(self, commands: Sequence[Command], attempt: int):
        self.codes: dict[int, int] = {}
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.first_byte = 0
        self._inputs: dict[int, IO[bytes]] = {}
        self._files: list[IO[bytes]] = []
        try:
            for number, command in enumerate(commands):
                self._start(number, command, attempt)
        except OSError as error:
            self.close()
            raise UserError(f"{error.filename}: cannot be started or written ({error.strerror})") from error

    def _start(self, number: int, command: Command, attempt: int) -> None:
        command.log.parent.mkdir(parents=True, exist_ok=True)
        log = command.log.open("ab", buffering=0)
        self._files.append(log)
        log.write(f"== start {attempt}\n".encode())
        if number == 0:
            self.first_byte = log.tell()
        process = self.running[number] = subprocess.Popen(
            command.argv,
            stdin=subprocess.PIPE if command.stops_at_eof else subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **command.env},
            start_new_session=True,
            preexec_fn=_end_with(os.getpid()),
        )
        if process.stdin is not None:
            self._inputs[number] = process.stdin
            self._files.append(process.stdin)

    def ended(self) -> dict[int, int]:
        """Codes of those that have ended since the last call; what they left running is killed."""
        found = {}
        for number, process in list(self.running.items()):
            # As long as it is not reaped, its number cannot be given to a stranger.
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _signal_group(process.pid, signal.SIGKILL)
            found[number] = self.codes[number] = process.wait()
            del self.running[number]
        return found

    def stop(self, number: int) -> None:
        """Asks the processes to stop; what they started gets no signal, it is theirs to end."""
        for place, process in self.running.items():
            if place in self._inputs:
                self._inputs[place].close()
            else:
                process.send_signal(number)

    def kill(self) -> None:
        """Ends the processes and what they started."""
        for process in self.running.values():
            _signal_group(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Leaves none running, and closes the files."""
        self.kill()
        for number, process in self.running.items():
            self.codes[number] = process.wait()
        self.running.clear()
        for file in self._files:
            file.close()


class _Lines:
    """Whole lines that were appended to a file."""

    def __init__(self, path: Path, first_byte: int):
        self._file = path.open("rb")
        self._file.seek(first_byte)
        self._rest = b""

    def say_new(self, say: Callable[[str], None]) -> None:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            say(f"[0] {line.decode(errors='replace')}")

    def close(self) -> None:
        self._file.close()


def _told(number: int, code: int) -> str:
    if code < 0:
        return f"process {number} was ended by {signal.Signals(-code).name}"
    return f"process {number} ended with exit code {code}"


def _waited(seconds: float, asked: list[int]) -> bool:
    """Whether so long nobody asked to stop."""
    end = time.monotonic() + seconds
    while not asked and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    return not asked


def _signal_group(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)


def _end_with(parent: int) -> Callable[[], None]:
    """What a new process does first, so that it does not outlive a supervisor that was killed. Linux only."""

    def tie() -> None:
        if LIBC is not None:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

    return tie


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Requests to stop, in the order of their coming. One ends things in good order, two at once."""
    asked: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        # A terminal that was closed: nobody is there for a second request.
        asked.append(signal.SIGTERM if number == signal.SIGHUP else number)

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # What is ignored stays so: that is how nohup works.
    before = {
        number: signal.signal(number, handler) for number in watched if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield asked
    finally:
        for number, old in before.items():
            signal.signal(number, old)
