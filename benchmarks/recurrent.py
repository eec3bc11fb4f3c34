"""Training steps of recurrent layers beside torch.nn, timm, Keras and flax's nnx.RNN: `make bench`, or

    python benchmarks/recurrent.py [--pcls-python PYTHON ...] [--case TEXT ...] [--rounds N] [--dry]

Every contender lives in a process of its own, on the same two cores; they train in turn, about half a second a turn,
and only the ratios count. One that waits takes no processor time: torch's threads, which spin, stop within 20 ms.
`--case` measures those whose name contains the text, `--dry` prints the tables and leaves the ledger alone, and
`--pcls-python` measures pcls under further interpreters (with other jax versions) in the same rounds.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import _ledger
from _recurrent_worker import (
    CASES,
    CHUNK,
    CONTENDERS,
    LINEAR_BATCH,
    LINEAR_STATES,
    LONG,
    Block,
    Case,
    Sequences,
    linear_seconds,
    prepare_process,
    temporary_bytes,
)
from _worker import Worker, median_and_range
from step import jax_version

ROUNDS, TURN_SECONDS = 5, 0.5
# Of a case's rounds: where other programs run, torch's threads wait for each other, and a step takes 10 x as long.
CASE_SECONDS = 60
# Of each case the least and the wanted ratio to torch.nn (to timm for blocks; on a GPU torch.nn is cuDNN).
GATES = {
    "SimpleRNN B128 T28 D28 H32": (4, 6),
    "LSTM B64 T128 D128 H256": (1.15, 1.5),
    "LSTM B64 T784 D1 H128": (1, 1.3),
    "GRU B64 T128 D128 H256": (1.15, 1.5),
    "bidirectional 2-layer LSTM B64 T16-128 D64 H128": (1.2, 1.5),
    "Sequencer2D-S block, 32 x 32 x 192, B8": (1, 1.3),
    "Sequencer2D-S block, 16 x 16 x 384, B8": (1, 1.3),
    "LSTM B16 T1024 D768 H768 bfloat16, GPU": (0.67, 1),
}
MEMORY_GATE = 8
LINEAR_STEPS, GROWTH_GATE = (8, 32, 128, 512, 1024, 2048, 4096, 8192), 2.2
Seconds = Mapping[str, list[float]]


def peers_of(case: Case) -> list[str]:
    if isinstance(case, Block):
        return ["timm"]
    return ["torch.nn"] if case.gpu else [name for name in CONTENDERS if name not in ("pcls", "timm")]


def measure(name: str, peers: list[str], pythons: list[str], rounds: int) -> Seconds:
    """Seconds a step of each contender in each round that `CASE_SECONDS` allow."""
    ours = {f"pcls, jax {jax_version(python)}": (python, "pcls") for python in pythons}
    contenders = ours | {peer: (sys.executable, peer) for peer in peers}
    workers = {
        label: Worker(python, "_recurrent_worker.py", contender, name)
        for label, (python, contender) in contenders.items()
    }
    seconds: dict[str, list[float]] = {label: [] for label in workers}
    try:
        with time_limit(CASE_SECONDS):
            counts = {label: steps_a_turn(worker) for label, worker in workers.items()}
            for _ in range(rounds):
                for label, worker in workers.items():
                    seconds[label].append(1 / worker.rate(counts[label]))
    except TimeoutError:
        for worker in workers.values():
            worker.process.kill()
    for worker in workers.values():
        worker.close()
    whole = min(len(values) for values in seconds.values())
    return {label: values[:whole] for label, values in seconds.items()}


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """TimeoutError where the body takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def steps_a_turn(worker: Worker) -> int:
    """Steps that take about `TURN_SECONDS`, by a first look and a longer one."""
    some = max(1, round(TURN_SECONDS / 5 * worker.rate(1)))
    return max(1, round(TURN_SECONDS * worker.rate(some)))


def rows_of(name: str, seconds: Seconds) -> list[list[str]]:
    """Of each contender: time a step, the ratio of each pcls to it, gate and aim."""
    pythons = sum(label.startswith("pcls") for label in seconds)
    if not all(seconds.values()):
        return [[name, "0", f"no round within {CASE_SECONDS} s", *[""] * (pythons + 2)]]
    rows = []
    for label, values in seconds.items():
        ratios = [
            median_and_range([theirs / own for theirs, own in zip(values, of_pcls, strict=True)], ".2f")
            for pcls, of_pcls in seconds.items()
            if pcls.startswith("pcls")
        ]
        bounds = [f"{bound:g}" if label in ("torch.nn", "timm") else "" for bound in GATES[name]]
        milliseconds = median_and_range([1000 * value for value in values], ",.4g")
        rows.append([f"{name}, {label}", str(len(values)), milliseconds, *ratios, *bounds])
    return rows


def gpu_contenders() -> list[str]:
    """Those that find a GPU here."""
    program = "import jax, torch; print(jax.default_backend() == 'gpu', torch.cuda.is_available())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    return [name for name, there in zip(("pcls", "torch.nn"), found, strict=True) if there == "True"]


def linear_rows(seconds: Mapping[tuple[str, int], list[float]]) -> list[list[str]]:
    """Of each number of steps: time of both forms, their ratio, and growth over half as many steps."""

    def growth(form: str, steps: int) -> str:
        before = seconds.get((form, steps // 2))
        if before is None:
            return ""
        ratios = [now / then for now, then in zip(seconds[form, steps], before, strict=True)]
        return median_and_range(ratios, ".2f")

    rows = []
    for steps in dict.fromkeys(steps for _, steps in seconds):
        sequential, parallel = (seconds[form, steps] for form in ("sequential", "parallel"))
        times = [median_and_range([1000 * value for value in values], ".3g") for values in (sequential, parallel)]
        ratio = median_and_range([two / one for one, two in zip(sequential, parallel, strict=True)], ".2f")
        gate = f"{GROWTH_GATE}" if steps > 2048 else ""
        rows.append([f"{steps:,}", *times, ratio, growth("sequential", steps), growth("parallel", steps), gate])
    return rows


def memory_note() -> str:
    chunked, whole = temporary_bytes(CHUNK), temporary_bytes(0)
    return (
        f"Temporary memory of pcls's LSTM step, B{LONG.batch} T{LONG.steps} D{LONG.features} H{LONG.hidden}, by the "
        f"compiler: {chunked / 1e6:,.1f} MB in chunks of {CHUNK}, {whole / 1e6:,.1f} MB without, "
        f"1/{whole / chunked:.1f} (gate: 1/{MEMORY_GATE})."
    )


def measure_steps(arguments: argparse.Namespace) -> None:
    """The block of the training steps, and the memory of a long one."""
    pythons, gpu = [sys.executable, *arguments.pcls_python], gpu_contenders()
    rows = []
    for name, case in CASES.items():
        on_gpu = isinstance(case, Sequences) and case.gpu
        if not any(text in name for text in arguments.case) or (on_gpu and "pcls" not in gpu):
            continue
        peers = [peer for peer in peers_of(case) if peer in gpu or not on_gpu]
        begin = time.perf_counter()
        found = rows_of(name, measure(name, peers, pythons, arguments.rounds))
        print(*(" | ".join(row) for row in found), f"{time.perf_counter() - begin:.0f} s", sep="\n", file=sys.stderr)
        rows += found
    prepare_process()
    _ledger.append(
        "Training steps of recurrent layers, float32, Adam",
        [
            "case, contender",
            "rounds",
            "ms a step, median (range)",
            *(f"pcls, jax {jax_version(python)}, to it, median (range)" for python in pythons),
            "gate",
            "aim",
        ],
        rows,
        packages=["jax", "flax", "torch", "timm", "keras", "tensorflow-cpu"],
        note=f"One batch in memory, ten classes, two cores, contenders in turn, a process each, {TURN_SECONDS} s a "
        "turn. Ratios are taken round by round: how many times as fast pcls is. Gates and aims are those against "
        f"torch.nn and timm. {memory_note()}{'' if 'pcls' in gpu else ' GPU: not measured.'}",
    )


def measure_linear(rounds: int) -> None:
    """The block of the linear recurrence."""
    prepare_process()
    _ledger.append(
        f"Linear recurrence by form, forward and back, B{LINEAR_BATCH} N{LINEAR_STATES}, float32",
        [
            "steps",
            "sequential, ms",
            "parallel, ms",
            "parallel / sequential",
            "growth, sequential",
            "growth, parallel",
            "growth gate",
        ],
        linear_rows(linear_seconds(LINEAR_STEPS, rounds)),
        packages=["jax"],
        note=f"Two cores, {rounds} rounds in turn in one process, medians (ranges). Growth is the time over that of "
        "half as many steps. Above 1 in the fourth column the sequential form is faster. Decays differ by step, "
        "sequence and state. GPU: not measured.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pcls-python", nargs="*", default=[])
    parser.add_argument("--case", nargs="*", default=[""])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    if arguments.dry:
        _ledger.LEDGER = Path(os.devnull)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    if any(text in name for text in arguments.case for name in CASES):
        measure_steps(arguments)
    if any(text in "linear recurrence" for text in arguments.case):
        measure_linear(arguments.rounds)


if __name__ == "__main__":
    main()
