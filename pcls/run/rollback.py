"""Back to a good checkpoint where the numbers of a run are lost, and what is known of how they were lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from pcls.checkpoint.store import CheckpointStore
from pcls.data.pipeline import Workers
from pcls.errors import Diverged
from pcls.parallel.processes import is_main, place
from pcls.run.folder import RunFolder
from pcls.run.setup import Setup
from pcls.training.diagnosis import Diagnosis, diagnosis_of, make_examination
from pcls.training.loop import Trouble
from pcls.training.state import TrainState

ROLLBACKS = "rollbacks.json"
# Records of a batch that are named.
NAMED = 5


@dataclass(frozen=True)
class Rollback:
    """A time that a run went back.

    Attributes:
      since: the first step in trouble.
      back_to: the step whose weights it went on with.
      step: at which it went on: the records of the steps between have had no turn.
      reason: in words.
    """

    since: int
    back_to: int
    step: int
    reason: str


def rollbacks_of(folder: RunFolder) -> list[Rollback]:
    """Those of a run, in their order."""
    return [Rollback(**values) for values in folder.read_json(ROLLBACKS) or []]


class Recovery:
    """Goes back, notes it, and tells what was wrong; so often and no more.

    Args:
      setup, folder, store: of the run.
      say: tells a person.
    """

    def __init__(self, setup: Setup, folder: RunFolder, store: CheckpointStore, say: Callable[[str], None]):
        self._setup = setup
        self._folder = folder
        self._store = store
        self._say = say
        self._done = rollbacks_of(folder)

    def __call__(self, state: TrainState, step: int, trouble: Trouble) -> TrainState:
        """The state of the newest good checkpoint, as one at this step.

        Where a run is in trouble again before any good step, it goes back further.

        Args:
          state: what the run came to; given up.
          step: of it.
          trouble: that it is in.

        Raises:
          Diverged: it has gone back too often, or there is nothing to go back to.
        """
        found = self._examined(state, trouble)
        self._say(f"step {trouble.since:,}: {trouble.reason}; {found}")
        limit = self._setup.recipe.guard.rollbacks
        if len(self._done) >= limit:
            raise self._diverged(trouble, f"the run has gone back {limit} times (guard.rollbacks)", found)
        before = trouble.since
        if self._done and int(state.last_good_step) <= self._done[-1].back_to:
            before = self._done[-1].back_to
        jax.tree.map(lambda leaf: leaf.delete(), state)
        restored = self._store.restore(self._setup.state_shapes, before=before)
        if restored is None:
            raise self._diverged(trouble, f"there is no checkpoint from before step {before:,}", found)
        good, back_to = restored
        self._done.append(Rollback(trouble.since, back_to, step, trouble.reason))
        if is_main():
            self._folder.write_json(ROLLBACKS, [asdict(one) for one in self._done])
        skipped = (step - back_to) * self._setup.plan.batch_size
        self._say(
            f"back to the weights of step {back_to:,}, on with the data of step {step:,}: {skipped:,} "
            f"{self._setup.preprocessing.records} are passed over ({len(self._done)} of {limit} times)"
        )
        moved = jax.jit(
            lambda state: replace(state, step=jnp.int32(step)),
            out_shardings=self._setup.state_shardings,
            donate_argnums=0,
        )
        return moved(good)

    def _diverged(self, trouble: Trouble, why: str, found: str) -> Diverged:
        return Diverged(
            f"{trouble.reason}, from step {trouble.since:,} on, and {why}; {found}; look at it by: pcls replay "
            f"{self._folder.path} {trouble.since}; lower optimizer.lr, lengthen optimizer.warmup, or set "
            "optimizer.clip_norm"
        )

    def _examined(self, state: TrainState, trouble: Trouble) -> str:
        """What was wrong with the first step in trouble, in words; noted in the run's folder."""
        setup = self._setup
        if int(state.last_good_step) >= trouble.since:
            return "the weights before it are gone"
        # Steps that are skipped change nothing: these are the weights that it met.
        began = setup.sizes.began(trouble.since)
        state = replace(state, step=jnp.int32(began))
        diagnosis = examine(setup, state, trouble.since)
        if is_main():
            write_diagnosis(setup, self._folder, diagnosis)
        return diagnosis_text(setup, diagnosis)


def examine(setup: Setup, state: TrainState, step: int) -> Diagnosis:
    """Computes what the step that ends with a number does, from the state before it; the state stays."""
    began = setup.sizes.began(step)
    kind = setup.kind_at(began)
    with setup.batches([began], Workers(0)) as batches:
        batch = place(next(batches), setup.batch_sharding, kind.update.batches * setup.plan.batch_size)
    return diagnosis_of(setup, step, make_examination(setup, kind.phase)(state, batch))


def diagnosis_text(setup: Setup, diagnosis: Diagnosis) -> str:
    """`first bad: gradient of conv1/kernel`, with the records whose losses are not finite, where there are any."""
    if not diagnosis.first_bad:
        return f"computed again, the loss of step {diagnosis.step:,} is {diagnosis.loss:.4g} and all is finite"
    bad = [int(r) for r, loss in zip(diagnosis.records, diagnosis.losses, strict=True) if not np.isfinite(loss)]
    source = setup.dataset.train
    names = ", ".join(source.name(record) for record in bad[:NAMED])
    more = f" and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
    return f"first bad: {diagnosis.first_bad}" + (f" ({names}{more})" if bad else "")


def write_diagnosis(setup: Setup, folder: RunFolder, diagnosis: Diagnosis) -> None:
    """Keeps a diagnosis as `diagnosis-STEP.json`, with the number, name and loss of every record of the batch."""
    source = setup.dataset.train
    rows = [
        {"record": int(record), "name": source.name(int(record)), "loss": json_number(loss)}
        for record, loss in zip(diagnosis.records, diagnosis.losses, strict=True)
        if record >= 0
    ]
    folder.write_json(
        f"diagnosis-{diagnosis.step}.json",
        {
            "step": diagnosis.step,
            "loss": json_number(diagnosis.loss),
            "first_bad": diagnosis.first_bad,
            "bad": list(diagnosis.bad),
            "records": rows,
        },
    )


def json_number(value: float) -> float | str:
    """JSON has no number for what is not finite: `nan`, `inf` or `-inf`."""
    return float(value) if np.isfinite(value) else str(float(value))
