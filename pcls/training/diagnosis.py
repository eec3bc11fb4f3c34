"""What in a step is not finite: parameters, the losses of which records, gradients of which parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from pcls.data.pipeline import Batch
from pcls.nn.platform import compiling_for
from pcls.parallel.mesh import replicated
from pcls.training.program import Program
from pcls.training.state import TrainState
from pcls.training.step import without

NORM = "of the gradient"


@dataclass(frozen=True)
class Diagnosis:
    """A step, looked at.

    Attributes:
      step: the number it ends with.
      loss: mean over the batch.
      first_bad: where what is not finite comes from, in words; empty: all is finite.
      bad: the paths of all leaves that are not finite, each with what it is: `gradient of conv1/kernel`.
      records: [batch] int64 record numbers; -1: filled up.
      losses: [batch] float32, of each record.
    """

    step: int
    loss: float
    first_bad: str
    bad: tuple[str, ...]
    records: np.ndarray
    losses: np.ndarray


def make_examination(program: Program, phase: int) -> Callable[[TrainState, Batch], Any]:
    """A compiled pass that computes what a training step does, and changes nothing.

    Args:
      program: of the run.
      phase: of its freezing.

    Returns:
      `(state, batch) -> numbers`, which `diagnosis_of` reads; whole on every device.
    """
    frozen = program.freezing.frozen(phase)
    losses_of, gradients_of = program.losses_of(phase), program.gradients_of(phase)

    def examine(state: TrainState, batch: Batch, *given: Any) -> Any:
        with compiling_for(program.platform):
            learning = without(frozen, state.params)
            losses, _, _ = losses_of(state, learning, batch, *given)
            (loss, sums), grads = gradients_of(state, learning, batch, *given)
        finite = {kind: jax.tree.map(_finite, tree) for kind, tree in _kinds(state, grads).items()}
        # By which the step itself goes: of finite gradients it may still be too large.
        finite["norm"] = {NORM: jnp.isfinite(optax.tree.norm(grads))}
        losses = jnp.where(batch.weight > 0, losses, 0.0)
        return loss / jnp.maximum(sums.weight, 1), losses, batch.record, finite

    whole = replicated(program.mesh)
    compiled = jax.jit(
        examine,
        in_shardings=(program.state_shardings, program.batch_sharding, *(whole for _ in program.given)),
        out_shardings=whole,
    )
    return lambda state, batch: compiled(state, batch, *program.given)


def diagnosis_of(program: Program, step: int, numbers: Any) -> Diagnosis:
    """Reads what an examination found.

    Args:
      program: of the run.
      step: the number that the examined step ends with.
      numbers: of the examination.
    """
    loss, losses, records, finite = jax.device_get(numbers)
    # As the model defines them: compiled programs sort by name.
    order = [*program.model.params, *program.model.stats, NORM]
    bad = {kind: [path for path in order if not tree.get(path, True)] for kind, tree in finite.items()}
    wrong = [int(record) for record, value in zip(records, losses, strict=True) if not np.isfinite(value)]
    return Diagnosis(
        step=step,
        loss=float(loss),
        first_bad=_first_bad(bad, wrong, len(losses)),
        bad=tuple(f"{kind} {path}" for kind, paths in bad.items() for path in paths),
        records=records.astype(np.int64),
        losses=losses,
    )


def _kinds(state: TrainState, grads: dict[str, Array]) -> dict[str, dict[str, Array]]:
    return {"parameter": dict(state.params), "statistic": dict(state.stats), "gradient of": grads}


def _finite(array: Array) -> Array:
    return jnp.isfinite(array).all()


def _first_bad(bad: dict[str, list[str]], wrong: list[int], batch: int) -> str:
    """What comes first on the way of a step: weights, then losses, then gradients, from the last layer down."""
    for kind in ("parameter", "statistic"):
        if bad[kind]:
            return f"{kind} {bad[kind][0]}"
    if wrong:
        return f"the loss of {len(wrong):,} of {batch:,} records"
    if bad["gradient of"]:
        return f"gradient of {bad['gradient of'][-1]}"
    return "the norm of the gradient, too large for float32" if bad["norm"] else ""
