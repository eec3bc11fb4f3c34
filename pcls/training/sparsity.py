"""Weights that become zero in training and stay so: masks that are a part of the optimizer's state.

Source: Zhu & Gupta 2017, for the schedule; Mishra et al. 2021, for two of four.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from pcls.config.optimizer import SparsitySection
from pcls.errors import UserError
from pcls.nn.quantized import is_kernel

EVERY = 100
# Of the run, where the last weight goes.
END = 0.75
# Of so many inputs in a row half are zero.
FOUR = 4


class SparsityState(NamedTuple):
    """What `sparse` keeps.

    Attributes:
      masks: path to array of the parameter's shape, uint8: 1 where it is not held at zero.
      dense: the optimizer's own state.
    """

    masks: dict[str, Any]
    dense: Any


def sparse(
    optimizer: optax.GradientTransformation,
    section: SparsitySection,
    params: Mapping[str, jax.ShapeDtypeStruct],
    starts: Mapping[str, float],
    *,
    epoch_steps: float,
    steps: int,
) -> optax.GradientTransformationExtraArgs:
    """Lets an optimizer move what is not held at zero, and holds more and more.

    The optimizer itself is told nothing of it. A weight that is zero once stays so.

    Args:
      optimizer: over flat parameters.
      section: of the recipe.
      params: path to array or shape.
      starts: path to the first step that moves it; what never learns keeps its numbers.
      epoch_steps: steps of an epoch.
      steps: of the run.

    Raises:
      UserError: it begins after its end, or ends after the run, or there is no kernel for it.
    """
    first, last = _span(section, epoch_steps, steps)
    in_fours, every = section.pattern == "two_of_four", section.every or EVERY
    kernels = [
        path
        for path, leaf in params.items()
        if is_kernel(path, tuple(leaf.shape))
        and starts.get(path, 0) < steps
        and not (in_fours and leaf.shape[-2] % FOUR)
    ]
    if not kernels:
        raise UserError("optimizer.sparsity finds no kernel that learns and has inputs in fours; leave it out")
    update_dense = optax.with_extra_args_support(optimizer).update

    def init(params: optax.Params) -> SparsityState:
        return SparsityState(
            {path: jnp.ones(params[path].shape, jnp.uint8) for path in kernels}, optimizer.init(params)
        )

    def update(
        grads: Mapping[str, Array],
        state: SparsityState,
        params: Mapping[str, Array],
        *,
        step: ArrayLike,
        batches: int = 1,
        **others: Any,
    ) -> tuple[dict[str, Array], SparsityState]:
        """Of the parameters that learn now; the masks of the others stay as they are."""
        updates, dense = update_dense(grads, state.dense, params, step=step, batches=batches, **others)
        before = jnp.asarray(step)
        taken = before + batches
        on_time = taken // every > before // every
        due = (before < last) & (taken > first) & (on_time | (taken >= last))
        share = section.final * (1 - (1 - jnp.clip((taken - first) / (last - first), 0, 1)) ** 3)

        def masked(path: str) -> Array:
            magnitudes = jnp.abs(params[path] + updates[path]) * state.masks[path]
            chosen = _largest_of_fours(magnitudes) if in_fours else _largest(magnitudes, share)
            return chosen.astype(jnp.uint8)

        own = [path for path in updates if path in state.masks]
        masks = jax.lax.cond(due, lambda: {p: masked(p) for p in own}, lambda: {p: state.masks[p] for p in own})
        # Less itself a number is zero, bit for bit.
        held = {path: jnp.where(masks[path] > 0, updates[path], -params[path]) for path in own}
        return {**updates, **held}, SparsityState(state.masks | masks, dense)

    return optax.GradientTransformationExtraArgs(init, update)


def _span(section: SparsitySection, epoch_steps: float, steps: int) -> tuple[int, int]:
    """The steps before which the first weights go, and by which the last are gone."""
    first = section.start.steps(epoch_steps)
    last = max(first + 1, round(END * steps)) if section.end is None else section.end.steps(epoch_steps)
    if section.pattern == "two_of_four":
        last = first + 1
    if not first < last <= steps:
        raise UserError(
            f"optimizer.sparsity goes from step {first:,} to step {last:,}, and the run has {steps:,}; write a "
            "start before the end, and both within the run"
        )
    return first, last


def _largest(magnitudes: Array, share: Array) -> Array:
    """Where the largest numbers are, all but a share; those that are zero already are not among them."""
    gone = jnp.floor(share * magnitudes.size + 0.5).astype(jnp.int32)
    bound = jnp.sort(magnitudes.reshape(-1))[jnp.maximum(gone - 1, 0)]
    return (magnitudes > bound) | (gone == 0)


def _largest_of_fours(magnitudes: Array) -> Array:
    """Where the two largest of each four inputs are; [..., inputs, outputs]."""
    *window, inputs, outputs = magnitudes.shape
    fours = magnitudes.reshape(*window, inputs // FOUR, FOUR, outputs)
    # Twice sorted: the rank of each.
    ranks = jnp.argsort(jnp.argsort(fours, axis=-2), axis=-2)
    return (ranks >= FOUR // 2).reshape(magnitudes.shape)
