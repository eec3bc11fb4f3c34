"""Training step of cnn28 and rnn28 through the whole loop, beside PyTorch and Keras: `make bench`, or

    python benchmarks/step.py [--pcls-python PYTHON ...]

Every contender lives in a process of its own; they train in turn, a few steps a round, and only the ratios count.
`--pcls-python` measures pcls under further interpreters (with other jax versions) in the same rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from _ledger import append
from _step_worker import BATCH, CONTENDERS
from _worker import Worker, median_and_range, rates_in_turn

ROUNDS = 5
STEPS = {"cnn28": 50, "rnn28": 300}
GATES = {"cnn28": 1.0, "rnn28": 3.0}


def jax_version(python: str) -> str:
    """The jax that an interpreter has."""
    program = "from importlib.metadata import version; print(version('jax'))"
    return subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def measure(model: str, pythons: list[str]) -> list[list[str]]:
    """Rows of contender, images/s, and ratio to the faster peer in the same round."""
    ours = {
        f"{contender}, jax {jax_version(python)}": Worker(python, "_step_worker.py", contender, model)
        for python in pythons
        for contender in ("pcls", "pcls bare step")
    }
    peers = {
        name: Worker(sys.executable, "_step_worker.py", name, model)
        for name in CONTENDERS
        if not name.startswith("pcls")
    }
    rates = rates_in_turn(ours | peers, ROUNDS, STEPS[model])
    for python in pythons:
        version = jax_version(python)
        loop, bare = rates[f"pcls, jax {version}"], rates[f"pcls bare step, jax {version}"]
        overheads = [b / a for a, b in zip(loop, bare, strict=True)]
        print(f"{model}, jax {version}: a step in the loop takes {statistics.median(overheads):.3f} x the bare step")
    fastest = max(peers, key=lambda name: statistics.median(rates[name]))
    rows = []
    for name, values in rates.items():
        ratios = [own / peer for own, peer in zip(values, rates[fastest], strict=True)]
        rows.append(
            [
                f"{model}, {name}",
                median_and_range([BATCH * value for value in values], ",.0f"),
                median_and_range(ratios, ".2f"),
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pcls-python", nargs="*", default=[])
    arguments = parser.parse_args()
    rows = [row for model in STEPS for row in measure(model, [sys.executable, *arguments.pcls_python])]
    append(
        f"Whole-loop training rate, batch {BATCH}, float32, Adam",
        ["model, contender", "images/s, median (range)", "ratio to the faster peer, median (range)"],
        rows,
        packages=["jax", "torch", "keras", "tensorflow-cpu"],
        note=f"{ROUNDS} rounds of {STEPS} steps, contenders in turn, a process each. Ratios are taken round by round "
        f"against the peer with the highest median. Gates: {GATES}.",
    )


if __name__ == "__main__":
    main()
