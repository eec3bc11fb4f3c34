"""Where the randomness of an image comes from."""

from __future__ import annotations

from enum import IntEnum

import jax
from jax import Array


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
