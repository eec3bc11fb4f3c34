"""What the backward pass keeps of a block, and what it computes again. Source: Chen et al. 2016."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pcls.nn.training import TrainingPass

# The name that outputs of convolutions and matrix products carry.
PRODUCT = "product"

POLICIES: dict[str, Any] = {
    "products": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "inputs": jax.checkpoint_policies.nothing_saveable,
}


def named_product(x: Array) -> Array:
    """Marks the output of a convolution or matrix product, for the policy that keeps just those."""
    return checkpoint_name(x, PRODUCT)


def run_block(block: Callable[..., Array], x: Array, training: TrainingPass | None, remat: str) -> Array:
    """Runs a block of a model.

    Args:
      block: a module that takes `(x, training)`.
      x: its input.
      training: None when predicting.
      remat: `none`: all that the gradient needs is kept; `products`: outputs of convolutions and matrix products are,
        normalisation and activation are computed again; `inputs`: only the input is, the whole block runs again.
    """
    if remat == "none" or training is None:
        return block(x, training)
    return nnx.remat(_call, policy=POLICIES[remat])(block, x, training)


def _call(block: Callable[..., Array], x: Array, training: TrainingPass) -> Array:
    return block(x, training)
