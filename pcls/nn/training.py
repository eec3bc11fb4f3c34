"""What a training pass through a model carries that a prediction does not."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
from jax import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainingPass:
    """Handed down to every layer; None in its place means prediction.

    Attributes:
      keys: [batch], one random key an example, so that what is dropped for an example depends on neither batch nor
        device; None: nothing is dropped.
      group_size: examples that BatchNorm normalises over together; None: the whole batch.
      group_a_device: whether every device holds exactly one group, or a part of the only one.
    """

    keys: Array | None = None
    group_size: int | None = field(default=None, metadata={"static": True})
    group_a_device: bool = field(default=False, metadata={"static": True})
