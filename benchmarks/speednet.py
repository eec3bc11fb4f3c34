"""The speed net over many seeds, each evaluated once: `python benchmarks/speednet.py tfds:cifar10 --trials 50`.

A stand-in on CPUs: `python benchmarks/speednet.py idx:../shared/data/fashion-mnist train.precision=float32 --trials 3`.
Pairs KEY=VALUE change the recipe of all trials. Not in `make bench`: a trial takes seconds of a GPU and hours of two
cores. Source of the network and the recipe: Jordan 2024, who reports means over hundreds of trials.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _ledger import append

import pcls
from pcls.data.dataset import data_settings

RECIPE = "cifar10_speed"
# The recipe says of its set what others need not have, and of files what pixels in memory do not know.
OF_CIFAR = {"data.expect_classes": 0, "data.expect_records": 0, "data.image_size": 0}
OF_FILES = {"data.crop_pct": "null", "data.train_crop": "null"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="as pcls takes it: tfds:NAME, idx:FOLDER, a folder, ...")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--dry", action="store_true", help="write nothing into the ledger")
    arguments = parser.parse_intermixed_args()
    settings: dict[str, Any] = data_settings(arguments.data)
    if settings["data.source"] != "tfds:cifar10":
        settings |= OF_CIFAR
    if settings["data.source"] in ("idx", "arrays", "digits"):
        settings |= OF_FILES
    changes = [*(f"{key}={value}" for key, value in settings.items()), *arguments.overrides]
    found = [trial(changes, seed) for seed in range(arguments.trials)]
    scores, seconds = zip(*found, strict=True)
    row = [
        " ".join([Path(arguments.data).name, *arguments.overrides]),
        str(arguments.trials),
        f"{np.mean(scores):.2f}",
        f"{np.std(scores, ddof=1):.2f}" if len(scores) > 1 else "",
        f"{min(scores):.2f} to {max(scores):.2f}",
        f"{np.median(seconds):.1f}",
    ]
    if arguments.dry:
        print(" | ".join(row))
        return
    append(
        f"speednet, recipe {RECIPE}, {jax.devices()[0].device_kind}",
        ["set and changes", "trials", "mean top-1 %", "deviation", "range", "seconds a run, median"],
        [row],
        packages=["jax", "flax", "optax"],
        note="The whole test part after the last step, counted exactly, with the recipe's views; nothing was chosen by "
        "it. Seconds are of the whole run: compilation, evaluation and files too.",
    )


def trial(changes: list[str], seed: int) -> tuple[float, float]:
    """Test accuracy in per cent, and seconds."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        run = pcls.train(RECIPE, [f"run.dir={scratch}/run", f"train.seed={seed}", *changes])
        return 100 * run.evaluation.top1, time.perf_counter() - start


if __name__ == "__main__":
    main()
