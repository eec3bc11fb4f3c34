"""The checkpoints of a run: the store that training writes, and what is done with them afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from pcls.checkpoint.retention import Retention
from pcls.checkpoint.store import CheckpointStore
from pcls.config import Recipe, dump_recipe
from pcls.config.load import with_overrides
from pcls.observe.environment import package_versions
from pcls.parallel.processes import agreed
from pcls.run.folder import RunFolder
from pcls.run.setup import Setup


def run_store(setup: Setup, folder: RunFolder, warn: Callable[[str], None]) -> CheckpointStore:
    """The store of a run that is trained.

    Args:
      setup: of the run.
      folder: of the run.
      warn: tells a person about a damaged step.
    """
    section = setup.recipe.checkpoint
    return CheckpointStore(
        folder.checkpoints,
        warn=warn,
        agree=agreed,
        retention=retention_of(setup.recipe, setup.plan.epoch_steps),
        about=origin_of(setup),
        commit=section.commit,
    )


def retention_of(recipe: Recipe, epoch_steps: float) -> Retention:
    """What a recipe keeps; `epoch_steps` is the length of its epoch."""
    section = recipe.checkpoint
    return Retention(section.keep, section.keep_best, section.keep_every.exact_steps(epoch_steps))


def origin_of(setup: Setup) -> dict[str, Any]:
    """What every manifest of a run says of itself; with the step, `data` says which records come next."""
    return {
        "recipe": recipe_digest(setup.recipe),
        "mesh": dict(setup.mesh.shape),
        "data": {
            "records": len(setup.dataset.train),
            "batch_size": setup.plan.batch_size,
            "seed": setup.recipe.train.seed,
        },
        "epoch_steps": setup.plan.epoch_steps,
        "versions": package_versions(),
    }


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 of a recipe, wherever its run lies."""
    return hashlib.sha256(dump_recipe(with_overrides(recipe, {"run.dir": ""})).encode()).hexdigest()
