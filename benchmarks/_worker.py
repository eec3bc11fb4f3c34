"""A contender in a process of its own, which waits for its turns."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class Worker:
    """A program of this folder that says `ready`, then reads counts, and answers each with the seconds that it took.

    Args:
      python: the interpreter.
      program: file name.
      arguments: of the program.
    """

    def __init__(self, python: str, program: str, *arguments: str):
        quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name(program)), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=quiet,
        )
        if self.process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{program} {' '.join(arguments)} did not start under {python}")

    def rate(self, count: int) -> float:
        """Count a second."""
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return count / float(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def rates_in_turn(workers: Mapping[str, Worker], rounds: int, count: int) -> dict[str, list[float]]:
    """Count a second of each worker in each round, the workers in turn; then ends them."""
    rates: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            rates[name].append(worker.rate(count))
    for worker in workers.values():
        worker.close()
    return rates


def median_and_range(values: Sequence[float], form: str) -> str:
    """`1,505 (1,239 to 1,520)`."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def answer(contender: Callable[[int], None], warm_up: int) -> None:
    """The other side: runs `contender(count)` for each count asked for, and for `warm_up` before the first."""
    contender(warm_up)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        contender(int(line))
        print(time.perf_counter() - start, flush=True)
