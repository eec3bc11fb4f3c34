"""What half of the FLOPs cost: `python benchmarks/prune.py`.

cnn28, ResNet-18 and MobileNetV3-Small, trained on Fashion-MNIST, lose channels until half of their FLOPs are left, and
are trained again for a while (`pcls compress --target flops=0.5`, in a process of its own): accuracy, and latency
beside the whole network's, in turns. Needs the original files: --data FOLDER (default ../shared/data/fashion-mnist).
`--dry` prints the table and leaves the ledger alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import _ledger
import numpy as np

import pcls

# Overrides of `fashion_mnist_cnn`.
NETWORKS: dict[str, list[str]] = {
    "cnn28": [],
    "resnet18": ["model.name=resnet18", "data.image_size=32", "train.duration=4 epochs"],
    "mobilenetv3_small_100": ["model.name=mobilenetv3_small_100", "data.image_size=32", "train.duration=8 epochs"],
}
ONCE = ["evaluate.every=1000 epochs", "checkpoint.every=1000 epochs"]


Variant = dict[str, Any]


def compressed(network: str, seed: int, arguments: argparse.Namespace) -> list[Variant]:
    """A network trained, then pruned and trained again: what was measured of it before and after each step."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = [f"data.path={arguments.data}", f"train.seed={seed}", *ONCE, *NETWORKS[network]]
        run = pcls.train("fashion_mnist_cnn", [*settings, *arguments.overrides, f"run.dir={scratch}/run"])
        options = {
            "target": f"flops={arguments.flops}",
            "steps": arguments.steps,
            "finetune": arguments.finetune,
            "score": arguments.score,
            "max-loss": 100,
        }
        argv = [f"--{name}={value}" for name, value in options.items()]
        done = subprocess.run(
            [sys.executable, "-m", "pcls", "compress", str(run.path), *argv, "--json"],
            stdout=subprocess.PIPE,
            check=True,
        )
        return json.loads(done.stdout)["variants"]


def rows_of(network: str, found: list[list[Variant]]) -> list[list[str]]:
    """The whole network, and what is left after each step: means over seeds."""
    rows = []
    for place in range(len(found[0])):
        pairs = [(one[0], one[place]) for one in found]
        lost = np.array([100 * (first["top1"] - own["top1"]) for first, own in pairs])
        # [seeds, batch sizes].
        times = np.array([[one["median"] for one in own["latency_ms"]] for _, own in pairs])
        ratios = times / np.array([[one["median"] for one in first["latency_ms"]] for first, _ in pairs])
        rows.append(
            [
                network,
                f"{np.mean([own['flops'] / first['flops'] for first, own in pairs]):.1%}",
                f"{np.mean([own['parameters'] / first['parameters'] for first, own in pairs]):.1%}",
                f"{100 * np.mean([own['top1'] for _, own in pairs]):.2f}",
                f"{lost.mean():+.2f} (worst {lost.max():+.2f})",
                *(f"{time:.4g}" for time in times.mean(0)),
                *(f"{ratio:.2f}" for ratio in ratios.mean(0)),
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(__file__).parent.parent.parent / "shared" / "data" / "fashion-mnist"
    parser.add_argument("--data", type=Path, default=shared)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--finetune", default="", help="after each step; empty: a fifth of the run")
    parser.add_argument("--score", default="l2")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("overrides", nargs="*", default=[], help="of the recipe, as in train.duration='1 epochs'")
    arguments = parser.parse_args()
    rows = []
    for network in arguments.networks:
        rows += rows_of(network, [compressed(network, seed, arguments) for seed in range(arguments.seeds)])
    header = ["network", "FLOPs", "parameters", "top-1 %", "points lost", "ms, batch 1", "ms, batch 32"]
    header += ["of the whole, batch 1", "of the whole, batch 32"]
    note = (
        f"{arguments.seeds} seeds; fashion_mnist_cnn {' '.join(arguments.overrides)}; resnet18 at 32 px, 4 epochs; "
        "mobilenetv3_small_100 at 32 px, 8 epochs; "
        f"{arguments.steps} steps, {arguments.finetune or 'a fifth of the run'} of training after each with the run as "
        f"teacher; score {arguments.score}; top-1 on the 10,000 test images, which nothing was chosen by; latencies in "
        "turns, medians. Gates: at half of the FLOPs latency <= 0.65 of the whole, at most 0.5 points lost."
    )
    title = "Pruned on Fashion-MNIST"
    _ledger.append(title, header, rows, packages=["jax", "flax"], note=note, dry=arguments.dry)


if __name__ == "__main__":
    main()
