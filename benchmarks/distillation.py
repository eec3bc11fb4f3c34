"""What a teacher gives a student of a tenth of its parameters: `python benchmarks/distillation.py`.

A narrow cnn28 is trained on Fashion-MNIST plainly, and with the answers of cnn28 as it is, which saw all images: same
seed, same order of records, same length; once with few labelled images, once with all. Needs the original files: --data
FOLDER (default ../shared/data/fashion-mnist). `--dry` prints the table and leaves the ledger alone.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import _ledger
import numpy as np

import pcls

ONCE = ["evaluate.every=1000 epochs", "checkpoint.every=1000 epochs"]
TEACHER = ["train.duration=10 epochs", "optimizer.lr=0.002", "augment.flip=true"]
STUDENT = ["optimizer.lr=0.003", "augment.flip=true"]
AMOUNTS = {
    "200 images a class": ["data.per_class=200", "train.duration=150 epochs"],
    "1,000 images a class": ["data.per_class=1000", "train.duration=40 epochs"],
    "all 60,000 images": ["train.duration=10 epochs"],
}
PLAIN = "labels alone"


def taught(share: float, temperature: float) -> list[str]:
    """Settings of a student beside those of the plain one."""
    return [f"distill.share={share}", f"distill.temperature={temperature}"]


WAYS = {PLAIN: [], "share 0.9, temperature 4": taught(0.9, 4.0), "share 0.5, temperature 2": taught(0.5, 2.0)}


def top1s(seed: int, arguments: argparse.Namespace) -> dict[tuple[str, str], float]:
    """In %, of the teacher, and by amount of images and way."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = [f"data.path={arguments.data}", f"train.seed={seed}", *ONCE]
        narrow = f"model.widths=[{', '.join(map(str, arguments.widths))}]"

        def trained(name: str, own: list[str]) -> float:
            run = pcls.train("fashion_mnist_cnn", [*settings, *own, *arguments.overrides, f"run.dir={scratch}/{name}"])
            return 100 * run.evaluation.top1

        found = {("teacher", ""): trained("teacher", TEACHER)}
        for amount, images in AMOUNTS.items():
            for way, own in WAYS.items():
                teacher = [f"distill.teacher={scratch}/teacher"] if own else []
                found[amount, way] = trained(str(len(found)), [narrow, *STUDENT, *images, *teacher, *own])
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(__file__).parent.parent.parent / "shared" / "data" / "fashion-mnist"
    parser.add_argument("--data", type=Path, default=shared)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 24], help="of the student")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("overrides", nargs="*", default=[], help="of the recipe, as in train.duration='1 epochs'")
    arguments = parser.parse_args()

    from pcls.models.registry import define_model

    size = {"height": 28, "width": 28, "channels": 1, "classes": 10}
    counts = [define_model("cnn28", **size, widths=widths).parameter_count for widths in ((), arguments.widths)]
    runs = [top1s(seed, arguments) for seed in range(arguments.seeds)]

    def shown(values: list[float], sign: str = "") -> str:
        deviation = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        return f"{np.mean(values):{sign}.2f}{deviation}"

    rows = [[f"teacher, {counts[0]:,} parameters, all images", "", shown([run["teacher", ""] for run in runs]), ""]]
    for amount in AMOUNTS:
        for way in WAYS:
            gains = [run[amount, way] - run[amount, PLAIN] for run in runs]
            gain = "" if way == PLAIN else shown(gains, "+")
            rows.append([f"student, {counts[1]:,}, {amount}", way, shown([run[amount, way] for run in runs]), gain])
    _ledger.append(
        f"Distillation on Fashion-MNIST, {arguments.seeds} seeds",
        ["network, images", "learns from", "top-1 %", "over labels alone, same seed"],
        rows,
        packages=["jax", "flax", "optax"],
        note="Mean and deviation, on the test part; 150, 40 and 10 epochs, mirrored at random. Gate: +0.5 points.",
        dry=arguments.dry,
    )


if __name__ == "__main__":
    main()
