"""What a teacher gives a student of a tenth of its parameters: `python benchmarks/distillation.py`.

The same narrow cnn28 is trained on Fashion-MNIST plainly, and with the answers of cnn28 as it is: same seed, same order
of records, same length. Needs the original files: --data FOLDER (default ../shared/data/fashion-mnist). `--dry` prints
the table and leaves the ledger alone.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import _ledger
import numpy as np

import pcls

ONCE = ["evaluate.every=1000 epochs", "checkpoint.every=1000 epochs"]


def top1s(seed: int, arguments: argparse.Namespace) -> list[float]:
    """Of the teacher, the student trained plainly, and the student that it taught, in %."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = [f"data.path={arguments.data}", f"train.seed={seed}", *ONCE, *arguments.overrides]
        narrow = [f"model.widths=[{', '.join(map(str, arguments.widths))}]"]
        taught = [
            f"distill.teacher={scratch}/teacher",
            f"distill.share={arguments.share}",
            f"distill.temperature={arguments.temperature}",
        ]
        runs = {"teacher": [], "plain": narrow, "taught": [*narrow, *taught]}
        return [
            100 * pcls.train("fashion_mnist_cnn", [*settings, *own, f"run.dir={scratch}/{name}"]).evaluation.top1
            for name, own in runs.items()
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(__file__).parent.parent.parent / "shared" / "data" / "fashion-mnist"
    parser.add_argument("--data", type=Path, default=shared)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 24], help="of the student")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("overrides", nargs="*", default=[], help="of the recipe, as in train.duration='1 epochs'")
    arguments = parser.parse_args()

    from pcls.models.registry import define_model

    size = {"height": 28, "width": 28, "channels": 1, "classes": 10}
    counts = [define_model("cnn28", **size, widths=widths).parameter_count for widths in ((), arguments.widths)]
    found = np.array([top1s(seed, arguments) for seed in range(arguments.seeds)])
    gains = found[:, 2] - found[:, 1]
    spread = [values.std(ddof=1) if arguments.seeds > 1 else float("nan") for values in (*found.T, gains)]
    rows = [
        ["cnn28, the teacher", f"{counts[0]:,}", f"{found[:, 0].mean():.2f} ± {spread[0]:.2f}", ""],
        ["student, plainly", f"{counts[1]:,}", f"{found[:, 1].mean():.2f} ± {spread[1]:.2f}", ""],
        [
            "student, taught",
            f"{counts[1]:,}",
            f"{found[:, 2].mean():.2f} ± {spread[2]:.2f}",
            f"{gains.mean():+.2f} ± {spread[3]:.2f}",
        ],
    ]
    header = ["network", "parameters", "top-1 %", "points gained"]
    note = (
        f"{arguments.seeds} seeds; fashion_mnist_cnn {' '.join(arguments.overrides)}; student's widths "
        f"{arguments.widths}, {counts[1] / counts[0]:.1%} of the parameters; distill.share {arguments.share:g}, "
        f"temperature {arguments.temperature:g}; the last step's top-1 on the 10,000 test images. Gate: +0.5 points."
    )
    title = "Distilled on Fashion-MNIST"
    _ledger.append(title, header, rows, packages=["jax", "flax"], note=note, dry=arguments.dry)


if __name__ == "__main__":
    main()
