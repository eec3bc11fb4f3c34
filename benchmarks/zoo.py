"""Training steps of CNNs beside timm on torch channels-last: `make bench`, or

    python benchmarks/zoo.py [--pcls-python PYTHON ...] [--model NAME ...] [--size N] [--rounds N] [--dry]

Every contender lives in a process of its own, on the same two cores; they train in turn, and only the ratios count.
`--pcls-python` measures pcls under further interpreters (with other jax versions) in the same rounds, `--dry` prints
the table and leaves the ledger alone.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from pathlib import Path

import _ledger
from _worker import Worker, median_and_range
from step import jax_version

MODELS = ("resnet18", "resnet50", "convnext_atto", "mobilenetv3_small_100", "efficientnet_b0")
BATCH, SIZE = 16, 96
ROUNDS, STEPS = 5, 2
GATE, LEAST, AIM = 0.9, 0.7, 1.1


def measure(model: str, size: int, pythons: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each contender in each round."""
    contenders = {f"pcls, jax {jax_version(python)}": (python, "pcls") for python in pythons}
    contenders["timm"] = (sys.executable, "timm")
    workers = {
        label: Worker(python, "_zoo_worker.py", contender, model, str(BATCH), str(size))
        for label, (python, contender) in contenders.items()
    }
    seconds: dict[str, list[float]] = {label: [] for label in workers}
    for _ in range(rounds):
        for label, worker in workers.items():
            seconds[label].append(1 / worker.rate(STEPS))
    for worker in workers.values():
        worker.close()
    return seconds


def ratios(seconds: dict[str, list[float]], label: str) -> list[float]:
    """How many times as fast as timm, round by round."""
    return [theirs / ours for theirs, ours in zip(seconds["timm"], seconds[label], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pcls-python", nargs="*", default=[])
    parser.add_argument("--model", nargs="*", default=list(MODELS))
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    if arguments.dry:
        _ledger.LEDGER = Path(os.devnull)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    rows, medians = [], {}
    for model in arguments.model:
        seconds = measure(model, arguments.size, [sys.executable, *arguments.pcls_python], arguments.rounds)
        for label, values in seconds.items():
            times = median_and_range([1000 * value for value in values], ",.4g")
            ours = ratios(seconds, label)
            rows.append([f"{model}, {label}", times, "" if label == "timm" else median_and_range(ours, ".2f")])
            medians.setdefault(label, []).append(statistics.median(ours))
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    means = {label: math.exp(statistics.fmean(map(math.log, values))) for label, values in medians.items()}
    rows += [[f"geometric mean, {label}", "", f"{mean:.2f}"] for label, mean in means.items() if label != "timm"]
    _ledger.append(
        f"Training steps of CNNs, B{BATCH} at {arguments.size} px, float32, SGD",
        ["model, contender", "ms a step, median (range)", "times as fast as timm, median (range)"],
        rows,
        packages=["jax", "flax", "torch", "timm"],
        note=f"One batch in memory, 1,000 classes, two cores, in turn, a process each, {STEPS} steps a turn. "
        f"timm runs on torch, channels last. Gates: geometric mean {GATE}, none below {LEAST}; aim {AIM}. "
        "GPU: not measured.",
    )


if __name__ == "__main__":
    main()
