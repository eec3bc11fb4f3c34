"""The training after something was removed from a network: short, with its own recipe, taught by what it was before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pcls.config import Recipe
from pcls.config.duration import Duration
from pcls.config.load import with_overrides
from pcls.errors import RestartRequested, UserError
from pcls.evaluation.metrics import Evaluation
from pcls.pretrained.bundle import Bundle, load_bundle, save_bundle
from pcls.run.train import train_recipe
from pcls.run.weights import Start

# Of the run's length and rate. A removed channel is made up for in a few hundred steps, or not at all.
LENGTH, RATE = 0.2, 0.3

# What a schedule may be told; the training after pruning has one of its own.
_SCHEDULE = ("warmup_start", "end_lr", "step_every", "step_factor", "cooldown", "cooldown_shape")
_SPARSITY = ("sparsity.pattern", "sparsity.end", "sparsity.every")


@dataclass(frozen=True)
class Recovery:
    """How a narrowed network is trained again.

    Attributes:
      recipe: of the run that it comes from.
      teacher: that run's folder.
      length: of each training.
      start_of: makes the weights that a recipe names.
    """

    recipe: Recipe
    teacher: Path
    length: Duration
    start_of: Callable[[Recipe], Start | None]

    def __call__(self, bundle: Bundle, folder: Path) -> tuple[Bundle, Evaluation]:
        """Trains a network and evaluates it on every held-out record of the run.

        Args:
          bundle: the narrowed network.
          folder: a new one, for what is written meanwhile.

        Raises:
          KeyboardInterrupt: the process was asked to stop.
        """
        save_bundle(replace(bundle, calibration=None), folder / "start")
        recipe = recovery_recipe(self.recipe, bundle, folder, self.teacher, self.length)
        try:
            run = train_recipe(recipe, self.start_of(recipe))
        except RestartRequested as stop:
            # What it saved goes with the folder, and nothing has been written yet that was asked for.
            raise KeyboardInterrupt from stop
        assert isinstance(run.evaluation, Evaluation)
        return load_bundle(run.path / "bundle"), run.evaluation


def usual_length(recipe: Recipe) -> Duration:
    """A fifth of the run's."""
    whole = recipe.train.duration
    if whole.unit == "steps":
        return Duration(max(1, round(LENGTH * whole.value)), "steps")
    return Duration(round(LENGTH * whole.value, 6), "epochs")


def recovery_recipe(recipe: Recipe, bundle: Bundle, folder: Path, teacher: Path, length: Duration) -> Recipe:
    """The run's recipe with a lower rate that falls as a cosine, less steps, no averages, and the run as its teacher.

    Args:
      recipe: of the run.
      bundle: the narrowed network; it lies in `folder`.
      folder: for what is written.
      teacher: the run's folder.
      length: of the training.

    Raises:
      UserError: a run whose head is adjusted after training: it would be twice.
    """
    if recipe.imbalance.posthoc_adjustment:
        raise UserError(
            "imbalance.posthoc_adjustment changes the head after training, and pruning trains it again; use "
            "imbalance.logit_adjustment, or --target int8"
        )
    settings: dict[str, Any] = {
        "run.dir": str(folder / "run"),
        "model.init": str(folder / "start"),
        "model.widths": list(bundle.options["widths"]),
        "transfer.rename": [],
        "transfer.skip": [],
        "transfer.head": "auto",
        "distill.teacher": str(teacher),
        "distill.share": 0.5,
        "distill.temperature": 2.0,
        "distill.features": 0.0,
        "distill.cache": False,
        "train.duration": str(length),
        "train.ema_decay": 0.0,
        "data.progressive": [],
        "imbalance.class_weights_from": "0 steps",
        "optimizer.lr": RATE * recipe.optimizer.lr,
        "optimizer.schedule": "cosine",
        "optimizer.warmup": "0 steps",
        "optimizer.freeze": [],
        "optimizer.sparsity.final": 0.0,
        "optimizer.sparsity.start": "0 steps",
        "evaluate.every": str(length),
        "checkpoint.every": str(length),
        "checkpoint.keep_best": 0,
        "checkpoint.keep_every": "0 steps",
        "observe.wandb": "",
    }
    return with_overrides(recipe, settings | {f"optimizer.{key}": None for key in (*_SCHEDULE, *_SPARSITY)})
