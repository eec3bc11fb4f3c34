"""What calibration gives an overfitted CNN on Fashion-MNIST, several seeds: `python benchmarks/calibration.py`.

Needs the original files: --data FOLDER (default ../shared/data/fashion-mnist). Half of the test part is fitted to, and
the figures are of the other half.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from _ledger import append

import pcls
from pcls.evaluation.calibration import Fit, Side

METHODS = ("temperature", "vector", "auto")
# No augmentation, averaging or decay, and a rate that stays: sure of every training image after 10 epochs.
OVERFITTED = ["augment.shift=0", "train.ema_decay=0", "optimizer.schedule=constant"]


def fits(data: Path, seed: int, overrides: list[str]) -> dict[str, Fit]:
    """What each method makes of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        once = ["evaluate.every=1000 epochs", "checkpoint.every=1000 epochs"]
        settings = [f"data.path={data}", f"train.seed={seed}", f"run.dir={scratch}/run", *OVERFITTED, *once, *overrides]
        run = pcls.train("fashion_mnist_cnn", settings)
        return {method: pcls.calibrate(run, method=method).fit for method in METHODS}


def row(name: str, sides: list[Side], ratios: str) -> list[str]:
    """Means and deviations over the seeds."""
    columns = [
        ([100 * side.top1 for side in sides], 2),
        ([side.quality.nll for side in sides], 4),
        ([side.quality.brier for side in sides], 4),
        ([100 * side.quality.ece for side in sides], 2),
        ([100 * side.quality.ece_equal_mass for side in sides], 2),
    ]
    spread = [np.std(values, ddof=1) if len(values) > 1 else float("nan") for values, _ in columns]
    cells = [
        f"{np.mean(values):.{digits}f} ± {deviation:.{digits}f}"
        for (values, digits), deviation in zip(columns, spread, strict=True)
    ]
    return [name, *cells, ratios]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(__file__).parent.parent.parent / "shared" / "data" / "fashion-mnist"
    parser.add_argument("--data", type=Path, default=shared)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--duration", default="10 epochs")
    arguments = parser.parse_args()
    found = [fits(arguments.data, seed, [f"train.duration={arguments.duration}"]) for seed in range(arguments.seeds)]
    rows = [row("none", [own["temperature"].before for own in found], "")]
    for method in METHODS:
        ratios = [own[method].after.quality.ece / own[method].before.quality.ece for own in found]
        rows.append(row(method, [own[method].after for own in found], ", ".join(f"{ratio:.2f}" for ratio in ratios)))
    chosen = ", ".join(own["auto"].method for own in found)
    temperatures = ", ".join(f"{1 / own['temperature'].scaling[0][0]:.2f}" for own in found)
    append(
        f"Calibration: Fashion-MNIST, cnn28 overfitted {arguments.duration}, {arguments.seeds} seeds",
        ["calibration", "top-1 %", "NLL", "Brier", "ECE %", "ECE of equal mass %", "ECE over that of none, each"],
        rows,
        packages=["jax", "flax", "optax"],
        note=f"Means ± deviations over seeds, on the half of the test part that was not fitted to. Temperatures "
        f"{temperatures}; auto chose {chosen}. Claim: ECE after a temperature is at most half of that before.",
    )


if __name__ == "__main__":
    main()
