"""Fine-tuning: a recipe derived from pretrained weights and somebody's data."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from pcls.config import Recipe, with_overrides
from pcls.config.load import Overrides
from pcls.data.dataset import Dataset, data_settings, open_dataset
from pcls.data.sources.source import class_counts
from pcls.errors import UserError
from pcls.nn.flops import image_costs
from pcls.nn.module import ModelDef
from pcls.parallel.processes import is_main
from pcls.planning.limits import Limits, limits_of
from pcls.pretrained.bundle import Bundle
from pcls.run.bundles import open_bundle
from pcls.run.folder import RunFolder
from pcls.run.session import Run
from pcls.run.train import refuse_used, train_recipe
from pcls.run.weights import HEAD_PATHS
from pcls.training.freezing import Freezing, freezing
from pcls.transfer.advise import duration_text
from pcls.transfer.groups import layer_groups
from pcls.transfer.recipes import BATCH_SIZE, EPOCHS, MIN_STEPS, RECIPES, Network, choose
from pcls.transfer.start import check_head_fits, start_from, why_new_head

AUTO = "auto"


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning run before it starts.

    Attributes:
      recipe: resolved.
      name, reason: of the named recipe, and why it was chosen.
      bundle: the weights.
      dataset: opened.
    """

    recipe: Recipe
    name: str
    reason: str
    bundle: Bundle
    dataset: Dataset

    @property
    def steps(self) -> int:
        """Of the run."""
        return self.recipe.train.duration.steps(self.epoch_steps)

    @property
    def epoch_steps(self) -> float:
        """Steps of an epoch."""
        return len(self.dataset.train) / self.recipe.train.batch_size


def finetune(
    data: str, model: str | Path, overrides: Overrides = (), *, recipe: str = AUTO, keep_head: bool = False
) -> Run:
    """Fine-tunes pretrained weights on data, in a new run folder; says in five lines what is going to happen.

    Args:
      data: as `pcls.data.dataset.data_settings` reads it.
      model: a finished run, a bundle, or a name of the catalogue.
      overrides: changes to the recipe that `fine_tuning` makes.
      recipe: a key of `RECIPES`, or `auto`: by the number of images.
      keep_head: refuse data of other classes; else they get a new head.
    """
    tuning = fine_tuning(data, model, overrides, recipe=recipe)
    if keep_head:
        check_head_fits(tuning.bundle.class_names, tuning.dataset.class_names)
    refuse_used(RunFolder(tuning.recipe.run.dir))
    if is_main():
        print(fine_tuning_text(tuning, data, model), file=sys.stderr, flush=True)
    start = start_from(model, tuning.recipe) if tuning.recipe.model.init else None
    return train_recipe(tuning.recipe, start)


def fine_tuning(data: str, model: str | Path, overrides: Overrides = (), *, recipe: str = AUTO) -> FineTuning:
    """The recipe of a fine-tuning run; its length and what learns when are chosen by the number of images.

    Raises:
      UserError: the weights, the data, the name or the overrides are at fault.
    """
    if recipe not in (AUTO, *RECIPES):
        raise UserError(f"--recipe {recipe}: there is no such recipe; choose {AUTO}, {', '.join(RECIPES)}")
    bundle = open_bundle(model)
    resolved = with_overrides(with_overrides(Recipe(), _base_settings(data, model, bundle)), overrides)
    dataset = open_dataset(resolved.data, bundle.preprocessing)
    records, classes = len(dataset.train), len(dataset.class_names)
    length = max(MIN_STEPS, math.ceil(EPOCHS * records / resolved.train.batch_size))
    several = dataset.train.targets is not None
    by_data = {"train.duration": f"{length} steps", "train.loss": "sigmoid" if several else "softmax"}
    resolved = with_overrides(with_overrides(resolved, by_data), overrides)
    steps = resolved.train.duration.steps(records / resolved.train.batch_size)
    network, name, reason = _network(bundle, dataset, steps), recipe, "as --recipe says"
    if recipe == AUTO:
        name, reason = choose(records, classes, has_stages=network.has_stages, head_alone=not several)
    resolved = with_overrides(resolved, RECIPES[name](network) | _fifths(steps))
    resolved = with_overrides(resolved, overrides)
    return FineTuning(resolved, name, reason, bundle, dataset)


def _base_settings(data: str, model: str | Path, bundle: Bundle) -> dict[str, Any]:
    return {
        "run.dir": f"runs/{Path(model).name}-finetuned",
        "model.name": bundle.model,
        "model.init": str(model),
        "train.batch_size": BATCH_SIZE,
        "train.precision": bundle.precision,
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-3,
        "optimizer.weight_decay": 1e-4,
        **{f"model.{key}": value for key, value in bundle.options.items()},
        **data_settings(data),
    }


def _network(bundle: Bundle, dataset: Dataset, steps: int) -> Network:
    definition, trained = bundle.definition(), bundle.preprocessing.training
    known, several = set(dataset.class_names) == set(bundle.class_names), dataset.train.targets is not None
    return Network(
        groups=layer_groups((*definition.params, *definition.stats)),
        # No head is fitted to several labels a record.
        head="auto" if known or several or HEAD_PATHS - definition.params.keys() else "probe",
        steps=steps,
        trained=None if dataset.padded else (trained.height, trained.channels),
    )


def _fifths(steps: int) -> dict[str, str]:
    fifth = f"{max(1, math.ceil(steps / 5))} steps"
    return {"evaluate.every": fifth, "checkpoint.every": fifth}


def fine_tuning_text(tuning: FineTuning, data: str, model: str | Path) -> str:
    """Five lines: the data, the model, the plan, the rate of each group of layers, the time."""
    recipe, dataset, bundle = tuning.recipe, tuning.dataset, tuning.bundle
    counts = class_counts(dataset.train).values()
    definition = bundle.definition(len(dataset.class_names))
    learns = freezing(
        recipe.optimizer.freeze,
        definition.params,
        definition.stats,
        epoch_steps=tuning.epoch_steps,
        steps=tuning.steps,
    )
    lines = {
        "data": f"{len(dataset.train):,} {dataset.preprocessing.records} of {len(dataset.class_names):,} classes in "
        f"{data}, {min(counts):,} to {max(counts):,} a class; {len(dataset.evaluation):,} held out",
        "model": f"{model}: {bundle.model}, {definition.parameter_count:,} parameters, "
        f"{' x '.join(map(str, dataset.preprocessing.training.shape))}; {_head_text(bundle, dataset, recipe)}",
        "plan": f"{tuning.name}: {tuning.reason}; {tuning.steps:,} steps of {recipe.train.batch_size}",
        "rates": rates_text(recipe, definition, learns) if tuning.steps else "none: no step is trained",
        "time": _time_text(tuning, definition, learns),
    }
    kept = not why_new_head(bundle, dataset.class_names, recipe)
    if kept and all(name.isdecimal() for name in dataset.class_names):
        lines["note"] = "the classes are called by numbers only: if theirs mean something else, write transfer.head=new"
    return "\n".join(f"{what:<6} {text}" for what, text in lines.items())


def _head_text(bundle: Bundle, dataset: Dataset, recipe: Recipe) -> str:
    why_new = why_new_head(bundle, dataset.class_names, recipe)
    return f"a new head: {why_new}" if why_new else "its head, as the classes have the same names"


def rates_text(recipe: Recipe, definition: ModelDef, learns: Freezing) -> str:
    """The peak rate of each group, from the head down, and from when on it learns."""
    scales = recipe.optimizer.lr_scale
    return "; ".join(
        f"{name} {_rate_text(paths, recipe.optimizer.lr, scales, learns.starts)}"
        for name, paths in reversed(layer_groups(definition.params).items())
    )


def _rate_text(paths: tuple[str, ...], lr: float, scales: Any, starts: Mapping[str, float]) -> str:
    start = min(starts[path] for path in paths)
    if start == math.inf:
        return "frozen"
    scale = next((rule.scale for rule in scales if re.search(rule.match, paths[0])), 1.0)
    return f"{lr * scale:.2g}" + (f" from step {int(start) + 1:,}" if start else "")


def _time_text(tuning: FineTuning, definition: ModelDef, learns: Freezing) -> str:
    if tuning.dataset.padded:
        return "not estimated for sequences; the progress line says when it will be done"
    try:
        limits = limits_of()
    except UserError as error:
        return f"not estimated: {error}"
    best, worst = map(duration_text, _seconds(tuning, definition, learns, limits))
    return (
        f"{best if best == worst else f'{best} to {worst}'} by the limits of {limits.name} ({limits.source}); reading, "
        "compiling and evaluating come on top"
    )


def _seconds(tuning: FineTuning, definition: ModelDef, learns: Freezing, limits: Limits) -> tuple[float, float]:
    """Of the training; frozen groups cost their forward pass, a third."""
    recipe, image = tuning.recipe, tuning.dataset.preprocessing.training
    groups = layer_groups(definition.params).values()
    images = 0.0
    for phase, start, end in learns.spans(0, tuning.steps):
        frozen = learns.frozen(phase)
        learning = sum(not frozen.issuperset(paths) for paths in groups) / len(groups)
        images += (end - start) * recipe.train.batch_size * (1 + 2 * learning) / 3
    if recipe.transfer.head == "probe":
        images += len(tuning.dataset.train) / 3
    return limits.training_seconds(images, *image_costs(definition, image.shape, jnp.dtype(recipe.train.precision)))
