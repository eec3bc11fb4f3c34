"""A step of a run once more: from the checkpoint before it, on the same records, with a look at what is not finite."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pcls.checkpoint.store import CheckpointStore, steps_in
from pcls.data.pipeline import Workers
from pcls.data.workers import usable_cores
from pcls.errors import UserError
from pcls.parallel.processes import agreed
from pcls.parallel.tuning import tune_process
from pcls.run.evaluate import open_run_data
from pcls.run.folder import RunFolder
from pcls.run.rollback import diagnosis_text, examine, rollbacks_of, write_diagnosis
from pcls.run.setup import Setup, setup_of
from pcls.run.steps import compiled_steps, placed, step_batches
from pcls.run.teachers import with_teacher
from pcls.run.weights import has_first_weights
from pcls.training.diagnosis import Diagnosis
from pcls.training.loop import Hooks, Trouble, train_loop
from pcls.training.state import TrainState

# Records that are shown.
SHOWN = 10


@dataclass(frozen=True)
class Replay:
    """A step that was replayed.

    Attributes:
      diagnosis: of the step.
      began: the checkpoint that it was reached from.
      text: for a person.
    """

    diagnosis: Diagnosis
    began: int
    text: str


def replay_step(path: str | Path, step: int) -> Replay:
    """Trains from the newest checkpoint before a step up to it, and tells what the step computes.

    On the same devices every bit is that of the run. Nothing is written but `diagnosis-STEP.json`.

    Args:
      path: of a run's folder.
      step: counted from 1.

    Raises:
      UserError: there is no such run or step, or no way to it.
    """
    tune_process()
    folder = RunFolder(path)
    recipe = folder.recipe()
    setup = with_teacher(setup_of(recipe, open_run_data(folder, recipe)))
    if not setup.plan.steps:
        raise UserError(f"{folder.path}: no step was trained, and so there is none to replay")
    if not 1 <= step <= setup.plan.steps:
        raise UserError(f"STEP is {step:,}; the steps of {folder.path} are 1 to {setup.plan.steps:,}")
    store = CheckpointStore(folder.checkpoints, warn=_warn, agree=agreed)
    try:
        restored = store.restore(setup.state_shapes, rename=False, before=step)
    finally:
        store.close()
    if restored is None and has_first_weights(setup.recipe):
        left = steps_in(folder.checkpoints)
        those = f"{left[0] + 1:,} to {setup.plan.steps:,}" if left else "none"
        raise UserError(
            f"{folder.path}: no checkpoint from before step {step:,} is left; steps that can be replayed: {those}"
        )
    state, began = restored or (setup.initial_state(), 0)
    for back in rollbacks_of(folder):
        if began < back.step < step:
            raise UserError(
                f"{folder.path}: went back to step {back.back_to:,} at step {back.step:,}, and no checkpoint between "
                f"this and step {step:,} is left; steps up to {back.step:,} can be replayed"
            )
    # An update that takes several steps is replayed as a whole.
    state = _trained(setup, state, setup.sizes.began(step))
    diagnosis = examine(setup, state, step)
    write_diagnosis(setup, folder, diagnosis)
    return Replay(diagnosis, began, replay_text(setup, folder, diagnosis, began))


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


def replay_text(setup: Setup, folder: RunFolder, diagnosis: Diagnosis, began: int) -> str:
    """What was found, and the records with the highest losses."""
    source, records = setup.dataset.train, np.flatnonzero(diagnosis.records >= 0)
    # What is not finite first.
    worst = sorted(
        records, key=lambda row: -diagnosis.losses[row] if math.isfinite(diagnosis.losses[row]) else -math.inf
    )
    lines = [
        f"step {diagnosis.step:,}, reached from step {began:,}: loss {diagnosis.loss:.6g} over {len(records):,} "
        f"{setup.preprocessing.records}",
        diagnosis_text(setup, diagnosis),
        f"{'loss':>12}  record",
        *(f"{diagnosis.losses[row]:12.5g}  {source.name(int(diagnosis.records[row]))}" for row in worst[:SHOWN]),
        f"all of them: {folder.path / f'diagnosis-{diagnosis.step}.json'}",
    ]
    return "\n".join(lines)


def _trained(setup: Setup, state: TrainState, last: int) -> TrainState:
    first = int(state.step)
    plan = replace(setup.plan, steps=last, verify_every=0.0)
    with ExitStack() as at_end:
        batches = at_end.enter_context(step_batches(setup, first, lambda: Workers(usable_cores()), _warn))
        return train_loop(state, compiled_steps(setup, first, at_end), batches, plan, _Placing(setup))[0]


class _Placing(Hooks):
    """Leaves no trace of the steps."""

    def __init__(self, setup: Setup):
        self._setup = setup

    def place(self, batch: Any) -> Any:
        """To the devices."""
        return placed(self._setup, batch)

    def roll_back(self, state: TrainState, step: int, trouble: Trouble) -> TrainState:
        """The run did not come this way further."""
        path = self._setup.recipe.run.dir
        raise UserError(
            f"{path}: in trouble from step {trouble.since:,} on ({trouble.reason}), and what came after it cannot be "
            f"replayed; look at the first: pcls replay {path} {trouble.since}"
        )
