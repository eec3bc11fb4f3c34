"""Predictions of files with cnn28 beside the rate at which these files can be decoded: `make bench`, or

    python benchmarks/predict.py [--files 10000] [--rounds 5]

Two kinds of files: PNG of 28 x 28, as Fashion-MNIST would lie in a folder, and photographs of 500 x 375. Every
contender lives in a process of its own with all cores; they go through the files in turn, and only the ratios count.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from _ledger import append
from _predict_worker import CONTENDERS, SIZE
from _worker import Worker, median_and_range, rates_in_turn
from input import QUALITY, photograph
from PIL import Image

DISTINCT, GATE = 500, 0.9
PREDICT, BENCH, ALONE = CONTENDERS


def write_small(folder: Path, count: int) -> None:
    """PNG of 28 x 28: blurred noise, which packs about as well as clothes do."""
    rng = np.random.default_rng(0)
    for number in range(count):
        image = Image.fromarray(rng.integers(0, 256, (7, 7), np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        image.save(_place(folder, number, "png"))


def write_photographs(folder: Path, count: int) -> None:
    """JPEG of 500 x 375 from scikit-learn's two photographs; some hundred, each under several names."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    originals = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        path = _place(folder, number, "jpg")
        if number < DISTINCT:
            photograph(rng, originals).save(path, "JPEG", quality=QUALITY)
        else:
            os.link(_place(folder, number % DISTINCT, "jpg"), path)


def _place(folder: Path, number: int, suffix: str) -> Path:
    path = folder / "ab"[number % 2] / f"{number:05}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    for kind, write in (("PNG, 28 x 28", write_small), ("JPEG, 500 x 375", write_photographs)):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), arguments.files)
            workers = {name: Worker(sys.executable, "_predict_worker.py", name, folder) for name in CONTENDERS}
            rates = rates_in_turn(workers, arguments.rounds, arguments.files)
        for name in CONTENDERS:
            ratios = [own / other for own, other in zip(rates[PREDICT], rates[name], strict=True)]
            shown = "" if name == PREDICT else median_and_range(ratios, ".2f")
            gate = f"{GATE}" if name == BENCH else ""
            rows.append([kind, name, median_and_range(rates[name], ",.0f"), shown, gate])
    append(
        f"Predictions of {arguments.files:,} files with cnn28, all cores",
        ["files", "contender", "files/s", "pcls predict / it", "gate"],
        rows,
        packages=["jax", "numpy", "pillow", "simplejpeg"],
        note=(
            f"benchmarks/predict.py, {arguments.rounds} rounds in turn; median (range), ratios within a round. What "
            "`pcls data bench` measures are random crops of training, which a JPEG decoder may do at a lower "
            "resolution; a prediction sees the exact crop of evaluation, of which the third row is the bound."
        ),
    )


if __name__ == "__main__":
    main()
