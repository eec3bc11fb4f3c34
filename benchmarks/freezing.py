"""What a step costs while only the head learns, beside the whole step, in turns: `python benchmarks/freezing.py`.

`--dry` prints the table and leaves the ledger alone.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import _ledger
from _worker import median_and_range

BATCH, ROUNDS, STEPS = 16, 9, 3
# Image size and channels of each.
MODELS = {"cnn28": (28, 1), "resnet18": (96, 3), "resnet50": (96, 3), "convnext_atto": (96, 3)}
FREEZE = {"optimizer.freeze": [{"match": "^(?!head/)"}]}


class Contender:
    """A compiled step, its state and its batch."""

    def __init__(self, model: str, freeze: dict[str, Any]):
        import jax
        import numpy as np

        from pcls.config import Recipe, with_overrides
        from pcls.data.pipeline import Batch
        from pcls.data.preprocessing import Preprocessing
        from pcls.training.program import make_program

        size, channels = MODELS[model]
        preprocessing = Preprocessing(size, size, channels, (0.5,) * channels, (0.25,) * channels)
        settings = {"model.name": model, "train.batch_size": BATCH, "optimizer.name": "adamw", **freeze}
        program = make_program(with_overrides(Recipe(), settings), preprocessing, classes=10, records=1600)
        rng, rows = np.random.default_rng(0), np.arange(BATCH, dtype=np.int32)
        batch = Batch(
            rng.integers(0, 255, (BATCH, size, size, channels)).astype(np.uint8),
            (rows % 10).astype(np.int32),
            np.ones(BATCH, np.float32),
            rows,
            np.zeros_like(rows),
        )
        self._batch = jax.device_put(batch, program.batch_sharding)
        self._step = program.train_step_of(program.kind_at(0))
        self._state = program.initial_state()
        self.flops = self._step.cost_analysis()["flops"]
        self.seconds()

    def seconds(self) -> float:
        """Of a step, the mean of a few."""
        start = time.perf_counter()
        for _ in range(STEPS):
            self._state, metrics = self._step(self._state, self._batch)
        metrics["loss"].block_until_ready()
        return (time.perf_counter() - start) / STEPS


def row(model: str, rounds: int) -> list[str]:
    """Milliseconds of both, and the ratios."""
    whole, frozen = Contender(model, {}), Contender(model, FREEZE)
    times = [(whole.seconds(), frozen.seconds()) for _ in range(rounds)]
    of_whole, of_frozen = ([1e3 * pair[place] for pair in times] for place in (0, 1))
    ratios = [pair[1] / pair[0] for pair in times]
    return [
        f"{model} {MODELS[model][0]} px",
        median_and_range(of_whole, ".1f"),
        median_and_range(of_frozen, ".1f"),
        median_and_range(ratios, ".2f"),
        f"{frozen.flops / whole.flops:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()

    from pcls.parallel.tuning import tune_process

    tune_process()
    rows = []
    for model in arguments.models:
        rows.append(row(model, arguments.rounds))
        print(" | ".join(rows[-1]), flush=True)
    if not arguments.dry:
        _ledger.append(
            "A training step with a frozen trunk",
            ["network", "all learns ms", "only the head ms", "ratio", "ratio of the compiled FLOPs"],
            rows,
            packages=["jax", "flax", "optax"],
            note=f"float32, batch {BATCH}, AdamW, the compiled step as `pcls train` runs it, images on the device; in "
            f"turns, {arguments.rounds} rounds of {STEPS} steps, median and range. Predicted: a third, since of three "
            "passes of a step two are the backward one. Gate: 0.45.",
        )


if __name__ == "__main__":
    main()
