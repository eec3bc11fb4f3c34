"""Normalisation layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.nn.training import TrainingPass


class BatchNorm(nnx.Module):
    """Normalises every channel over examples and positions.

    Over which examples the training pass says: the whole batch, whatever the number of devices, or groups of
    consecutive examples, which need no communication where a device holds whole groups. Statistics are float32 whatever
    the compute type.

    A training pass leaves the batch's own mean and unbiased variance (the mean of those of the groups) in `mean` and
    `var`; the training step moves the running ones towards them, once a step whatever the micro-batches.

    Args:
      features: channels.
      eps: added to the variance.
      scale_init: of the scale; 0 makes a residual block start as the identity.

    Source: Ioffe & Szegedy 2015; groups ("ghost batches"): Hoffer et al. 2017.
    """

    def __init__(
        self,
        features: int,
        *,
        eps: float = 1e-5,
        scale_init: nnx.Initializer = nnx.initializers.ones_init(),
        rngs: nnx.Rngs,
    ):
        self.scale = nnx.Param(scale_init(rngs.params(), (features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((features,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, ..., features] to the same shape and type."""
        if training is None:
            return self._normalise(x, self.mean[...], self.var[...])
        if training.group_size is None:
            return self._train(x[None])[0]
        groups = x.reshape(-1, training.group_size, *x.shape[1:])
        return self._train(groups).reshape(x.shape)

    def _train(self, groups: Array) -> Array:
        """[groups, examples, ..., features]."""
        axes = tuple(range(1, groups.ndim - 1))
        mean = jnp.mean(groups, axes, dtype=jnp.float32, keepdims=True)
        var = jnp.mean(jnp.square(groups.astype(jnp.float32) - mean), axes, keepdims=True)
        count = groups[0].size // groups.shape[-1]
        others = tuple(range(groups.ndim - 1))
        self.mean[...] = jnp.mean(mean, others)
        self.var[...] = jnp.mean(var, others) * (count / max(count - 1, 1))
        return self._normalise(groups, mean, var)

    def _normalise(self, x: Array, mean: Array, var: Array) -> Array:
        scale = self.scale[...] * jax.lax.rsqrt(var + self.eps)
        return (x.astype(jnp.float32) * scale + (self.bias[...] - mean * scale)).astype(x.dtype)
