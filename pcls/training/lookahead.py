"""Slow weights that follow the optimizer's.

Source: Zhang et al. 2019; with a share that falls over the run: Jordan 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from pcls.config.optimizer import LookaheadSection

# Of the way to the weights that the optimizer reached.
SHARE = 0.5


class LookaheadState(NamedTuple):
    """What `lookahead` keeps.

    Attributes:
      slow: path to slow weight, of those that learn.
      fast: the optimizer's own state.
    """

    slow: dict[str, Any]
    fast: Any


def lookahead(
    optimizer: optax.GradientTransformation, section: LookaheadSection, steps: int, learns: Callable[[str], bool]
) -> optax.GradientTransformationExtraArgs:
    """Lets an optimizer run ahead for some steps, moves slow weights a share of the way, and goes back to them.

    The run ends with the slow weights: what its last, incomplete round did is dropped.

    Args:
      optimizer: over flat parameters.
      section: of the recipe.
      steps: of the run.
      learns: whether a path ever does.
    """
    assert steps > 0
    update_fast = optax.with_extra_args_support(optimizer).update
    share = SHARE if section.share is None else section.share

    def init(params: optax.Params) -> LookaheadState:
        # A copy: one buffer cannot be donated twice.
        slow = {path: jnp.copy(param) for path, param in params.items() if learns(path)}
        return LookaheadState(slow, optimizer.init(params))

    def update(
        grads: Mapping[str, Array],
        state: LookaheadState,
        params: Mapping[str, Array],
        *,
        step: ArrayLike,
        batches: int = 1,
        **others: Any,
    ) -> tuple[dict[str, Array], LookaheadState]:
        """Of the parameters that learn now; the slow weights of the others stay as they are."""
        updates, fast = update_fast(grads, state.fast, params, step=step, batches=batches, **others)
        before = jnp.asarray(step)
        taken = before + batches
        ends_round = taken // section.every > before // section.every
        way = jnp.where(ends_round, 1 - (1 - share) * (taken / steps) ** (section.ramp or 0), 0)
        slow = {
            path: state.slow[path] + way * (params[path] + update - state.slow[path])
            for path, update in updates.items()
        }
        returns = ends_round | (taken >= steps)
        updates = {path: jnp.where(returns, slow[path] - params[path], update) for path, update in updates.items()}
        return updates, LookaheadState(state.slow | slow, fast)

    return optax.GradientTransformationExtraArgs(init, update)
