"""Seconds from the shell prompt: help, a mistyped key, the first training step: `python benchmarks/startup.py`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _ledger import append

ROUNDS = 7


def seconds(*arguments: str, expect: int) -> float:
    """How long one command takes."""
    start = time.perf_counter()
    code = subprocess.run([sys.executable, "-m", "pcls", *arguments], capture_output=True).returncode
    if code != expect:
        raise SystemExit(f"pcls {' '.join(arguments)} ended with {code} instead of {expect}")
    return time.perf_counter() - start


def first_step() -> float:
    """From the start of the process to the first metrics row of a run of cnn28 that is told after one step."""
    with tempfile.TemporaryDirectory() as scratch:
        run = ["train", "digits_cnn", f"run.dir={scratch}/run", "train.duration=1 steps", "train.batch_size=128"]
        start = time.time()
        subprocess.run([sys.executable, "-m", "pcls", *run], capture_output=True, check=True)
        # The row of the first step is the first thing in this file.
        return Path(scratch, "run", "tensorboard").stat().st_mtime - start


def main() -> None:
    cases = {
        "pcls --help": lambda: seconds("--help", expect=0),
        "pcls train digits_cnn optimizer.lrr=1": lambda: seconds("train", "digits_cnn", "optimizer.lrr=1", expect=2),
        "pcls train, cnn28, to the first step's metrics": first_step,
    }
    for case in cases.values():
        case()  # Fills the disk's and the compiler's cache.
    times = {name: [case() for _ in range(ROUNDS)] for name, case in cases.items()}
    append(
        "Start-up",
        ["command", "seconds, median", "range"],
        [[name, f"{statistics.median(t):.2f}", f"{min(t):.2f} to {max(t):.2f}"] for name, t in times.items()],
        packages=["jax", "typer", "pydantic"],
        note=f"{ROUNDS} rounds after one that warms the caches. Gates: 0.5 s, 0.5 s, 6 s.",
    )


if __name__ == "__main__":
    main()
