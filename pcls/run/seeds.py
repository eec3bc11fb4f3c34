"""Runs of one recipe with several seeds: in one program where that is faster, else one after another.

Either way each seed has the run folder that it would have alone, and goes on alone from its checkpoints: a program of
all seeds is not resumed.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from pcls.config import Recipe
from pcls.config.load import with_overrides
from pcls.data.pipeline import Batch, Workers
from pcls.errors import Diverged, RestartRequested, UserError
from pcls.evaluation.label_sets import LabelEvaluation
from pcls.evaluation.metrics import Evaluation
from pcls.observe.console import Console
from pcls.observe.goodput import Goodput
from pcls.parallel.tuning import tune_process
from pcls.run.checkpoints import run_store
from pcls.run.folder import RunFolder
from pcls.run.session import Run, Session
from pcls.run.setup import Setup, images_on_devices, open_data, setup_of
from pcls.run.signals import stop_requests
from pcls.run.train import begin_folder, refuse_used, train_recipe
from pcls.run.weights import Start, start_weights
from pcls.training.seeds import SeedHooks, SeedsStep, seeds_loop, seeds_steps, stacked, stacked_batches
from pcls.training.state import TrainState, init_state
from pcls.training.step import RIGHT

StartOf = Callable[[Recipe], Start | None]

# Steps that a measurement takes the time of, after one that compiles.
MEASURED_STEPS = 3
MOST = 1024


@dataclass(frozen=True)
class SeedRuns:
    """Runs that differ in their seed alone.

    Attributes:
      seeds: of those that finished.
      runs: of these.
    """

    seeds: tuple[int, ...]
    runs: tuple[Run, ...]

    @property
    def mean(self) -> float:
        """Top-1 over the seeds; where records carry several labels mAP."""
        return statistics.fmean(run.evaluation.score for run in self.runs)

    @property
    def deviation(self) -> float | None:
        """Of a sample; None where there is one run."""
        return statistics.stdev(run.evaluation.score for run in self.runs) if len(self.runs) > 1 else None

    def __str__(self) -> str:
        scores, name = [run.evaluation.score for run in self.runs], self.runs[0].evaluation.score_name
        each = ", ".join(f"{score:.2%}" for score in scores)
        return f"{name} {spread_text(scores)} over {len(self.runs)} seeds ({each})"


def train_seeds(
    recipe: Recipe, count: int, start_of: StartOf, *, together: bool | None = None, stream: TextIO | None = None
) -> SeedRuns:
    """Trains a recipe with the seeds `train.seed`, `train.seed` + 1 ..., each in a new folder `RUN.DIR-seedN`.

    Args:
      recipe: resolved.
      count: of seeds, 2 or more.
      start_of: the pretrained weights that a recipe names.
      together: in one program; None: on accelerators, and on CPU where a short measurement finds it faster.
      stream: where progress is told; None: standard error.

    Raises:
      UserError: a folder holds a run already, what a single run says, or seeds that cannot share a program are to.
      RestartRequested: stopped on request; saved.
      Diverged: some seeds have no finite loss any more; the others are finished.
    """
    if not 2 <= count <= MOST:
        raise UserError(f"--seeds is {count}; 2 to {MOST:,} are needed")
    tune_process()
    recipes = seed_recipes(recipe, count)
    for own in recipes:
        refuse_used(RunFolder(own.run.dir))
    say = Console(0, stream).say
    starts = [start_of(own) for own in recipes]
    dataset = open_data(recipe, starts[0].preprocessing if starts[0] else None)
    hindrance = why_apart(setup_of(recipes[0], dataset))
    if together and hindrance:
        raise UserError(f"the seeds cannot share a program: {hindrance}; leave out what hinders it")
    if hindrance or together is False:
        say(f"{count} seeds one after another" + (f": {hindrance}" if hindrance else ""))
        return _one_by_one(recipes, starts, stream)
    # Of the computation alone; the folders keep the recipe as it is, which decides on what mesh a run goes on.
    setups = [setup_of(with_overrides(own, {"mesh.sharding": "replicated"}), dataset) for own in recipes]
    if together is None and setups[0].platform == "cpu":
        in_one, apart = step_seconds(setups)()
        together = in_one < apart
        say(
            f"{count} seeds {'in one program' if together else 'one after another'}, by a measurement: a step of all "
            f"takes {1e3 * in_one:,.1f} ms in one program and {1e3 * apart:,.1f} ms one after another"
        )
        if not together:
            return _one_by_one(recipes, starts, stream)
    else:
        say(f"{count} seeds in one program")
    console = Console(setups[0].plan.steps, stream, setups[0].preprocessing.records, RIGHT[recipes[0].data.labels])
    return _train_together(recipes, setups, starts, together_steps(setups), console)


def seed_recipes(recipe: Recipe, count: int) -> list[Recipe]:
    """The recipe of each seed."""
    first, folder = recipe.train.seed, recipe.run.dir
    return [
        with_overrides(recipe, {"train.seed": seed, "run.dir": f"{folder}-seed{seed}"})
        for seed in range(first, first + count)
    ]


def why_apart(setup: Setup) -> str:
    """What keeps seeds from sharing a program; empty: nothing."""
    if jax.process_count() > 1:
        return "there are several processes"
    if setup.recipe.mesh.fsdp > 1 or setup.recipe.mesh.model > 1 or setup.recipe.mesh.rules:
        return "mesh splits the parameters, which one program of all seeds holds whole"
    if len(setup.kinds_from(0)) > 1:
        return "the updates of a run are of several kinds (data.progressive, data.buckets or optimizer.freeze)"
    if setup.recipe.distill.teacher:
        return "they have a teacher"
    if setup.plan.batches_at(0) > 1:
        return "an update takes several batches"
    return "observe.wandb takes one run at a time" if setup.recipe.observe.wandb else ""


def _one_by_one(recipes: Sequence[Recipe], starts: Sequence[Start | None], stream: TextIO | None) -> SeedRuns:
    runs, failed = {}, {}
    for number, (recipe, start) in enumerate(zip(recipes, starts, strict=True), 1):
        try:
            runs[recipe.train.seed] = train_recipe(recipe, start, stream=stream)
        except Diverged as error:
            failed[recipe.train.seed] = error
        except RestartRequested as error:
            left = ", ".join(str(other.train.seed) for other in recipes[number:])
            raise RestartRequested(f"{error}" + (f"; not begun: the seeds {left}" if left else "")) from error
    return _told(runs, failed, Console(0, stream).say)


def _told(runs: dict[int, Run], failed: dict[int, Diverged], say: Callable[[str], None]) -> SeedRuns:
    found = SeedRuns(tuple(runs), tuple(runs.values()))
    if runs:
        say(str(found))
    if failed:
        seed, error = next(iter(failed.items()))
        raise Diverged(f"{len(failed)} of {len(runs) + len(failed)} seeds diverged; seed {seed}: {error}")
    return found


def spread_text(values: Sequence[float]) -> str:
    """`98.71 ± 0.12 %`."""
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{deviation} %"


class _SeedSession(Session, SeedHooks):
    """A session whose steps another loop takes."""

    def open(self) -> Iterator[Any]:
        """Opens the files; returns the batches, which `end` or `leave` closes."""
        self._open(0)
        return self._booked(self._at_end.enter_context(self._batches(0)))

    def start_training(self) -> None:
        """All is ready for the first step."""
        self._goodput.start_training()

    def inspect(self, batch: Any) -> None:
        """As `SeedHooks` says."""
        if isinstance(batch, Batch):
            self._undecodable.inspect(batch)

    def share_evaluator(self, other: _SeedSession) -> None:
        """Takes another seed's, which is compiled already and counts the same records."""
        self._evaluator = other._evaluator

    def end(self, state: TrainState) -> Run:
        """After the last step."""
        self._evaluate_once(state)
        self._settle(True)
        self._write(self._goodput.row(int(state.step)))
        return self._deliver(state)

    def stop(self, step: int) -> None:
        """Saved before the last step."""
        self._settle(False)
        self._set_status("stopped", step)

    def leave(self) -> None:
        """Closes what is open, whatever happened."""
        self._watchdog.close()
        self._at_end.close()
        self._profiler.close()
        for sink in self._sinks:
            sink.close()


def _train_together(
    recipes: Sequence[Recipe],
    setups: Sequence[Setup],
    starts: Sequence[Start | None],
    steps: tuple[SeedsStep, SeedsStep],
    console: Console,
) -> SeedRuns:
    plan, seeds = setups[0].plan, [recipe.train.seed for recipe in recipes]
    states = initial_states(setups, starts)
    with ExitStack() as stack:
        # One screen shows one seed; what the others say is the same but for the numbers, which stand in their files.
        nowhere = Console(plan.steps, stack.enter_context(Path(os.devnull).open("w", encoding="utf-8")))
        sessions: list[_SeedSession] = []
        for recipe, setup, start in zip(recipes, setups, starts, strict=True):
            folder = RunFolder(recipe.run.dir)
            stack.enter_context(folder.locked())
            refuse_used(folder)
            begin_folder(folder, recipe, setup, start)
            store = run_store(setup, folder, console.say)
            stack.callback(store.close)
            goodput = stack.enter_context(closing(Goodput()))
            screen = nowhere if sessions else console
            sessions.append(_SeedSession(setup, folder, store, screen, goodput, None))
            stack.callback(sessions[-1].leave)
            sessions[-1].share_evaluator(sessions[0])
        batches = [session.open() for session in sessions]
        if starts[0] is not None:
            for session, state in zip(sessions, states, strict=True):
                # As of a single run: one cut off before its first checkpoint must not go on from random weights.
                session.save(state, 0)

        score_name = (LabelEvaluation if recipes[0].data.holds_label_sets else Evaluation).score_name

        def evaluated(step: int, scores: Sequence[float]) -> None:
            console.say(f"eval  step {step:,}  {score_name} {spread_text(scores)} over {len(scores)} seeds")

        stop_requested = stack.enter_context(stop_requests(console.say, recipes[0].checkpoint.stop_within))
        for session in sessions:
            session.start_training()
        own, failed = seeds_loop(
            stacked(states), *steps, batches, plan, sessions, stop_requested=stop_requested, evaluated=evaluated
        )
        reached = max((int(state.step) for state in own.values()), default=plan.steps)
        if reached < plan.steps:
            for number in own:
                sessions[number].stop(reached)
            raise RestartRequested(
                f"stopped and saved at step {reached:,}; each seed goes on alone, the first by: pcls resume "
                f"{recipes[next(iter(own))].run.dir}"
            )
        runs = {seeds[number]: sessions[number].end(state) for number, state in own.items()}
    return _told(runs, {seeds[number]: error for number, error in failed.items()}, console.say)


def initial_states(setups: Sequence[Setup], starts: Sequence[Start | None]) -> list[TrainState]:
    """The state of each seed before its first step."""
    weights = [start_weights(start, setup, None) for start, setup in zip(starts, setups, strict=True)]
    if weights[0] is not None:
        return [setup.initial_state(own) for setup, own in zip(setups, weights, strict=True)]
    setup = setups[0]
    # The seed is an argument: one compilation for all.
    init = partial(init_state, setup.model, setup.optimizer, ema=setup.recipe.train.ema_decay > 0)
    compiled = jax.jit(init, out_shardings=setup.state_shardings)
    return [compiled(np.uint32(own.recipe.train.seed)) for own in setups]


def together_steps(setups: Sequence[Setup]) -> tuple[SeedsStep, SeedsStep]:
    """The compiled steps of all seeds, for a batch each and for several."""
    resident = setups[0].recipe.data.on_device
    one, several = seeds_steps(setups[0], len(setups), resident=resident)
    if not resident:
        return one, several
    images = images_on_devices(setups[0])
    return lambda states, batches: one(states, batches, images), lambda s, batches: several(s, batches, images)


def step_seconds(setups: Sequence[Setup], steps: int = MEASURED_STEPS) -> Callable[[], tuple[float, float]]:
    """A measurement of a step of all seeds: seconds in one program, and of their single steps one after another.

    Compiles both; each call then takes `steps` steps of both, from the initial states and on the first batches.
    """
    states, batches = initial_states(setups, [None] * len(setups)), [_first_batch(setup) for setup in setups]
    alone = setups[0].train_step()
    at_once, _ = seeds_steps(setups[0], len(setups), resident=False)
    together, single = stacked(states), states[0]
    whole = stacked_batches(batches)

    def seconds() -> tuple[float, float]:
        in_one = _seconds(at_once, together, whole, steps)
        return in_one, len(setups) * _seconds(alone, single, batches[0], steps)

    seconds()
    return seconds


def _seconds(step: Callable[..., Any], state: TrainState, batch: Any, steps: int) -> float:
    """Seconds a step; the state stays as it is."""
    state = jax.block_until_ready(jax.tree.map(jnp.copy, state))
    began = time.perf_counter()
    for _ in range(steps):
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / steps


def _first_batch(setup: Setup) -> Batch:
    with setup.batches(range(1), Workers(0)) as batches:
        return next(batches)
