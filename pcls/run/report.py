"""The report of a run, put together from what lies in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pcls.config import Recipe, flat_recipe
from pcls.data.dataset import Dataset
from pcls.data.decode import visible
from pcls.data.preprocessing import Preprocessing
from pcls.evaluation.count import Predictions
from pcls.evaluation.report import MAX_MISTAKES, Mistake, RunReport, write
from pcls.models.registry import define_model, model_entry
from pcls.observe.sinks import read_metrics
from pcls.run.evaluate import evaluate_run, read_evaluation, saved_preprocessing
from pcls.run.folder import RunFolder
from pcls.run.setup import open_data


def report_run(path: str | Path) -> Path:
    """Writes a run's report.html and returns its path; UserError as `run_report` says."""
    return write(run_report(path), RunFolder(path).report)


def run_report(path: str | Path) -> RunReport:
    """What a run's report shows; evaluates first where the run has not been evaluated.

    Raises:
      UserError: no run here, or its data is gone.
    """
    folder = RunFolder(path)
    recipe = folder.recipe()
    kept = read_evaluation(folder)
    if kept is None:
        evaluate_run(path)
        kept = read_evaluation(folder)
        assert kept is not None
    evaluation, predictions = kept
    dataset = open_data(recipe, saved_preprocessing(folder))
    status = {"status": "unfinished", "step": 0} | folder.status()
    return RunReport(
        title=folder.path.resolve().name,
        subtitle=f"{recipe.model.name} on {recipe.data.source}, {status['status']} at step {status['step']:,}",
        evaluation=evaluation,
        history=read_metrics(folder.path),
        mistakes=mistakes(dataset, predictions),
        facts=facts(folder, recipe, dataset),
        records=dataset.preprocessing.records,
    )


def mistakes(dataset: Dataset, predictions: Predictions) -> list[Mistake]:
    """The most confident wrong predictions, with thumbnails."""
    wrong = np.flatnonzero(predictions.predicted != predictions.labels)
    chosen = wrong[np.argsort(-predictions.probability[wrong], kind="stable")][:MAX_MISTAKES]
    if not len(chosen):
        return []
    records = predictions.records[chosen]
    read = dataset.evaluation.read(records, dataset.preprocessing, None)
    images: Iterable[np.ndarray] = read.images
    if read.lengths is not None:
        images = [picture_of(*one, dataset.preprocessing) for one in zip(read.images, read.lengths, strict=True)]
    return [
        Mistake(
            thumbnail=visible(image),
            record=dataset.evaluation.name(int(predictions.records[place])),
            label=int(predictions.labels[place]),
            predicted=int(predictions.predicted[place]),
            probability=float(predictions.probability[place]),
        )
        for place, image in zip(chosen, images, strict=True)
    ]


def picture_of(sequence: np.ndarray, length: int, preprocessing: Preprocessing) -> np.ndarray:
    """A sequence as a picture: time to the right, the first feature at the bottom, grey levels of 3 deviations.

    Args:
      sequence: [steps, features, 1] float32.
      length: steps that count.
      preprocessing: of the sequences.

    Returns:
      [features, length, 1] uint8.
    """
    mean, std = (np.asarray(values)[:, None] for values in (preprocessing.mean, preprocessing.std))
    levels = ((sequence[:length] - mean) / std * (1 / 6) + 0.5) * 255
    return levels.clip(0, 255).astype(np.uint8).swapaxes(0, 1)[::-1]


def _sizes_text(preprocessing: Preprocessing) -> str:
    shape, train = " x ".join(map(str, preprocessing.shape)), preprocessing.train
    return f"{shape}, trained at {train.height} x {train.width}" if train else shape


def facts(folder: RunFolder, recipe: Recipe, dataset: Dataset) -> dict[str, Mapping[str, str]]:
    """What the run worked with: data, model, environment, recipe."""
    preprocessing = dataset.preprocessing
    model = define_model(
        recipe.model.name,
        height=preprocessing.height,
        width=preprocessing.width,
        channels=preprocessing.channels,
        classes=len(dataset.class_names),
        **recipe.model.options,
    )
    environment: dict[str, Any] = folder.read_json("environment.json") or {}
    packages = environment.pop("packages", {})
    return {
        "Data": {
            "source": f"{recipe.data.source} {recipe.data.path}".strip(),
            f"training {preprocessing.records}": f"{len(dataset.train):,}",
            f"evaluation {preprocessing.records}": f"{len(dataset.evaluation):,}",
            "classes": f"{len(dataset.class_names):,}",
            "size": _sizes_text(preprocessing),
            "mean": ", ".join(f"{value:.4f}" for value in preprocessing.mean),
            "deviation": ", ".join(f"{value:.4f}" for value in preprocessing.std),
        },
        "Model": {
            "name": recipe.model.name,
            "description": model_entry(recipe.model.name).description,
            "parameters": f"{model.parameter_count:,}",
            "starts from": recipe.model.init or "random weights",
        },
        "Environment": {key: _text(value) for key, value in (environment | packages).items()},
        "Recipe": {key: _text(value) for key, value in flat_recipe(recipe).items()},
    }


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
