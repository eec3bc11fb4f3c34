"""Training steps of eight seeds in one program, beside the same steps one after another: `python benchmarks/seeds.py`.

Both in one process and in turn, a few steps a round, so that only the ratio counts. On CPU `pcls train --seeds` decides
by the same measurement, with fewer steps; on accelerators it takes one program, which this is to confirm or refute.
"""

from __future__ import annotations

import argparse
import statistics

import jax
from _ledger import append
from _worker import median_and_range

from pcls.config import load_recipe
from pcls.parallel.tuning import tune_process
from pcls.run.seeds import seed_recipes, step_seconds
from pcls.run.setup import open_data, setup_of

# Both on 28 x 28 grey images: a network of convolutions, whose kernels differ by seed, and one of matrix products.
RECIPES = {"cnn28": "digits_cnn", "rnn28": "digits_rnn"}
BATCH = 128


def measure(recipe_name: str, seeds: int, rounds: int, steps: int) -> list[tuple[float, float]]:
    """Seconds of a step of all seeds in one program, and one after another, round by round."""
    changes = {"mesh.sharding": "replicated", "train.batch_size": BATCH, "data.image_size": 28}
    recipes = seed_recipes(load_recipe(recipe_name, changes), seeds)
    dataset = open_data(recipes[0], None)
    seconds = step_seconds([setup_of(recipe, dataset) for recipe in recipes], steps)
    return [seconds() for _ in range(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    tune_process()
    rows = []
    for model, recipe in RECIPES.items():
        found = measure(recipe, arguments.seeds, arguments.rounds, arguments.steps)
        in_one, apart = zip(*found, strict=True)
        ratios = [alone / together for together, alone in found]
        rows.append(
            [
                model,
                median_and_range([1e3 * value for value in apart], ",.1f"),
                median_and_range([1e3 * value for value in in_one], ",.1f"),
                median_and_range(ratios, ".2f"),
            ]
        )
        print(f"{model}: {statistics.median(ratios):.2f} x as fast in one program", flush=True)
    device = jax.devices()[0].device_kind
    append(
        f"{arguments.seeds} seeds in one program, {device}, batch {BATCH} a seed, float32, Adam",
        ["model", "one after another, ms", "in one program, ms", "times as fast, median (range)"],
        rows,
        packages=["jax", "flax", "optax"],
        note=f"A training step of all seeds on given batches; {arguments.rounds} rounds of {arguments.steps} steps, "
        "both in turn in one process; ratios round by round. Without reading, evaluation and checkpoints.",
    )


if __name__ == "__main__":
    main()
