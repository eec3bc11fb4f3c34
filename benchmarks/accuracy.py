"""Test accuracy of the small recipes, several seeds: `python benchmarks/accuracy.py`.

Needs the original files: --data FOLDER, which holds mnist/, fashion-mnist/, fsdd/recordings/ and japanese-vowels/
(default ../shared/data).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from _ledger import append

import pcls

CASES = {
    "MNIST cnn28, 10 epochs, no augmentation": ("mnist_cnn", "mnist", ["augment.shift=0"]),
    "MNIST cnn28, recipe mnist_cnn": ("mnist_cnn", "mnist", []),
    "Fashion-MNIST cnn28, recipe fashion_mnist_cnn": ("fashion_mnist_cnn", "fashion-mnist", []),
    "Fashion-MNIST cnn28, 20 epochs, flip, shift 2, averaged weights": (
        "fashion_mnist_cnn",
        "fashion-mnist",
        ["augment.flip=true", "augment.shift=2", "train.duration=20 epochs", "train.ema_decay=0.999"],
    ),
    "MNIST rnn28 (tanh), recipe mnist_rnn": ("mnist_rnn", "mnist", []),
    "MNIST irnn28 (ReLU, identity start), recipe mnist_rnn": ("mnist_rnn", "mnist", ["model.name=irnn28"]),
    "Fashion-MNIST rnn28 (tanh), recipe fashion_mnist_rnn": ("fashion_mnist_rnn", "fashion-mnist", []),
    "MNIST rows, recipe mnist_rows_lstm": ("mnist_rows_lstm", "mnist", []),
    "MNIST rows, recipe mnist_rows_gru": ("mnist_rows_gru", "mnist", []),
    "Fashion-MNIST rows, recipe fashion_mnist_rows_lstm": ("fashion_mnist_rows_lstm", "fashion-mnist", []),
    "spoken digits, recipe spoken_digits_lstm": ("spoken_digits_lstm", "fsdd/recordings", []),
    "spoken digits, recipe spoken_digits_crnn": ("spoken_digits_crnn", "fsdd/recordings", []),
    "Japanese vowels, recipe japanese_vowels_gru": ("japanese_vowels_gru", "japanese-vowels", []),
    "MNIST pixel by pixel, recipe mnist_pixels_lru": ("mnist_pixels_lru", "mnist", []),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    cases = {name: case for name, case in CASES.items() if arguments.only in name}
    rows = []
    for name, (recipe, folder, overrides) in cases.items():
        start = time.perf_counter()
        scores = [top1(recipe, [f"data.path={arguments.data / folder}", *overrides], s) for s in range(arguments.seeds)]
        seconds = (time.perf_counter() - start) / arguments.seeds
        deviation = np.std(scores, ddof=1) if len(scores) > 1 else float("nan")
        each = ", ".join(f"{score:.2f}" for score in scores)
        rows.append([name, f"{np.mean(scores):.2f} ± {deviation:.2f}", each, f"{seconds:.0f}"])
    append(
        "Test accuracy of the small recipes",
        ["case", f"top-1 %, mean ± deviation of {arguments.seeds} seeds", "each", "seconds a run"],
        rows,
        packages=["jax", "flax", "optax"],
        note="The whole test part, counted exactly, after the last step; nothing was chosen by it.",
    )


def top1(recipe: str, overrides: list[str], seed: int) -> float:
    """Test accuracy of one run, in per cent; it is evaluated once, after the last step."""
    with tempfile.TemporaryDirectory() as scratch:
        once = ["evaluate.every=1000 epochs", "checkpoint.every=1000 epochs"]
        run = pcls.train(recipe, [f"run.dir={scratch}/run", f"train.seed={seed}", *once, *overrides])
        return 100 * run.evaluation.top1


if __name__ == "__main__":
    main()
