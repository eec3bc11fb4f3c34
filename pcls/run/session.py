"""One process's part in a training run: what the loop calls out to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from pcls.checkpoint.store import CheckpointStore, NotSaved
from pcls.config.load import flat_recipe
from pcls.data.pipeline import Batch, Places, Workers
from pcls.data.workers import measure_threads
from pcls.errors import RestartRequested
from pcls.evaluation.count import Predictions
from pcls.evaluation.label_sets import LabelEvaluation, LabelScores
from pcls.evaluation.metrics import Evaluation
from pcls.nn.flops import TRAINING_FLOPS_PER_FORWARD
from pcls.observe.chips import chip_of, share_of_peak
from pcls.observe.console import Console, evaluation_line, telling
from pcls.observe.environment import environment
from pcls.observe.goodput import Goodput
from pcls.observe.profile import Profiler
from pcls.observe.sinks import TENSORBOARD, MetricFiles, Wandb
from pcls.parallel.mesh import replicated
from pcls.pretrained.bundle import Bundle, save_bundle
from pcls.run.calibrate import CALIBRATION
from pcls.run.delivery import training_facts
from pcls.run.evaluate import evaluator_of, keep_evaluation
from pcls.run.folder import RunFolder, Status
from pcls.run.headline import headline
from pcls.run.rollback import Recovery
from pcls.run.setup import Setup
from pcls.run.signals import stop_requests
from pcls.run.steps import compiled_steps, placed, step_batches
from pcls.run.stragglers import Stragglers
from pcls.run.undecodable import Undecodable
from pcls.run.verification import Verification
from pcls.run.watchdog import COMPILING, SAVING, Watchdog
from pcls.training.loop import Hooks, Meter, Step, Trouble, train_loop
from pcls.training.program import Program
from pcls.training.recalibration import mean_statistics
from pcls.training.sizes import Kind
from pcls.training.state import TrainState
from pcls.training.step import Metrics
from pcls.training.tables import state_text, write_parameter_table

# Where the weights came from that the run was started with.
ORIGIN = "origin.json"


@dataclass(frozen=True)
class Run:
    """A run on disk, as `pcls.train` returns it.

    Attributes:
      path: its folder.
      evaluation: of its last step.
    """

    path: Path
    evaluation: Evaluation | LabelEvaluation


class Session(Hooks):
    """The loop's hooks: files, screen, checkpoints.

    Args:
      setup: of the run.
      folder: of the run.
      store: of its checkpoints.
      console: where process 0 speaks; None for the others.
      goodput: books this process's time.
      profile: steps to trace, counted from 1; None: none.
    """

    def __init__(
        self,
        setup: Setup,
        folder: RunFolder,
        store: CheckpointStore,
        console: Console | None,
        goodput: Goodput,
        profile: range | None,
    ):
        self._setup = setup
        self._folder = folder
        self._store = store
        self._console = console
        self._say: Callable[[str], None] = console.say if console else lambda text: None
        self._goodput = goodput
        self._watchdog = Watchdog(setup.recipe.guard.hang, folder.path / f"hang-{jax.process_index()}.txt")
        self._evaluator = evaluator_of(setup, lambda: self._watchdog.expect("a batch of an evaluation"))
        self._recovery = Recovery(setup, folder, store, self._say)
        self._undecodable = Undecodable(setup.dataset, setup.recipe.data.max_undecodable, self._say)
        self._stragglers = Stragglers(self._say)
        # Every process traces its own devices.
        self._profiler = Profiler(folder.path / TENSORBOARD, profile, self._say)
        self._image_share_of_peak = image_share_of_peak(setup)
        self._at_end = ExitStack()
        self._sinks: list[MetricFiles | Wandb] = []
        self._result: tuple[Evaluation, Predictions] | tuple[LabelEvaluation, LabelScores] | None = None
        self._score_at: dict[int, float] = {}
        self._not_saved: NotSaved | None = None
        self._begun: set[tuple[Kind, int]] = set()
        self._last_skipped = -1
        self._asked_to_stop: Callable[[int], bool] = lambda step: False

    def train(self, state: TrainState, first: int) -> Run:
        """Trains, then delivers; or stops on request, saved."""
        plan = self._setup.plan
        if self._console:
            self._open(first)
        try:
            with stop_requests(self._say, self._setup.recipe.checkpoint.stop_within) as self._asked_to_stop:
                with self._batches(first) as batches:
                    step_of = compiled_steps(self._setup, first, self._at_end)
                    self._goodput.start_training()
                    self._profiler.after(first, plan.after_dispatch(first))
                    state, finished = train_loop(state, step_of, self._booked(batches), plan, self)
                if finished:
                    self._evaluate_once(state)
                self._settle(finished)
            self._write(self._goodput.row(int(state.step)))
        finally:
            self._watchdog.close()
            self._at_end.close()
            self._profiler.close()
            for sink in self._sinks:
                sink.close()
        step = int(state.step)
        if not finished:
            self._set_status("stopped", step)
            raise RestartRequested(f"stopped and saved at step {step:,}; go on with: pcls resume {self._folder.path}")
        return self._deliver(state)

    def begin(self, step: int) -> None:
        """Watches the dispatch that follows; one of a new kind is compiled first."""
        program = self._setup.kind_at(step), self._setup.plan.together(step)
        new = program not in self._begun
        self._begun.add(program)
        self._watchdog.expect(f"step {step + 1:,}", COMPILING if new else 0)

    def verified(self, train: Step, state: TrainState, batch: Any, step: int) -> tuple[TrainState, Metrics]:
        """Takes a step twice, and compares what the devices hold."""
        with self._watchdog.expecting(f"step {step:,}, taken twice", COMPILING):
            return self._verification.step_twice(train, state, batch, step)

    def skipped(self, steps: list[int]) -> None:
        """Says the first of those in a row."""
        if steps[0] != self._last_skipped + 1:
            self._say(f"step {steps[0]:,}: the loss or its gradient is not finite; it changes nothing")
        self._last_skipped = steps[-1]

    def roll_back(self, state: TrainState, step: int, trouble: Trouble) -> TrainState:
        """Goes on with the weights of the newest good checkpoint."""
        with self._watchdog.expecting("a checkpoint to go back to", COMPILING), self._goodput.lost_to("checkpoint"):
            self._tolerating(self._store.wait)
            return self._recovery(state, step, trouble)

    def place(self, batch: Batch | Places) -> Any:
        """To the devices; what could not be decoded is counted on the way."""
        if isinstance(batch, Batch):
            self._undecodable.inspect(batch)
        return placed(self._setup, batch)

    def progress(self, meter: Meter, step: int) -> None:
        """Redraws the progress line now and then, and says what became of a checkpoint."""
        self._profiler.after(step, self._setup.plan.after_dispatch(step))
        self._tolerating(self._store.poll)
        if self._console and meter.has_rates and self._console.due():
            self._console.progress(meter.current(step))

    def log(self, row: dict[str, Any]) -> None:
        """Keeps a training row."""
        del row["eta"]
        row |= self._stragglers.compare(row["host_seconds"])
        row["lr"] = self._rate_before(row["step"])
        if self._image_share_of_peak is not None:
            row["mfu"] = (
                row["images_per_second"] * self._image_share_of_peak * self._setup.sizes.relative_area(row["step"])
            )
        self._write(row)

    def finish(self, state: TrainState) -> TrainState:
        """Takes BatchNorm's statistics anew where the recipe asks for it."""
        plan = self._setup.plan
        count = self._setup.recipe.batch_norm.recalibrate.steps(plan.epoch_steps)
        if not count:
            return state
        step, (params, stats) = self._setup.statistics_step(), self._evaluator.gathered(state.deliverable)
        steps = range(plan.steps, plan.steps + count)
        # No step of training: like the evaluation that follows, it looks at the weights and leaves them alone.
        with (
            self._goodput.lost_to("evaluation"),
            self._watchdog.expecting("statistics", COMPILING),
            self._setup.batches(steps, self._workers, self._say) as batches,
        ):
            stats = mean_statistics(step(params, stats, state.key, batch) for batch in self._placed(batches))
        self._say(f"recalibrated BatchNorm over {count:,} batches")
        return state.with_deliverable_stats(stats)

    def _placed(self, batches: Iterator[Batch]) -> Iterator[Any]:
        for batch in batches:
            yield placed(self._setup, batch)
            self._watchdog.expect("a batch of statistics")

    def evaluate(self, state: TrainState, step: int) -> float:
        """Evaluates what would be delivered now."""
        with self._goodput.lost_to("evaluation"), self._watchdog.expecting("an evaluation", COMPILING):
            self._result = self._evaluator(*self._setup.deliverable(state))
        evaluation = self._result[0]
        when, summary = {"step": step, "epoch": step / self._setup.plan.epoch_steps}, evaluation.summary()
        self._write({"kind": "eval", **when, **summary})
        if step < self._setup.plan.steps:
            self._write(self._goodput.row(step))
        self._score_at = {step: evaluation.score}
        best = evaluation.score > float(state.best_top1)
        told = telling(summary, len(self._setup.dataset.class_names))
        self._say(evaluation_line({**when, **told, "best": best and step > self._setup.plan.evaluate_every}))
        return evaluation.score

    def save(self, state: TrainState, step: int) -> None:
        """Starts a checkpoint."""
        with self._goodput.lost_to("checkpoint"), self._watchdog.expecting("a checkpoint", SAVING):
            if self._setup.plan.verify_every:
                self._verification.compare_copies(state, step)
            # What became of the one before is no reason not to try this one.
            self._tolerating(self._store.wait)
            self._not_saved = None
            self._tolerating(lambda: self._store.save(step, state, score=self._score_at.get(step)))
        self._set_status("running", step)

    def stop_requested(self, step: int) -> bool:
        """Whether a signal or a cloud's notice has come."""
        return self._asked_to_stop(step)

    def _tolerating(self, act: Callable[[], None]) -> None:
        """Raises NotSaved only where the recipe wants the run to end by it; else says it."""
        try:
            act()
        except NotSaved as error:
            if self._setup.recipe.checkpoint.on_failure == "stop":
                raise
            self._not_saved = error
            self._say(
                f"{error.folder}: a checkpoint could not be written; {error.reason}; the run goes on without it "
                "(checkpoint.on_failure=go_on)"
            )

    def _evaluate_once(self, state: TrainState) -> None:
        """Where no step was left to take: a kill came between the last one and the bundle, or the run has none."""
        if self._result is None:
            self.evaluate(state, self._setup.plan.steps)

    def _settle(self, finished: bool) -> None:
        """Waits for the last checkpoint. A finished run can do without it; one that stops has nothing else to go on."""
        with self._goodput.lost_to("checkpoint"), self._watchdog.expecting("the last checkpoint", SAVING):
            self._tolerating(self._store.wait)
        if self._not_saved and not finished:
            raise self._not_saved

    def _open(self, first: int) -> None:
        """Process 0's files."""
        recipe = self._setup.recipe
        self._folder.write_json("environment.json", environment())
        self._folder.set_status("running", first, self._setup.plan.steps)
        self._sinks.append(MetricFiles(self._folder.path, start=first))
        if recipe.observe.wandb:
            self._sinks.append(Wandb(recipe.observe.wandb, self._folder.path, flat_recipe(recipe)))
        write_parameter_table(self._setup, self._folder.path / "parameters.csv")
        self._say(headline(self._setup, self._folder, first))
        if recipe.distill.teacher:
            told = f"{recipe.distill.share:.0%} of the loss at temperature {recipe.distill.temperature:g}"
            self._say(f"teacher: {recipe.distill.teacher}, {told}")
        for notice in self._setup.dataset.notices:
            self._say(notice)
        if self._setup.mesh.size > 1:
            self._say(state_text(self._setup))

    @cached_property
    def _verification(self) -> Verification:
        return Verification(self._setup)

    def _write(self, row: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink.write(row)

    def _booked(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the wait for each is booked."""
        while True:
            with self._goodput.lost_to("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _batches(self, first: int) -> AbstractContextManager[Iterator[Any]]:
        return step_batches(self._setup, first, lambda: self._workers, self._say)

    @cached_property
    def _workers(self) -> Workers:
        """Who reads; where the recipe leaves it open, a measurement decides."""
        setup, data, dataset = self._setup, self._setup.recipe.data, self._setup.dataset
        if dataset.in_memory:
            return Workers(threads=0)
        if data.workers or data.processes:
            return Workers(data.workers or 1, data.processes)
        measured = measure_threads(dataset.train, dataset.preprocessing.training, random_crop=setup.random_crop)
        self._say(str(measured))
        return Workers(measured.threads)

    def _rate_before(self, step: int) -> float:
        """The rate of the update that ended at a step."""
        setup, first = self._setup, self._setup.sizes.began(step)
        grown = setup.sizes.update_at(first).batches if setup.recipe.optimizer.lr_per_256 else 1
        return float(setup.schedule(first)) * grown

    def _deliver(self, state: TrainState) -> Run:
        """Writes the bundle and the last evaluation."""
        delivered = self._setup.deliverable(state)
        assert self._result is not None
        evaluation, predictions = self._result
        # Whole on every device: process 0 must see all of it to write it.
        whole = jax.jit(lambda arrays: arrays, out_shardings=replicated(self._setup.mesh))(delivered)
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
                    options=self._setup.recipe.model.architecture,
                    origin=self._folder.read_json(ORIGIN) or {},
                    thresholds=evaluation.thresholds,
                    training=training_facts(self._setup, evaluation),
                ),
                self._folder.bundle,
            )
            self._set_status("finished", self._setup.plan.steps)
            self._say(f"finished: {self._folder.path}; next: pcls report {self._folder.path}")
            for text in of_earlier_weights(self._folder, self._setup.plan.steps):
                self._say(text)
        return Run(self._folder.path, evaluation)

    def _set_status(self, status: Status, step: int) -> None:
        if self._console:
            self._folder.set_status(status, step, self._setup.plan.steps)


def of_earlier_weights(folder: RunFolder, step: int) -> Iterator[str]:
    """A line for each thing in a run's folder that was made of other weights than those of a step."""
    calibrated = folder.read_json(CALIBRATION) or {"method": "none"}
    if calibrated["method"] != "none" and calibrated["step"] != step:
        yield f"the calibration was of the weights of step {calibrated['step']:,}: pcls calibrate {folder.path} again"
    if compressed := sorted(path.name for path in folder.path.glob("bundle_*") if path.is_dir()):
        yield f"{', '.join(compressed)}: of the weights before; make them again by: pcls compress {folder.path}"


def image_share_of_peak(program: Program) -> float | None:
    """The share of a second of all chips' peak that one image's training takes, by the model's own FLOPs.

    None where the devices' peak is not documented, or some of the model is frozen: how much is computed then?
    """
    if any(program.freezing.starts.values()):
        return None
    devices = program.mesh.devices
    flops = float(TRAINING_FLOPS_PER_FORWARD * program.forward_flops)
    return share_of_peak(flops, chip_of(devices.flat[0].device_kind), devices.size, program.recipe.train.precision)
