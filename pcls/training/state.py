"""Everything that training carries from step to step, as one pytree."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pcls.nn.module import Arrays, ModelDef


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state that a checkpoint holds.

    Attributes:
      step: finished steps, int32; also the position in the data.
      params: path to array, float32.
      stats: running statistics, path to array, float32.
      opt_state: optax's.
      ema: averages of params and stats, or None where the recipe asks for none.
      key: [2] uint32, of the augmentation; constant, steps and records are folded in.
      best_top1: best evaluation so far, float32, where records carry several labels its mAP; -1 before the first.
      last_good_step: the last finished step whose loss and gradients were finite, int32.
    """

    step: Array
    params: Arrays
    stats: Arrays
    opt_state: Any
    ema: tuple[Arrays, Arrays] | None
    key: Array
    best_top1: Array
    last_good_step: Array

    @property
    def deliverable(self) -> tuple[Arrays, Arrays]:
        """The parameters and statistics that are evaluated and delivered: the averages where there are any."""
        return self.ema if self.ema is not None else (self.params, self.stats)

    def with_deliverable_stats(self, stats: Arrays) -> TrainState:
        """The state whose evaluated and delivered statistics are these."""
        return replace(self, stats=stats) if self.ema is None else replace(self, ema=(self.ema[0], stats))

    def with_best(self, top1: float) -> TrainState:
        """The state after an evaluation."""
        return replace(self, best_top1=jnp.maximum(self.best_top1, jnp.float32(top1)))


def init_state(model: ModelDef, optimizer: optax.GradientTransformation, seed: int, *, ema: bool) -> TrainState:
    """The state before the first step. Run it under jit with output shardings: every array is born where it lives."""
    params, stats = model.init(jax.random.key(seed))
    return state_of(params, stats, optimizer, seed, ema=ema)


def state_of(
    params: Arrays, stats: Arrays, optimizer: optax.GradientTransformation, seed: int, *, ema: bool
) -> TrainState:
    """The state before the first step, with given weights."""
    return TrainState(
        step=jnp.int32(0),
        params=params,
        stats=stats,
        opt_state=optimizer.init(params),
        # A copy: one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, (params, stats)) if ema else None,
        key=jax.random.key_data(jax.random.key(seed)),
        best_top1=jnp.float32(-1),
        last_good_step=jnp.int32(0),
    )
