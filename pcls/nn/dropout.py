"""Layers that drop something for an example, decided by the example's own key."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.nn.training import TrainingPass


def stochastic_depth(rate: float, blocks: int) -> list[Dropout]:
    """What drops the branch of each block of a model; the rate rises linearly from 0 to that of the last block.

    They take the places 0 to blocks - 1. Source: Huang et al. 2016.
    """
    last = max(1, blocks - 1)
    return [Dropout(rate * place / last, place, whole=True) for place in range(blocks)]


class Dropout(nnx.Module):
    """Sets features to zero and scales the others up.

    Args:
      rate: share that is dropped.
      place: a number of its own for every dropping layer of a model: equal ones would drop alike.
      whole: drop an example's features all or none: of a residual branch, this is stochastic depth.

    Source: Srivastava et al. 2014; Huang et al. 2016.
    """

    def __init__(self, rate: float, place: int, *, whole: bool = False):
        self.rate = rate
        self.place = place
        self.whole = whole

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, ...] to the same shape and type; the same values when not training."""
        if training is None or training.keys is None or self.rate == 0:
            return x
        shape = (1,) * (x.ndim - 1) if self.whole else x.shape[1:]

        def kept(key: Array) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(key, self.place), 1 - self.rate, shape)

        return jnp.where(jax.vmap(kept)(training.keys), x / (1 - self.rate), 0).astype(x.dtype)
