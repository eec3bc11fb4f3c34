"""Normalisation layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


class BatchNorm(nnx.Module):
    """Normalises every channel over the global batch and all positions.

    Under jit with a sharded batch the mean is that of all devices, so results do not depend on how many there are.
    Statistics are float32 whatever the compute type. The running variance is the unbiased one, as in public weights.

    Args:
      features: channels.
      momentum: share of the running statistics that a step keeps.
      eps: added to the variance.
      scale_init: of the scale; 0 makes a residual block start as the identity.

    Source: Ioffe & Szegedy 2015.
    """

    def __init__(
        self,
        features: int,
        *,
        momentum: float = 0.9,
        eps: float = 1e-5,
        scale_init: nnx.Initializer = nnx.initializers.ones_init(),
        rngs: nnx.Rngs,
    ):
        self.scale = nnx.Param(scale_init(rngs.params(), (features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((features,), jnp.float32))
        self.momentum = momentum
        self.eps = eps

    def __call__(self, x: Array, *, train: bool) -> Array:
        """[..., features] to the same shape and type; training also moves the running statistics."""
        mean, var = self._batch_statistics(x) if train else (self.mean[...], self.var[...])
        scale = self.scale[...] * jax.lax.rsqrt(var + self.eps)
        return (x.astype(jnp.float32) * scale + (self.bias[...] - mean * scale)).astype(x.dtype)

    def _batch_statistics(self, x: Array) -> tuple[Array, Array]:
        axes = tuple(range(x.ndim - 1))
        count = x.size // x.shape[-1]
        mean = jnp.mean(x, axes, dtype=jnp.float32)
        var = jnp.mean(jnp.square(x.astype(jnp.float32) - mean), axes)
        unbiased = var * (count / max(count - 1, 1))
        self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * mean
        self.var[...] = self.momentum * self.var[...] + (1 - self.momentum) * unbiased
        return mean, var
