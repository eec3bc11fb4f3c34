"""Calibration of a finished run's probabilities on its held-out records."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pcls.config.load import with_overrides
from pcls.data.dataset import Dataset, check_one_label
from pcls.data.sources.source import Subset
from pcls.data.split import few_of_each, held_out
from pcls.errors import UserError
from pcls.evaluation.calibration import METHODS, Fit, fit
from pcls.evaluation.text import fit_json
from pcls.parallel.processes import barrier, is_main
from pcls.parallel.tuning import tune_process
from pcls.pretrained.bundle import Calibration, load_bundle, save_bundle
from pcls.run.evaluate import Evaluator, evaluate_run, open_run_data
from pcls.run.folder import RunFolder
from pcls.run.setup import setup_of

# Not the default of data.split_seed, by which these records were chosen.
SEED = 1
MIN_RECORDS = 20
# What was measured, with the step of the weights that it is of.
CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate_run` did.

    Attributes:
      fit: the calibration, and what it does.
      calibration: as the bundle has it now; None: none does better than any.
      loss: that the model was trained with, a key of `LOSSES`.
    """

    fit: Fit
    calibration: Calibration | None
    loss: str


def calibrate_run(path: str | Path, *, method: str = "auto", records: int = 0) -> Calibrated:
    """Calibrates the bundle of a finished run, and evaluates the run anew with it.

    The held-out records are split in two halves, class by class. The calibration is fitted to one half and measured on
    the other; one that the bundle has already is replaced.

    Args:
      path: the run's folder.
      method: `temperature`, `vector`, `none` (takes a calibration away), or `auto`: what does best.
      records: to take at most, as evenly from all classes; 0: all.

    Raises:
      UserError: no run, or one that is not finished, too few records, or too many for the memory.
    """
    if method not in (*METHODS, "auto"):
        raise UserError(f"--method {method}: allowed: auto, {', '.join(METHODS)}")
    tune_process()
    folder = RunFolder(path)
    # As a prediction sees an image: by one view.
    recipe = with_overrides(folder.recipe(), {"evaluate.tta": "none"})
    check_one_label(recipe.data, "pcls calibrate")
    if folder.status().get("status") != "finished" or not folder.bundle.is_dir():
        raise UserError(f"{path}: the run is not finished; there is nothing to calibrate before: pcls resume {path}")
    bundle = load_bundle(folder.bundle)
    setup = setup_of(recipe, open_run_data(folder, recipe))
    if setup.dataset.class_names != bundle.class_names:
        raise UserError(f"{path}: the data has other classes than the run was trained with; bring the old data back")
    setup = replace(setup, dataset=some_records(setup.dataset, records))
    found = Evaluator(setup).logits(dict(bundle.params), dict(bundle.stats))
    fitted = _first_half(found.labels, setup.dataset, found.records)
    result = fit(found.logits, found.labels, fitted, method, SEED)
    calibration = None
    if result.method != "none":
        scale, bias = (tuple(values.tolist()) for values in result.scaling)
        calibration = Calibration(result.method, scale, bias, result.fitted)
    if is_main():
        with folder.locked():
            save_bundle(replace(bundle, calibration=calibration), folder.bundle)
            folder.write_json(CALIBRATION, fit_json(result) | {"step": folder.status()["step"]})
    barrier("calibrated")
    # What the folder says of the run must be of what it delivers.
    evaluate_run(path)
    return Calibrated(result, calibration, recipe.train.loss)


def some_records(dataset: Dataset, most: int) -> Dataset:
    """The set with at most so many held-out records, evenly from all classes; 0: all."""
    held = dataset.evaluation
    if not 0 < most < len(held):
        return dataset
    counts = np.bincount(held.labels)
    # The largest number of each class that stays below.
    each = next(each for each in range(min(most, int(counts.max())), -1, -1) if np.minimum(counts, each).sum() <= most)
    return replace(dataset, evaluation=Subset(held, np.flatnonzero(few_of_each(held.labels, each, SEED))))


def _first_half(labels: np.ndarray, dataset: Dataset, records: np.ndarray) -> np.ndarray:
    """[n] bool, the half to fit to; records of one group stay together."""
    groups = dataset.evaluation.groups
    fitted = held_out(labels, 0.5, SEED, None if groups is None else groups[records])
    few = min(fitted.sum(), (~fitted).sum())
    if few < MIN_RECORDS // 2:
        raise UserError(
            f"{len(labels)} held-out records are here, {few} in the smaller half; calibration fits to one half and "
            f"measures on the other, each of {MIN_RECORDS // 2} or more: hold out more, by data.validation"
        )
    return fitted
