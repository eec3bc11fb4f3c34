"""Gradients of a batch: whole or in micro-batches, here or where the loss is sharpest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pcls.nn.module import Arrays
from pcls.nn.platform import target_platform

# (parameters, micro-batch) to (loss, auxiliary sums), all of which add up over micro-batches.
LossFn = Callable[[Arrays, Any], tuple[jax.Array, Any]]
Gradients = Callable[[Arrays, Any], tuple[tuple[jax.Array, Any], Arrays]]


def accumulated(loss_fn: LossFn, count: int, block: int) -> Gradients:
    """Gradients over micro-batches, added up.

    Args:
      loss_fn: of one micro-batch; its value and its auxiliary numbers are sums.
      count: micro-batches; 1: the batch as it is.
      block: consecutive examples that stay together.

    Returns:
      `(params, batch) -> ((loss, auxiliary), gradients)`.
    """
    gradients = jax.value_and_grad(loss_fn, has_aux=True)
    if count == 1:
        return gradients

    def over_micro_batches(params: Arrays, batch: Any) -> tuple[tuple[jax.Array, Any], Arrays]:
        """One after the other; what they give is added up."""
        parts = split_batch(batch, count, block)
        if target_platform() == "cpu":
            # On CPU a loop body has slow convolutions only: ten times the time.
            results = [gradients(params, jax.tree.map(lambda part: part[i], parts)) for i in range(count)]  # noqa: B023
            return jax.tree.map(lambda *values: sum(values[1:], values[0]), *results)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradients(params, part)), None

        shapes = jax.eval_shape(gradients, params, jax.tree.map(lambda part: part[0], parts))
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        return jax.lax.scan(add, zeros, parts)[0]

    return over_micro_batches


def split_batch(batch: Any, count: int, block: int) -> Any:
    """[batch, ...] to [count, batch / count, ...]; every micro-batch takes the same share of every device's rows.

    Args:
      batch: a pytree of arrays.
      count: of micro-batches.
      block: consecutive examples that stay together.
    """

    def split(array: jax.Array) -> jax.Array:
        # Cut as (batch / count, count) and then swapped: cut the other way round, rows would have to change devices.
        blocks = array.reshape(-1, count, block, *array.shape[1:])
        return blocks.swapaxes(0, 1).reshape(count, -1, *array.shape[1:])

    return jax.tree.map(split, batch)


def sharpness_aware(gradients: Gradients, rho: float) -> Gradients:
    """Gradients taken a step of length `rho` uphill; loss and auxiliary numbers are those of the parameters themselves.

    Source: Foret et al. 2021.
    """

    def looked_ahead(params: Arrays, batch: Any) -> tuple[tuple[jax.Array, Any], Arrays]:
        value, grads = gradients(params, batch)
        scale = rho / jnp.maximum(optax.tree.norm(grads), 1e-12)
        uphill = jax.tree.map(lambda param, grad: param + scale * grad, params, grads)
        return value, gradients(uphill, batch)[1]

    return looked_ahead
