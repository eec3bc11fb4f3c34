"""A head that looks at directions only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

# Of the cosines, which lie between -1 and 1: large enough for a sure prediction. Source: Cao et al. 2019.
SCALE = 30.0
# Of a squared length: features that are all zero keep a finite gradient.
EPSILON = 1e-12


class CosineHead(nnx.Module):
    """Logits as scaled cosines of the angles between the features and the kernel of each class; no bias.

    Args:
      inputs, outputs: features and classes.
      dtype: of the product; lengths are taken in float32, in which the kernel is kept.

    Source: Wang et al. 2018, NormFace and CosFace; in this use Cao et al. 2019.
    """

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (inputs, outputs), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        """[batch, inputs] to [batch, outputs] logits between -30 and 30."""
        return SCALE * (_unit(x, -1).astype(self.dtype) @ _unit(self.kernel[...], 0).astype(self.dtype))


def _unit(x: Array, axis: int) -> Array:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis, keepdims=True) + EPSILON)
