"""The linear probe beside scikit-learn's LogisticRegression: `python benchmarks/probes.py [--rounds N] [--dry]`.

Both fit the same made-up features to the same objective, standardisation included, in processes of their own on the
same cores; they fit in turn, and only the ratio counts. `--records`, `--features` and `--classes` try it tiny.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import _ledger
from _probe_worker import CONTENDERS, TESTED
from _worker import Worker, median_and_range, rates_in_turn

# Penalties: that of few labels, and one under which this set generalises better.
L2 = (1.0, 100.0)
GATE, AIM, CLOSE = 1.0, 2.0, 0.3


def measure(sizes: Sequence[int], l2: float, rounds: int) -> list[list[str]]:
    """A row for each contender."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.json" for name in CONTENDERS}
        workers = {
            name: Worker(sys.executable, "_probe_worker.py", name, *map(str, sizes), str(l2), str(files[name]))
            for name in CONTENDERS
        }
        rates = rates_in_turn(workers, rounds, 1)
        facts = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    rows = []
    for name, own in rates.items():
        ratio = [ours / theirs for ours, theirs in zip(rates["pcls"], own, strict=True)]
        rows.append(
            [
                f"l2 {l2:g}, {name}",
                median_and_range([1 / rate for rate in own], ".2f"),
                f"{facts[name]['iterations']}",
                f"{facts[name]['objective']:.4f}",
                f"{facts[name]['accuracy']:.2f}",
                "" if name == "pcls" else median_and_range(ratio, ".2f"),
                "" if name == "pcls" else f"{facts['pcls']['accuracy'] - facts[name]['accuracy']:+.2f}",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="print the table and leave the ledger alone")
    arguments = parser.parse_args()
    sizes = (arguments.records, arguments.features, arguments.classes)
    columns = [
        *("penalty, contender", "s a fit, median (range)", "iterations", "objective", "accuracy %"),
        *("pcls is faster by, median (range)", "points of accuracy over it"),
    ]
    rows = []
    for l2 in L2:
        rows += measure(sizes, l2, arguments.rounds)
        print(*(" | ".join(row) for row in rows[-len(CONTENDERS) :]), sep="\n", file=sys.stderr)
    _ledger.append(
        f"Linear probe: {sizes[0]:,} x {sizes[1]:,} features, {sizes[2]} classes, float32, {arguments.rounds} rounds",
        columns,
        rows,
        packages=["jax", "optax", "scikit-learn", "scipy"],
        note="Made-up features (classes differ in 64 correlated directions, then a ReLU), standardised by each within "
        "its time; LogisticRegression(lbfgs) stops where the largest entry of the mean loss's gradient is 1e-4, its "
        "default, and fit_linear at 1e-5, nearer to the optimum, as the objectives show. "
        f"The first fit of each, with pcls's compilation, does not count. Accuracy on {TESTED:,} others. "
        f"Gate: {GATE:g} times as fast; aim: {AIM:g}; accuracy within {CLOSE} points.",
        dry=arguments.dry,
    )


if __name__ == "__main__":
    main()
