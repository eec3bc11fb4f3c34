"""The checkpoints of a run: the store that training writes, and what is done with them afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcls.checkpoint.leaves import verify_leaves
from pcls.checkpoint.manifest import NAME, Damaged, Manifest, state_digest, verify
from pcls.checkpoint.retention import Retention
from pcls.checkpoint.store import CheckpointStore, manifest_of, prunable, prune, steps_in
from pcls.config import Recipe, dump_recipe
from pcls.config.load import Overrides, with_overrides
from pcls.errors import UserError
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


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a saved step.

    Attributes:
      step: its number.
      problem: what is wrong with it; empty: nothing that was looked for.
      bytes: of its files; 0 where its manifest cannot be read, as of all that follows.
      score: of the evaluation at this step, or None.
      kept: why it is kept: `newest`, `best` or `every`; empty: the next save or prune deletes it.
      digest: of all leaves, by name, type, shape and elements.
      leaves, files: how many.
      about: where it comes from: recipe, mesh, data, versions.
    """

    step: int
    problem: str = ""
    bytes: int = 0
    score: float | None = None
    kept: str = ""
    digest: str = ""
    leaves: int = 0
    files: int = 0
    about: dict[str, Any] = field(default_factory=dict)


def list_checkpoints(path: str | Path) -> list[Checkpoint]:
    """The steps of a run in ascending order, judged by the sizes of their files.

    Raises:
      UserError: there is no run.
    """
    folder = RunFolder(path)
    recipe = folder.recipe()
    found: dict[int, Manifest | str] = {}
    for step in saved_steps(folder):
        try:
            found[step] = manifest_of(folder.checkpoints / str(step), full=False)
        except Damaged as error:
            found[step] = str(error)
    scores = {step: manifest.score for step, manifest in found.items() if isinstance(manifest, Manifest)}
    kept = _retention_here(folder, recipe).reasons(scores)
    return [
        Checkpoint(step, manifest) if isinstance(manifest, str) else _told(manifest, kept=kept.get(step, ""))
        for step, manifest in found.items()
    ]


def verify_checkpoints(path: str | Path, step: int | None = None) -> Iterator[Checkpoint]:
    """Reads steps of a run as a whole, in ascending order, and compares the digests of every file and leaf.

    Args:
      path: the run's folder.
      step: only this one; None: all.

    Raises:
      UserError: there is no run, or no such step.
    """
    folder = RunFolder(path)
    folder.recipe()
    steps = saved_steps(folder)
    if step is not None and step not in steps:
        raise no_such_step(folder, step, steps)
    for each in steps if step is None else [step]:
        yield verified(folder.checkpoints / str(each))


def verified(folder: Path) -> Checkpoint:
    """A step, judged by the digests of every file and leaf; the problem names the first of each that differs."""
    try:
        manifest = manifest_of(folder, full=False)
    except Damaged as error:
        return Checkpoint(int(folder.name), str(error))
    problems = []
    try:
        verify(folder, manifest)
    except Damaged as error:
        problems.append(str(error))
    try:
        verify_leaves(folder, manifest.leaves)
    except Damaged as error:
        problems.append(str(error))
    return _told(manifest, problem="; ".join(problems))


def prune_checkpoints(path: str | Path, overrides: Overrides = (), *, dry_run: bool = False) -> list[int]:
    """Deletes the steps that a run's recipe does not keep; returns them.

    Only steps whose digests hold count, so that what is kept can be resumed from. Damaged steps are left alone.

    Args:
      path: the run's folder.
      overrides: changes to the recipe, for example `checkpoint.keep_best=1`; they are not written down.
      dry_run: only says which.

    Raises:
      UserError: there is no run, another process is writing it, or the changes are not allowed.
    """
    folder = RunFolder(path)
    recipe = with_overrides(folder.recipe(), overrides)
    retention = _retention_here(folder, recipe)
    if dry_run:
        return prunable(folder.checkpoints, retention, full=True)
    with folder.locked():
        return prune(folder.checkpoints, retention, full=True)


def saved_steps(folder: RunFolder) -> list[int]:
    """The steps of a run; while a process writes it, not the one whose manifest is still to come."""
    steps = steps_in(folder.checkpoints)
    if not (folder.path / "lock").exists():
        return steps
    return [step for step in steps if (folder.checkpoints / str(step) / NAME).exists()]


def no_such_step(folder: RunFolder, step: int, steps: list[int]) -> UserError:
    """The error for a step that a run does not have."""
    there = f"there are {', '.join(map(str, steps))}" if steps else "none is saved yet"
    return UserError(f"{folder.checkpoints}: there is no step {step}; {there}")


def _retention_here(folder: RunFolder, recipe: Recipe) -> Retention:
    """What a recipe keeps, with the length of an epoch that the run's newest readable step tells."""
    for step in reversed(steps_in(folder.checkpoints)):
        try:
            about = manifest_of(folder.checkpoints / str(step), full=False).about
        except Damaged:
            continue
        return retention_of(recipe, float(about["epoch_steps"]))
    return Retention()


def _told(manifest: Manifest, *, problem: str = "", kept: str = "") -> Checkpoint:
    return Checkpoint(
        step=manifest.step,
        problem=problem,
        bytes=manifest.bytes,
        score=manifest.score,
        kept=kept,
        digest=state_digest(manifest.leaves),
        leaves=len(manifest.leaves),
        files=len(manifest.files),
        about=dict(manifest.about),
    )
