"""What a run worked with, in words: for its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pcls.config import Recipe, flat_recipe
from pcls.data.dataset import Dataset
from pcls.data.preprocessing import Preprocessing
from pcls.evaluation.report import Table
from pcls.models.registry import define_model, model_entry
from pcls.nn.module import ModelDef
from pcls.run.folder import RunFolder
from pcls.run.rollback import rollbacks_of


def _sizes_text(preprocessing: Preprocessing) -> str:
    shape, train = " x ".join(map(str, preprocessing.shape)), preprocessing.train
    return f"{shape}, trained at {train.height} x {train.width}" if train else shape


def definition_of(recipe: Recipe, dataset: Dataset) -> ModelDef:
    """The run's model, without its arrays."""
    preprocessing = dataset.preprocessing
    return define_model(
        recipe.model.name,
        height=preprocessing.height,
        width=preprocessing.width,
        channels=preprocessing.channels,
        classes=len(dataset.class_names),
        **recipe.model.options,
    )


def facts_of(folder: RunFolder, recipe: Recipe, dataset: Dataset) -> dict[str, Mapping[str, str]]:
    """What the run worked with: data, model, environment, recipe."""
    preprocessing = dataset.preprocessing
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
            "parameters": f"{definition_of(recipe, dataset).parameter_count:,}",
            "starts from": recipe.model.init or "random weights",
        },
        "Environment": {key: value_text(value) for key, value in (environment | packages).items()},
        "Recipe": {key: value_text(value) for key, value in flat_recipe(recipe).items()},
    }


def value_text(value: Any) -> str:
    """A value as a person writes it: lists without brackets."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def rollback_tables(folder: RunFolder) -> list[Table]:
    """When the run was in trouble and went back, as a table; none where it never was."""
    found = rollbacks_of(folder)
    rows = tuple((f"{one.since:,}", f"{one.back_to:,}", f"{one.step:,}", one.reason) for one in found)
    columns = ("in trouble since step", "weights of step", "went on at step", "why")
    note = "The records between the second and the third step have had no turn. Look at a step by pcls replay."
    return [Table("Went back", columns, rows, note)] if found else []
