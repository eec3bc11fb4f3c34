"""Training runs: start one, go on with one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import jax

from pcls.checkpoint.store import CheckpointStore
from pcls.config import Recipe
from pcls.config.load import Overrides, with_overrides
from pcls.data.dataset import Dataset
from pcls.data.pipeline import Batch, training_batches
from pcls.data.preprocessing import Preprocessing
from pcls.errors import RestartRequested, UserError
from pcls.evaluation.count import Predictions
from pcls.evaluation.metrics import Evaluation
from pcls.nn.module import Arrays, ModelDef
from pcls.observe.console import Console, evaluation_line
from pcls.observe.environment import describe_devices, environment
from pcls.observe.sinks import MetricFiles
from pcls.parallel.mesh import replicated
from pcls.parallel.processes import agreed, barrier, is_main, place
from pcls.pretrained.bundle import Bundle, save_bundle
from pcls.run.evaluate import PREPROCESSING, Evaluator, keep_evaluation, saved_preprocessing
from pcls.run.folder import RunFolder, Status
from pcls.run.setup import Setup, prepare, tune_process
from pcls.run.signals import stop_requests
from pcls.training.loop import Meter, train_loop
from pcls.training.state import TrainState


@dataclass(frozen=True)
class Start:
    """Pretrained weights that a run starts from.

    Attributes:
      preprocessing: what the weights expect; it holds for the run.
      weights: makes parameters and statistics for the run's model, on the host, from the classes and a seed.
    """

    preprocessing: Preprocessing
    weights: Callable[[ModelDef, tuple[str, ...], int], tuple[Arrays, Arrays]]


@dataclass(frozen=True)
class Run:
    """A run on disk, as `pcls.train` returns it.

    Attributes:
      path: its folder.
      evaluation: of its last step.
    """

    path: Path
    evaluation: Evaluation


def train_recipe(recipe: Recipe, start: Start | None = None, *, stream: TextIO | None = None) -> Run:
    """Trains a recipe in a new run folder.

    Args:
      recipe: resolved.
      start: pretrained weights; None: from scratch.
      stream: where progress is told; None: standard error.

    Raises:
      UserError: the folder holds a run already, or recipe, data, model and devices do not fit.
      RestartRequested: stopped on request; saved.
      Diverged: no finite loss any more.
    """
    folder = RunFolder(recipe.run.dir)
    _refuse_used(folder)
    tune_process()
    setup = prepare(recipe, start.preprocessing if start else None)
    weights = start.weights(setup.model, setup.dataset.class_names, recipe.train.seed) if start else None
    # Every process has looked before process 0 makes the folder.
    barrier("folder is new")
    with folder.locked() if is_main() else nullcontext():
        if is_main():
            # Another process may have been faster since the first look.
            _refuse_used(folder)
            folder.create(recipe)
            folder.write_json(PREPROCESSING, setup.dataset.preprocessing.to_json())
        return _train(setup, folder, weights, Console(setup.plan.steps, stream))


def resume_run(path: str | Path, overrides: Overrides = ()) -> Run:
    """Goes on with a run from its newest valid checkpoint; from its start where it has none.

    Args:
      path: the run's folder.
      overrides: changes to the recipe, for example `mesh.fsdp=4` or a longer `train.duration`.

    Raises:
      UserError: no run here, another process is writing it, or the changes do not fit its checkpoint.
    """
    folder = RunFolder(path)
    recipe = with_overrides(folder.recipe(), overrides)
    recipe = with_overrides(recipe, {"run.dir": str(folder.path)})
    tune_process()
    setup = prepare(recipe, saved_preprocessing(folder))
    with folder.locked() if is_main() else nullcontext():
        return _train(setup, folder, None, Console(setup.plan.steps), resume=True)


def _refuse_used(folder: RunFolder) -> None:
    if folder.exists():
        status = folder.status().get("status", "unfinished")
        raise UserError(
            f"{folder.path}: holds a {status} run; go on with it by: pcls resume {folder.path}, "
            "or name another folder: run.dir=FOLDER"
        )


def _train(
    setup: Setup,
    folder: RunFolder,
    weights: tuple[Arrays, Arrays] | None,
    screen: Console,
    *,
    resume: bool = False,
) -> Run:
    console = screen if is_main() else None
    store = CheckpointStore(folder.checkpoints, keep=setup.recipe.checkpoint.keep, warn=_sayer(console), agree=agreed)
    try:
        restored = store.restore(setup.state_shapes) if resume else None
        state = restored[0] if restored else setup.initial_state(weights)
        first = int(state.step)
        if first >= setup.plan.steps and folder.status().get("status") == "finished":
            raise UserError(
                f"{folder.path}: is finished, {first:,} of {setup.plan.steps:,} steps; "
                "to train longer, add for example train.duration='20 epochs'"
            )
        if resume and is_main():
            # Only now: changes that do not fit the checkpoint must not replace the recipe that it was made with.
            folder.create(setup.recipe)
        if weights is not None:
            # A run cut off before its first checkpoint must not go on from random weights.
            store.save(0, state)
        return _Session(setup, folder, store, console).train(state, first)
    finally:
        store.close()


def _sayer(console: Console | None) -> Callable[[str], None]:
    return console.say if console else lambda text: None


class _Session:
    """The loop's hooks: the files, screen and checkpoints of one process's part in a run."""

    def __init__(self, setup: Setup, folder: RunFolder, store: CheckpointStore, console: Console | None):
        self._setup = setup
        self._folder = folder
        self._store = store
        self._console = console
        self._say = _sayer(console)
        self._evaluator = Evaluator(setup)
        self._undecodable = Undecodable(setup.dataset, setup.recipe.data.max_undecodable, self._say)
        self._files: MetricFiles | None = None
        self._result: tuple[Evaluation, Predictions] | None = None

    def train(self, state: TrainState, first: int) -> Run:
        """Trains, then delivers; or stops on request, saved."""
        setup, plan = self._setup, self._setup.plan
        if self._console:
            self._folder.write_json("environment.json", environment())
            self._folder.set_status("running", first, plan.steps)
            self._files = MetricFiles(self._folder.path, start=first)
            self._say(headline(setup, self._folder, first))
        try:
            with self._batches(first) as batches, stop_requests(self._say) as self.stop_requested:
                state, finished = train_loop(state, setup.train_step(), batches, plan, self)
            self._store.wait()
        finally:
            if self._files:
                self._files.close()
        step = int(state.step)
        if not finished:
            self._set_status("stopped", step)
            raise RestartRequested(f"stopped and saved at step {step:,}; go on with: pcls resume {self._folder.path}")
        return self._deliver(state)

    def place(self, batch: Batch) -> Batch:
        """To the devices; what could not be decoded is counted on the way."""
        self._undecodable.inspect(batch)
        return place(batch, self._setup.batch_sharding, self._setup.plan.batch_size)

    def progress(self, meter: Meter, step: int) -> None:
        """Redraws the progress line now and then."""
        if self._console and meter.has_numbers and self._console.due():
            self._console.progress(meter.current(step))

    def log(self, row: dict[str, Any]) -> None:
        """Keeps a training row."""
        if self._files:
            del row["eta"]
            self._files.write(row | {"lr": float(self._setup.schedule(row["step"] - 1))})

    def evaluate(self, state: TrainState, step: int) -> float:
        """Evaluates what would be delivered now."""
        evaluation, predictions = self._evaluator(*state.deliverable)
        self._result = evaluation, predictions
        row = {"kind": "eval", "step": step, "epoch": step / self._setup.plan.epoch_steps, **evaluation.summary()}
        if self._files:
            self._files.write(row)
        best = evaluation.top1 > float(state.best_top1)
        self._say(evaluation_line(row | {"best": best and step > self._setup.plan.evaluate_every}))
        return evaluation.top1

    def save(self, state: TrainState, step: int) -> None:
        """Starts a checkpoint."""
        self._store.save(step, state)
        self._set_status("running", step)

    def _batches(self, first: int) -> AbstractContextManager[Iterator[Batch]]:
        recipe, dataset, plan = self._setup.recipe, self._setup.dataset, self._setup.plan
        return training_batches(
            dataset.train,
            dataset.preprocessing,
            batch_size=plan.batch_size,
            rows=self._setup.rows(plan.batch_size),
            seed=recipe.train.seed,
            random_crop=recipe.data.train_crop == "random",
            steps=range(first, plan.steps),
            workers=dataset.workers,
        )

    def _deliver(self, state: TrainState) -> Run:
        """Writes the bundle and the last evaluation."""
        # The loop evaluates after its last step; there was none if a kill came between that and here.
        evaluation, predictions = self._result or self._evaluator(*state.deliverable)
        whole = jax.jit(lambda arrays: arrays, out_shardings=replicated(self._setup.mesh))(state.deliverable)
        if self._console:
            params, stats = jax.device_get(whole)
            keep_evaluation(self._folder, evaluation, predictions)
            save_bundle(
                Bundle(
                    model=self._setup.recipe.model.name,
                    class_names=self._setup.dataset.class_names,
                    preprocessing=self._setup.dataset.preprocessing,
                    precision=self._setup.recipe.train.precision,
                    params=params,
                    stats=stats,
                    metrics=evaluation.summary(),
                ),
                self._folder.bundle,
            )
            self._set_status("finished", self._setup.plan.steps)
            self._say(f"finished: {self._folder.path}; next: pcls report {self._folder.path}")
        return Run(self._folder.path, evaluation)

    def _set_status(self, status: Status, step: int) -> None:
        if self._console:
            self._folder.set_status(status, step, self._setup.plan.steps)


def headline(setup: Setup, folder: RunFolder, first: int) -> str:
    """One line before the first step: model, data, devices, length."""
    dataset = setup.dataset
    size = f"{dataset.preprocessing.height} x {dataset.preprocessing.width} x {dataset.preprocessing.channels}"
    start = f"from step {first:,} to" if first else "for"
    return (
        f"{folder.path}: {setup.recipe.model.name} ({setup.model.parameter_count:,} parameters) on "
        f"{len(dataset.train):,} images {size}, {len(dataset.class_names)} classes, "
        f"{len(dataset.evaluation):,} held out; {describe_devices(jax.devices())}; "
        f"{start} {setup.plan.steps:,} steps of {setup.plan.batch_size}"
    )


class Undecodable:
    """Training records that could not be decoded: named once each, and limited.

    Args:
      dataset: trained on.
      limit: share of records above which the run ends.
      say: tells a person.
    """

    def __init__(self, dataset: Dataset, limit: float, say: Callable[[str], None]):
        self._dataset = dataset
        self._limit = limit
        self._say = say
        self._seen: set[int] = set()

    def inspect(self, batch: Batch) -> None:
        """Looks at the weights of a host batch; raises UserError above the limit."""
        for record in batch.record[batch.weight == 0]:
            if int(record) not in self._seen:
                self._seen.add(int(record))
                self._tell(int(record))

    def _tell(self, record: int) -> None:
        source, size = self._dataset.train, len(self._dataset.train)
        text = (
            f"{source.name(record)} {source.failure(record, self._dataset.preprocessing)}; "
            f"{len(self._seen):,} of {size:,} images skipped, limit {self._limit:.2%}"
        )
        if len(self._seen) > self._limit * size:
            raise UserError(f"{text} (data.max_undecodable); mend or remove the file, or raise the limit")
        self._say(text)
