"""Evaluation of a run's weights on its held-out records."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
from jax import Array

from pcls.atomic import atomic_path
from pcls.checkpoint.store import CheckpointStore
from pcls.config import Recipe
from pcls.config.data import DataSection
from pcls.config.load import with_overrides
from pcls.data.dataset import Dataset, check_one_label
from pcls.data.pipeline import evaluation_batches
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.remote import is_url
from pcls.data.sources.source import Source, label_counts
from pcls.data.workers import usable_cores
from pcls.errors import UserError, first_line
from pcls.evaluation.count import (
    EvaluationStep,
    Logits,
    Predictions,
    collect_logits,
    count,
    make_evaluation_step,
)
from pcls.evaluation.label_sets import (
    LabelEvaluation,
    LabelScores,
    collect_scores,
    label_evaluation,
    make_score_step,
)
from pcls.evaluation.metrics import Evaluated, Evaluation, by_value
from pcls.evaluation.quality import quality_of
from pcls.nn.module import Arrays
from pcls.parallel.mesh import replicated
from pcls.parallel.processes import agreed, is_main, place
from pcls.parallel.tuning import tune_process
from pcls.pretrained.bundle import Calibration, load_bundle
from pcls.run.folder import RunFolder
from pcls.run.same_data import check_held_out
from pcls.run.setup import Setup, open_data, setup_of
from pcls.training.losses import plain_loss

EVALUATION, PREDICTIONS, PREPROCESSING = "evaluation.json", "predictions.npz", "preprocessing.json"
CALIBRATED_PLAIN = "the calibration was fitted to images without other views, and these are means over views"
CHOSEN_ON_VIEWS = "the thresholds were chosen on means over views, and a prediction sees one"


def train_counts_of(dataset: Dataset) -> tuple[int, ...]:
    """Training records of each class; none of a set that nothing is trained on, which is evaluated as a whole."""
    return () if dataset.train is dataset.evaluation else tuple(label_counts(dataset.train).tolist())


class HeldOut:
    """A setup's evaluation records, each once, by a compiled step.

    Args:
      setup: of the model and the records.
      done: hears of every batch.
    """

    def __init__(self, setup: Setup, done: Callable[[], None] = lambda: None):
        self._setup = setup
        self._done = done
        shardings = setup.state_shardings
        # Once an evaluation: averaged weights may be split over all devices.
        self.gathered = jax.jit(lambda arrays: arrays, out_shardings=(shardings.params, shardings.stats))

    def _compiled(self, step: EvaluationStep) -> EvaluationStep:
        setup, shardings = self._setup, self._setup.state_shardings
        return jax.jit(
            step,
            in_shardings=(shardings.params, shardings.stats, setup.batch_sharding),
            # Whole on every device, so that every process counts the same.
            out_shardings=replicated(setup.mesh),
        )

    @cached_property
    def _train_counts(self) -> tuple[int, ...]:
        return train_counts_of(self._setup.dataset)

    def _outputs(self, step: EvaluationStep, params: Arrays, stats: Arrays) -> Iterator[dict[str, Array]]:
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
                yield step(params, stats, place(batch, setup.batch_sharding, size))
                self._done()


class Evaluator(HeldOut):
    """Counts a setup's evaluation records exactly; compiled once, called for many weights.

    Args:
      setup: of the model and the records.
      calibration: of the probabilities; None: they are the softmax of the logits.
      done: hears of every batch.
    """

    def __init__(self, setup: Setup, calibration: Calibration | None = None, done: Callable[[], None] = lambda: None):
        super().__init__(setup, done)
        self._calibration = calibration
        self._step = self._compiled(self._step_of(with_logits=False))

    def _step_of(self, *, with_logits: bool) -> EvaluationStep:
        setup, recipe = self._setup, self._setup.recipe
        return make_evaluation_step(
            setup.model,
            setup.dataset.preprocessing,
            recipe.train.precision,
            plain_loss(recipe),
            recipe.evaluate.tta,
            self._calibration,
            with_logits=with_logits,
        )

    def __call__(self, params: Arrays, stats: Arrays) -> tuple[Evaluation, Predictions]:
        """Evaluates these weights."""
        dataset = self._setup.dataset
        outputs = self._outputs(self._step, *self.gathered((params, stats)))
        evaluation, predictions = count(outputs, size=len(dataset.evaluation), class_names=dataset.class_names)
        described = str(self._calibration) if self._calibration else ""
        return replace(evaluation, train_counts=self._train_counts, calibration=described), predictions

    def logits(self, params: Arrays, stats: Arrays) -> Logits:
        """The logits of every record, once each; UserError where they would take too much memory."""
        dataset = self._setup.dataset
        outputs = self._outputs(self._compiled(self._step_of(with_logits=True)), *self.gathered((params, stats)))
        return collect_logits(outputs, size=len(dataset.evaluation), classes=len(dataset.class_names))


class LabelSetEvaluator(HeldOut):
    """The same where records carry several labels, or none."""

    def __init__(self, setup: Setup, done: Callable[[], None] = lambda: None):
        super().__init__(setup, done)
        recipe, preprocessing = setup.recipe, setup.dataset.preprocessing
        step = make_score_step(
            setup.model, preprocessing, recipe.train.precision, plain_loss(recipe), recipe.evaluate.tta
        )
        self._step = self._compiled(step)

    def __call__(self, params: Arrays, stats: Arrays) -> tuple[LabelEvaluation, LabelScores]:
        """Evaluates these weights."""
        dataset, held = self._setup.dataset, self._setup.dataset.evaluation
        outputs = self._outputs(self._step, *self.gathered((params, stats)))
        scores = collect_scores(outputs, size=len(held), classes=len(dataset.class_names))
        evaluation = label_evaluation(
            scores,
            size=len(held),
            class_names=dataset.class_names,
            train_counts=self._train_counts,
            groups=held.groups,
        )
        if self._setup.recipe.evaluate.tta != "none":
            evaluation = replace(evaluation, notices=(*evaluation.notices, CHOSEN_ON_VIEWS))
        return evaluation, scores


def evaluator_of(setup: Setup, done: Callable[[], None]) -> Evaluator | LabelSetEvaluator:
    """The one for a setup's records; `done` hears of every batch."""
    return LabelSetEvaluator(setup, done) if setup.recipe.data.holds_label_sets else Evaluator(setup, done=done)


def evaluate_run(path: str | Path, *, tta: str = "", by: str = "") -> Evaluation | LabelEvaluation:
    """Evaluates the newest checkpoint of a run, and keeps the result in its folder.

    Probabilities are calibrated as the run's bundle says, where that is of this checkpoint.

    Args:
      path: the run's folder.
      tta: views of an image, as `evaluate.tta`; the result is then not kept. Empty: as the recipe says.
      by: a column of the run's manifest: accuracy for each of its values too. Empty: none.

    Raises:
      UserError: no run, no checkpoint, no such column, or the data is gone, or not what the run began with.
    """
    tune_process()
    folder = RunFolder(path)
    recipe = with_tta(folder.recipe(), tta)
    if by:
        check_one_label(recipe.data, f"--by {by}")
    setup = setup_of(recipe, open_run_data(folder, recipe))
    values = column_values(recipe.data, setup.dataset.evaluation, by) if by else []
    store = CheckpointStore(folder.checkpoints, warn=_warn, agree=agreed)
    try:
        restored = store.restore(setup.state_shapes, rename=False)
    finally:
        store.close()
    if restored is None:
        raise UserError(f"{folder.path}: has no checkpoint to evaluate; continue it with: pcls resume {folder.path}")
    state, step = restored
    if recipe.data.holds_label_sets:
        found, scores = LabelSetEvaluator(setup)(*setup.deliverable(state))
        if is_main() and not tta:
            keep_evaluation(folder, found, scores)
        return found
    calibration = delivered_calibration(folder, step)
    evaluation, predictions = Evaluator(setup, calibration)(*setup.deliverable(state))
    if calibration and recipe.evaluate.tta != "none":
        evaluation = replace(evaluation, notices=(CALIBRATED_PLAIN,))
    if is_main() and not tta:
        keep_evaluation(folder, evaluation, predictions)
    return parted(evaluation, predictions, by, values) if by else evaluation


def with_tta(recipe: Recipe, tta: str) -> Recipe:
    """The recipe with other views of an image; UserError where there are no such."""
    return with_overrides(recipe, {"evaluate.tta": tta}) if tta else recipe


def delivered_calibration(folder: RunFolder, step: int) -> Calibration | None:
    """The calibration in a finished run's bundle, if its weights are those of a step."""
    status = folder.status()
    finished = status.get("status") == "finished" and status.get("step") == step
    return load_bundle(folder.bundle).calibration if finished and folder.bundle.is_dir() else None


def column_values(section: DataSection, source: Source, column: str) -> list[str]:
    """The value of a manifest's column for each record of a part of it; UserError for other data."""
    if section.source != "manifest" or is_url(section.path):
        where = "a manifest at a URL" if section.source == "manifest" else f"data.source={section.source}"
        raise UserError(
            f"--by {column}: is for manifests (CSV, TSV, Parquet) on this machine, and this is {where}; write its "
            "records into one, with that column"
        )
    from pcls.data.sources.manifest import column_of

    names = [source.name(record) for record in range(len(source))]
    return column_of(Path(section.path).expanduser(), column, names)


def parted(evaluation: Evaluation, predictions: Predictions, column: str, values: Sequence[str]) -> Evaluation:
    """The evaluation with its records parted by the values of a column, one value a record of the set."""
    own = [values[record] for record in predictions.records]
    return replace(evaluation, column=column, subsets=by_value(own, predictions.labels, predictions.predicted))


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


def saved_preprocessing(folder: RunFolder) -> Preprocessing | None:
    """The preprocessing that the run was started with; UserError where the file holds none."""
    values = folder.read_json(PREPROCESSING)
    try:
        return None if values is None else Preprocessing.from_json(values)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{folder.path / PREPROCESSING}: is damaged ({first_line(error)}); copy it from a backup, or from the "
            "bundle's model.json"
        ) from error


def open_run_data(folder: RunFolder, recipe: Recipe) -> Dataset:
    """A run's data, to evaluate it on.

    Raises:
      UserError: the classes or the held-out records are not those that the run began with; and as `open_data`.
    """
    dataset = open_data(recipe, saved_preprocessing(folder))
    check_held_out(folder, recipe, dataset)
    return dataset


def keep_evaluation(folder: RunFolder, evaluation: Evaluated, predictions: Predictions | LabelScores) -> None:
    """Writes what `read_evaluation` reads, of runs whose records have one label."""
    folder.write_json(EVALUATION, evaluation.facts())
    with atomic_path(folder.path / PREDICTIONS) as part, part.open("wb") as file:
        np.savez_compressed(file, **vars(predictions))


def read_evaluation(folder: RunFolder) -> tuple[Evaluation, Predictions] | None:
    """The kept result of the run's last evaluation, or None."""
    values = folder.read_json(EVALUATION)
    path = folder.path / PREDICTIONS
    if values is None or not path.is_file():
        return None
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    # One of an older version is made anew.
    if "quality" not in values or "nll" not in arrays:
        return None
    evaluation = Evaluation(
        n=values["n"],
        undecodable=values["undecodable"],
        loss=values["loss"],
        top1=values["top1"],
        top5=values["top5"],
        confusion=np.asarray(values["confusion"], np.int64),
        class_names=tuple(values["class_names"]),
        quality=None if values["quality"] is None else quality_of(values["quality"]),
        train_counts=tuple(values["train_counts"]),
        calibration=values["calibration"],
        notices=tuple(values["notices"]),
    )
    return evaluation, Predictions(**arrays)
