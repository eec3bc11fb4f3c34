"""Evaluation of a run's weights on its held-out records."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax import Array

from pcls.checkpoint.store import CheckpointStore
from pcls.data.pipeline import evaluation_batches
from pcls.data.preprocessing import Preprocessing
from pcls.data.workers import usable_cores
from pcls.errors import UserError
from pcls.evaluation.count import Predictions, count, make_evaluation_step
from pcls.evaluation.metrics import Evaluation
from pcls.nn.module import Arrays
from pcls.parallel.mesh import replicated
from pcls.parallel.processes import agreed, is_main, place
from pcls.parallel.tuning import tune_process
from pcls.run.folder import RunFolder
from pcls.run.setup import Setup, prepare
from pcls.training.losses import LOSSES

EVALUATION, PREDICTIONS, PREPROCESSING = "evaluation.json", "predictions.npz", "preprocessing.json"


class Evaluator:
    """Counts a setup's evaluation records exactly; compiled once, called for many weights."""

    def __init__(self, setup: Setup):
        self._setup = setup
        recipe, shardings = setup.recipe, setup.state_shardings
        step = make_evaluation_step(
            setup.model,
            setup.dataset.preprocessing,
            recipe.train.precision,
            LOSSES[recipe.train.loss],
            recipe.evaluate.tta,
        )
        # Once an evaluation: averaged weights may be split over all devices.
        self.gathered = jax.jit(lambda arrays: arrays, out_shardings=(shardings.params, shardings.stats))
        self._step = jax.jit(
            step,
            in_shardings=(shardings.params, shardings.stats, setup.batch_sharding),
            # Whole on every device, so that every process counts the same.
            out_shardings=replicated(setup.mesh),
        )

    def __call__(self, params: Arrays, stats: Arrays) -> tuple[Evaluation, Predictions]:
        """Evaluates these weights."""
        dataset = self._setup.dataset
        outputs = self._outputs(*self.gathered((params, stats)))
        return count(outputs, size=len(dataset.evaluation), class_names=dataset.class_names)

    def _outputs(self, params: Arrays, stats: Arrays) -> Iterator[dict[str, Array]]:
        setup, size = self._setup, self._setup.recipe.evaluation_batch_size
        with evaluation_batches(
            setup.dataset.evaluation,
            setup.dataset.preprocessing,
            batch_size=size,
            rows=setup.rows(size),
            threads=0 if setup.dataset.in_memory else setup.recipe.data.workers or usable_cores(),
            buckets=setup.dataset.evaluation_buckets,
        ) as batches:
            for batch in batches:
                yield self._step(params, stats, place(batch, setup.batch_sharding, size))


def evaluate_run(path: str | Path) -> Evaluation:
    """Evaluates the newest checkpoint of a run and keeps the result in its folder.

    Raises:
      UserError: no run, no checkpoint, or the data is gone.
    """
    tune_process()
    folder = RunFolder(path)
    recipe = folder.recipe()
    setup = prepare(recipe, saved_preprocessing(folder))
    store = CheckpointStore(folder.checkpoints, keep=recipe.checkpoint.keep, warn=_warn, agree=agreed)
    try:
        restored = store.restore(setup.state_shapes, rename=False)
    finally:
        store.close()
    if restored is None:
        raise UserError(f"{folder.path}: has no checkpoint to evaluate; continue it with: pcls resume {folder.path}")
    state, _ = restored
    evaluation, predictions = Evaluator(setup)(*setup.deliverable(state))
    if is_main():
        keep_evaluation(folder, evaluation, predictions)
    return evaluation


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


def saved_preprocessing(folder: RunFolder) -> Preprocessing | None:
    """The preprocessing that the run was started with."""
    values = folder.read_json(PREPROCESSING)
    return None if values is None else Preprocessing.from_json(values)


def keep_evaluation(folder: RunFolder, evaluation: Evaluation, predictions: Predictions) -> None:
    """Writes what `read_evaluation` reads."""
    folder.write_json(
        EVALUATION,
        evaluation.summary()
        | {"class_names": list(evaluation.class_names), "confusion": evaluation.confusion.tolist()},
    )
    temporary = folder.path / f"tmp-{PREDICTIONS}"
    np.savez_compressed(temporary, **vars(predictions))
    temporary.replace(folder.path / PREDICTIONS)


def read_evaluation(folder: RunFolder) -> tuple[Evaluation, Predictions] | None:
    """The kept result of the run's last evaluation, or None."""
    values = folder.read_json(EVALUATION)
    path = folder.path / PREDICTIONS
    if values is None or not path.is_file():
        return None
    evaluation = Evaluation(
        n=values["n"],
        undecodable=values["undecodable"],
        loss=values["loss"],
        top1=values["top1"],
        top5=values["top5"],
        confusion=np.asarray(values["confusion"], np.int64),
        class_names=tuple(values["class_names"]),
    )
    with np.load(path) as arrays:
        return evaluation, Predictions(**{name: arrays[name] for name in arrays.files})
