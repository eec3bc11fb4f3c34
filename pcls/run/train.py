"""Training runs: start one, go on with one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TextIO

from pcls.checkpoint.store import problem_of, steps_in
from pcls.config import Recipe
from pcls.config.load import Overrides, flat_recipe, with_overrides
from pcls.errors import UserError
from pcls.nn.module import Arrays
from pcls.observe.console import Console
from pcls.observe.goodput import Goodput
from pcls.observe.profile import check_steps
from pcls.observe.sinks import require_wandb
from pcls.parallel.processes import agreed, barrier, differing, is_main
from pcls.parallel.tuning import tune_process
from pcls.run.checkpoints import run_store
from pcls.run.evaluate import PREPROCESSING, evaluate_run, saved_preprocessing
from pcls.run.folder import RunFolder
from pcls.run.same_data import change_of_data, keep_data
from pcls.run.session import ORIGIN, Run, Session
from pcls.run.setup import Setup, open_data, prepare, setup_of
from pcls.run.teachers import with_teacher
from pcls.run.weights import Start, has_first_weights, start_weights
from pcls.training.step import RIGHT


def train_recipe(
    recipe: Recipe,
    start: Start | None = None,
    *,
    profile: range | None = None,
    stream: TextIO | None = None,
    used: bool = False,
) -> Run:
    """Trains a recipe in a new run folder.

    Args:
      recipe: resolved.
      start: pretrained weights; None: from scratch.
      profile: steps to trace, counted from 1; None: none.
      stream: where progress is told; None: standard error.
      used: the folder may hold a run, which is begun again.

    Raises:
      UserError: the folder holds a run already, or recipe, data, model and devices do not fit.
      RestartRequested: stopped on request; saved.
      Diverged: no finite loss any more.
    """
    with closing(Goodput()) as goodput:
        tune_process()
        check_same_recipe(recipe)
        folder = RunFolder(recipe.run.dir)
        if not used:
            refuse_used(folder)
        setup = with_teacher(prepare(recipe, start.preprocessing if start else None))
        _check_observed(recipe, profile, 1, setup.plan.steps)
        screen = Console(setup.plan.steps, stream, setup.preprocessing.records, RIGHT[recipe.data.labels])
        weights = start_weights(start, setup, screen if is_main() else None)
        # Every process has looked before process 0 makes the folder.
        barrier("folder is new")
        with folder.locked() if is_main() else nullcontext():
            if is_main():
                if not used:
                    # Another process may have been faster since the first look.
                    refuse_used(folder)
                begin_folder(folder, recipe, setup, start)
            return _train(setup, folder, weights, screen, goodput, profile)


def resume_run(path: str | Path, overrides: Overrides = (), *, profile: range | None = None) -> Run:
    """Goes on with a run from its newest valid checkpoint; from its start where it has none.

    Args:
      path: the run's folder.
      overrides: changes to the recipe, for example `mesh.fsdp=4` or a longer `train.duration`.
      profile: steps to trace, counted from 1; None: none.

    Raises:
      UserError: no run here, another process is writing it, the changes do not fit its checkpoint, or the data are not
        those that it began with and none of the changes names others.
    """
    with closing(Goodput()) as goodput:
        tune_process()
        folder = RunFolder(path)
        before = with_overrides(folder.recipe(), {"run.dir": str(folder.path)})
        recipe = with_overrides(with_overrides(before, overrides), {"run.dir": str(folder.path)})
        check_same_recipe(recipe)
        dataset = open_data(recipe, saved_preprocessing(folder))
        # Before anything is built: a class more is a model of another shape.
        change = change_of_data(folder, recipe, dataset)
        setup = with_teacher(setup_of(recipe, dataset))
        with folder.locked() if is_main() else nullcontext():
            screen = Console(
                setup.plan.steps, records=setup.preprocessing.records, accuracy=RIGHT[setup.recipe.data.labels]
            )
            changes = changed_keys(before, recipe)
            told = [f"changed: {changes}"] if changes else []
            told += [f"{change}; pcls eval goes by these data from now on"] if change else []
            return _train(setup, folder, None, screen, goodput, profile, resume=True, told=told)


def train_or_resume(recipe: Recipe, start_of: Callable[[Recipe], Start | None], *, profile: range | None = None) -> Run:
    """What a launcher repeats until it is done: trains a recipe, or goes on with the run in its folder.

    A run that was cut off before its first checkpoint begins again; one that is finished is evaluated once more.

    Args:
      recipe: resolved.
      start_of: makes the pretrained weights that a recipe names.
      profile: steps to trace, counted from 1; None: none.

    Raises:
      UserError: the folder holds a run of another recipe; or as `train_recipe` and `resume_run`.
    """
    tune_process()
    folder = RunFolder(recipe.run.dir)
    # Process 0 decides for all: files that another process has just written may show later here.
    exists, saved, finished = (bool(agreed(int(fact))) for fact in _state_of(folder))
    if exists:
        _check_recipe_of(folder, recipe)
    if not saved:
        return train_recipe(recipe, start_of(recipe), profile=profile, used=exists)
    if finished:
        return Run(folder.path, evaluate_run(folder.path))
    return resume_run(folder.path, profile=profile)


def changed_keys(before: Recipe, after: Recipe) -> str:
    """`optimizer.lr 0.001 -> 0.1, ...`: what of a recipe is another one."""
    old, new = flat_recipe(before), flat_recipe(after)
    return ", ".join(f"{key} {old.get(key)} -> {new[key]}" for key in new if new[key] != old.get(key))


def _state_of(folder: RunFolder) -> tuple[bool, bool, bool]:
    """Whether a run was started in a folder, has a checkpoint to go on from, and is finished."""
    steps = (folder.checkpoints / str(step) for step in steps_in(folder.checkpoints))
    saved = any(problem_of(step, full=False) is None for step in steps)
    return folder.exists(), saved, folder.status().get("status") == "finished"


def _check_recipe_of(folder: RunFolder, recipe: Recipe) -> None:
    """UserError unless the run in the folder is one of this recipe."""
    theirs, ours = flat_recipe(folder.recipe()), flat_recipe(recipe)
    keys = [key for key in ours if key != "run.dir" and ours[key] != theirs.get(key)]
    if keys:
        raise UserError(
            f"{folder.path}: holds a run of another recipe, which differs in {', '.join(keys)}; change a run by: "
            f"pcls resume {folder.path} {keys[0]}=..., or name another folder: run.dir=FOLDER"
        )


def check_same_recipe(recipe: Recipe) -> None:
    """UserError in every process unless all have the same recipe."""
    keys = differing(flat_recipe(recipe))
    if keys:
        raise UserError(f"the processes differ in {', '.join(keys)}; start all with the same recipe and overrides")


def _check_observed(recipe: Recipe, profile: range | None, first: int, last: int) -> None:
    """UserError where what is to be observed cannot be, before anything is written."""
    check_steps(profile, first, last)
    if recipe.observe.wandb:
        require_wandb()


def refuse_used(folder: RunFolder) -> None:
    """UserError where the folder holds a run."""
    if folder.exists():
        status = folder.status().get("status", "unfinished")
        raise UserError(
            f"{folder.path}: holds a {status} run; go on with it by: pcls resume {folder.path}, "
            "or name another folder: run.dir=FOLDER"
        )


def begin_folder(folder: RunFolder, recipe: Recipe, setup: Setup, start: Start | None) -> None:
    """Writes what a run starts with."""
    folder.create(recipe)
    folder.write_json(PREPROCESSING, setup.dataset.preprocessing.to_json())
    keep_data(folder, setup.dataset)
    if start and start.origin:
        folder.write_json(ORIGIN, dict(start.origin))


def _train(
    setup: Setup,
    folder: RunFolder,
    weights: tuple[Arrays, Arrays] | None,
    screen: Console,
    goodput: Goodput,
    profile: range | None,
    *,
    resume: bool = False,
    told: Sequence[str] = (),
) -> Run:
    """`told` is what of a resumed run has changed, in words."""
    console = screen if is_main() else None
    warn = console.say if console else lambda text: None
    store = run_store(setup, folder, warn)
    try:
        restored = store.restore(setup.state_shapes) if resume else None
        if resume and restored is None and has_first_weights(setup.recipe):
            raise UserError(
                f"{folder.path}: has no checkpoint yet, and a resumed run does not make its first weights again; "
                "remove the folder and start anew"
            )
        state = restored[0] if restored else setup.initial_state(weights)
        first = int(state.step)
        if first >= setup.plan.steps and folder.status().get("status") == "finished" and folder.bundle.is_dir():
            raise UserError(
                f"{folder.path}: is finished, {first:,} of {setup.plan.steps:,} steps; "
                "to train longer, add for example train.duration='20 epochs'"
            )
        if resume:
            _check_observed(setup.recipe, profile, first + 1, setup.plan.steps)
        if resume and is_main():
            # Only now: changes that do not fit the checkpoint must not replace the recipe that it was made with.
            folder.create(setup.recipe)
            keep_data(folder, setup.dataset)
            for line in told:
                warn(line)
        if weights is not None:
            # A run cut off before its first checkpoint must not go on from random weights.
            store.save(0, state)
        return Session(setup, folder, store, console, goodput, profile).train(state, first)
    finally:
        store.close()
