"""Does pretraining pay? MNIST and Fashion-MNIST, one learned after the other: `python benchmarks/transfer.py`.

Pretrains a CNN and an LSTM on the one set, fine-tunes them with few labels of the other by each named recipe, and
trains the same network on the same labels from scratch. Needs the original files: --data FOLDER (../shared/data).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _ledger import append

import pcls
from pcls.transfer.recipes import RECIPES

SETS = {"MNIST": ("mnist", "mnist"), "Fashion-MNIST": ("fashion_mnist", "fashion-mnist")}
MODELS = {"CNN": "cnn", "LSTM over rows": "rows_lstm"}
SHOTS = (1, 5, 20, 100)
PRETRAINING_EPOCHS = 5
TRANSFERRED = tuple(name for name in RECIPES if name != "scratch")


def accuracies(
    data: Path, base: Path, path: str, shots: int, seed: int, folder: Path, names: Sequence[str]
) -> list[float]:
    """Top-1 on the whole test part by each recipe, in %."""
    few = {
        "data.per_class": shots,
        "data.split_seed": seed,
        # The files only number their classes: without names those of the two sets would be taken for the same.
        "data.class_names": [f"{path} {number}" for number in range(10)],
        "train.seed": seed,
        # Read once, at the end.
        "evaluate.every": "100000 steps",
        "checkpoint.every": "100000 steps",
    }
    found = []
    for name in names:
        overrides = {**few, "run.dir": str(folder / f"{base.name}-{shots}-{seed}-{name}")}
        run = pcls.finetune(f"idx:{data / path}", base, overrides, recipe=name)
        found.append(100 * run.evaluation.top1)
    return found


def pretrained(data: Path, source: str, model: str, folder: Path) -> Path:
    """A run on the whole of a set."""
    recipe, path = SETS[source]
    settings = {
        "data.path": str(data / path),
        "train.duration": f"{PRETRAINING_EPOCHS} epochs",
        "run.dir": str(folder / f"{recipe}_{MODELS[model]}"),
    }
    return pcls.train(f"{recipe}_{MODELS[model]}", settings).path


def cell(values: np.ndarray) -> str:
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}" if len(values) > 1 else f"{values.mean():.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shots", type=int, nargs="+", default=SHOTS)
    parser.add_argument("--recipes", nargs="+", default=TRANSFERRED)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--try", action="store_true", dest="trial", help="write nothing into the ledger")
    arguments = parser.parse_args()
    names, rows = (*arguments.recipes, "scratch"), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in arguments.models:
            for source, target in (tuple(SETS), tuple(SETS)[::-1]):
                with contextlib.redirect_stderr(io.StringIO()):
                    base = pretrained(arguments.data, source, model, folder)
                for shots in arguments.shots:
                    with contextlib.redirect_stderr(io.StringIO()):
                        found = np.array(
                            [
                                accuracies(arguments.data, base, SETS[target][1], shots, seed, folder, names)
                                for seed in range(arguments.seeds)
                            ]
                        )
                    gains = found[:, :-1] - found[:, -1:]
                    best = int(gains.mean(0).argmax())
                    rows.append(
                        [
                            f"{model}, {source} to {target}",
                            str(shots),
                            *map(cell, found.T),
                            f"{names[best]} {cell(gains[:, best])}",
                        ]
                    )
                    print(" | ".join(rows[-1]), flush=True)
    columns = ["from, to", "labels a class", *(f"{name} %" for name in names), "best gain over scratch"]
    if arguments.trial:
        return
    append(
        "Transfer between MNIST and Fashion-MNIST",
        columns,
        rows,
        packages=["jax", "flax", "optax"],
        note=f"Top-1 on the 10,000 test images, mean and deviation of {arguments.seeds} seeds (labelled images, "
        f"order, new weights; the pretrained weights are of one run of {PRETRAINING_EPOCHS} epochs). `pcls finetune "
        "DATA --model RUN --recipe NAME`, all settings as it chooses them; scratch: the same network and steps.",
    )


if __name__ == "__main__":
    main()
