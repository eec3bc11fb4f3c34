"""Where the randomness of an image comes from."""

from __future__ import annotations

from enum import IntEnum

import jax
import jax.numpy as jnp
from jax import Array

# In the place of an epoch, of which none has this number.
NO_EPOCH = 2**31 - 1


class Draw(IntEnum):
    """What is folded into an image's key, a number for each thing that is drawn. The step's layers use larger ones."""

    SHIFT = 0
    FLIP = 1
    POLICY = 2
    JITTER = 3
    GREYSCALE = 4
    MIX = 5
    ERASE = 6


def record_keys(key: Array, epochs: Array, records: Array) -> Array:
    """One key an image.

    Args:
      key: of the run.
      epochs, records: [batch] int32.

    Returns:
      [batch] keys.
    """
    return jax.vmap(lambda epoch, record: jax.random.fold_in(jax.random.fold_in(key, epoch), record))(epochs, records)


def alternating(key: Array, epochs: Array, records: Array) -> Array:
    """Which images `augment.flip=alternate` mirrors: half of the records, and in the next epoch the others.

    Two epochs so show each image both ways; drawn anew in each, it would be seen twice the same way half of the time.

    Args:
      key: of the run.
      epochs, records: [batch] int32.

    Returns:
      [batch] bool.

    Source: Jordan 2024.
    """
    fixed = record_keys(key, jnp.full_like(epochs, NO_EPOCH), records)
    return jax.vmap(jax.random.bernoulli)(fixed) ^ (epochs % 2 == 1)
