"""Beta and Dirichlet distributions without a loop.

Drawn by rejection, as `jax.random` does, a batch that lies on several devices would make all of them agree after each
round whether one more is needed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import special

# Between them the quantile function is taken as straight: the distribution is off by less than 1 / this.
QUANTILES = 1024


def beta(key: Array, a: float, b: float) -> Array:
    """A number from 0 to 1 of the beta distribution, float32, by its quantile function."""
    table = special.betaincinv(a, b, np.linspace(0, 1, QUANTILES + 1)).astype(np.float32)
    place = jax.random.uniform(key) * QUANTILES
    below = place.astype(jnp.int32)
    start, end = jnp.asarray(table)[below], jnp.asarray(table)[below + 1]
    return start + (end - start) * (place - below)


def dirichlet(key: Array, alpha: float, size: int) -> Array:
    """[size] shares that add up to 1, of the symmetric Dirichlet distribution: each breaks a part off what is left."""
    shares, rest = [], jnp.float32(1)
    for index, part in enumerate(jax.random.split(key, size)[: size - 1]):
        shares.append(rest * beta(part, alpha, alpha * (size - 1 - index)))
        rest = rest - shares[-1]
    return jnp.stack([*shares, rest])
