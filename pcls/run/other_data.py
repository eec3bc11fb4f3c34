"""Evaluation of a bundle on another set than the one it was trained with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePath

import jax

from pcls.config import Recipe
from pcls.config.load import with_overrides
from pcls.data.dataset import Dataset, data_settings, open_kept
from pcls.data.sources.arrays import ArraySource
from pcls.data.sources.remote import without_secrets
from pcls.data.sources.source import Source
from pcls.errors import UserError
from pcls.evaluation.label_maps import read_label_lists, relabelled
from pcls.evaluation.metrics import Evaluation, by_lists
from pcls.parallel.tuning import tune_process
from pcls.pretrained.bundle import Bundle
from pcls.run.delivery import handed_on
from pcls.run.evaluate import CALIBRATED_PLAIN, Evaluator, column_values, parted, with_tta
from pcls.run.setup import Setup
from pcls.training.program import make_program

IMAGES_A_DEVICE = 32


def evaluate_on(bundle: Bundle, data: str, *, tta: str = "", by: str = "", labels: str = "") -> Evaluation:
    """Evaluates a bundle on a set: on its evaluation part, or on all of it where it has none.

    Args:
      bundle: of a model of pictures.
      data: as `pcls.data.dataset.data_settings` reads it. Its classes are matched by name, or are numbers of outputs;
        those without records do not matter, and neither do classes that the set lacks.
      tta: views of an image, as `evaluate.tta`.
      by: a column of the set's manifest: accuracy for each of its values too.
      labels: a JSON file with each record's right answers, as `read_label_lists` reads it.

    Raises:
      UserError: a class that the model lacks, an empty set, or one of sequences.
    """
    tune_process()
    if bundle.thresholds:
        raise UserError(
            f"--data {data}: is for models of one label a record, and this one gives several; evaluate it on other "
            "records as the split validation of its manifest"
        )
    recipe = evaluation_recipe(bundle, data, tta)
    held, where = _held(recipe, bundle)
    source, told = relabelled(held, bundle.class_names)
    values = column_values(recipe.data, source, by) if by else []
    names = [source.name(record) for record in range(len(source))] if labels else []
    answers = read_label_lists(Path(labels).expanduser(), names, bundle.class_names) if labels else []
    setup = _setup(recipe, bundle, source, in_memory=isinstance(held, ArraySource))
    model, params = bundle.runnable()
    evaluation, predictions = Evaluator(replace(setup, model=model), bundle.calibration)(params, dict(bundle.stats))
    notices = (*where, *told, *((CALIBRATED_PLAIN,) if bundle.calibration and recipe.evaluate.tta != "none" else ()))
    evaluation = replace(evaluation, notices=notices)
    if labels:
        own = [answers[record] for record in predictions.records.tolist()]
        evaluation = replace(evaluation, listed=by_lists(own, predictions.predicted))
    return parted(evaluation, predictions, by, values) if by else evaluation


def evaluation_recipe(bundle: Bundle, data: str, tta: str) -> Recipe:
    """A recipe that nothing is trained by: the bundle's model and another set."""
    settings = {
        "model.name": bundle.model,
        **{f"model.{key}": value for key, value in bundle.options.items()},
        "train.precision": bundle.precision,
        "train.batch_size": IMAGES_A_DEVICE * jax.device_count(),
    }
    recipe = with_overrides(Recipe(), settings | data_settings(data))
    if recipe.data.holds_sequences or bundle.preprocessing.sequence is not None:
        raise UserError(
            f"--data {data}: is for pictures, and {'the set' if recipe.data.holds_sequences else 'the model'} is of "
            "sequences; name them as data.path of a run instead"
        )
    return with_tta(recipe, tta)


def _held(recipe: Recipe, bundle: Bundle) -> tuple[Source, tuple[str, ...]]:
    """What of a set is evaluated on, at the size of the model where it lies in memory; and what that is, in words."""
    whole, own = open_kept(recipe.data, as_it_is=True)
    held, part = (whole, "all its records") if own is None else (own, "its evaluation part")
    name = without_secrets(recipe.data.path) or recipe.data.source
    if not len(held):
        raise UserError(f"{name}: {part}: empty; there is nothing to evaluate")
    if isinstance(held, ArraySource):
        held = held.resized(*bundle.preprocessing.shape)
    seen = _trained_on(recipe, bundle) if own is None else ()
    return held, (f"evaluated on {name}, {part}", *seen)


def _trained_on(recipe: Recipe, bundle: Bundle) -> tuple[str, ...]:
    """A word on records that the model has seen, where the set is, by its name, the one that it was trained on."""
    training = bundle.training
    if training is None:
        return ()
    ours, theirs = handed_on(recipe), training.recipe
    # A bundle keeps the last part of a path only.
    same = PurePath(ours["data.path"]).name == PurePath(str(theirs.get("data.path", ""))).name
    if ours["data.source"] != theirs.get("data.source") or not same:
        return ()
    return (
        f"the model was trained on {training.records:,} records of a set of this name: where they are among these, the "
        "figures say little of other data; on the held-out records alone: pcls eval RUN, without --data",
    )


def _setup(recipe: Recipe, bundle: Bundle, source: Source, *, in_memory: bool) -> Setup:
    program = make_program(
        recipe,
        bundle.preprocessing,
        classes=len(bundle.class_names),
        # Nothing is trained: as many as one step would take.
        records=max(len(source), recipe.train.batch_size),
    )
    return Setup(**vars(program), dataset=Dataset(source, source, bundle.preprocessing, in_memory))
