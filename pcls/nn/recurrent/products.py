"""Matrix products over time: [time, batch, features] by [features, features]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def product(rows: Array, kernel: Array) -> Array:
    """[..., n] by [n, m] in the kernel's type, to float32."""
    return jnp.dot(rows.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)


def outer(rows: Array, grads: Array) -> Array:
    """[rows, n] and [rows, m] to [n, m] float32."""
    return jax.lax.dot_general(rows, grads, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def batch_major_rows(array: Array) -> Array:
    """[time, batch, n] to [batch * time, n].

    With the batch outermost the rows of one device stay together when time and batch become one axis.
    """
    steps, batch, width = array.shape
    return array.swapaxes(0, 1).reshape(batch * steps, width)


@jax.custom_vjp
def over_time(x: Array, kernel: Array) -> Array:
    """[time, batch, n] by [n, m] in the type of x, to float32.

    The kernel's gradient is a product over rows. As jax would write it, over both axes, XLA turns its operands around
    first on CPU: 784 steps, batch 64, 64 to 128 features, forward and back take 26 to 33 ms instead of 15.
    """
    return product(x, kernel.astype(x.dtype))


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return over_time(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], grads: Array) -> tuple[Array, Array]:
    x, kernel = saved
    grads = grads.astype(x.dtype)
    of_x = product(grads, kernel.astype(x.dtype).T).astype(x.dtype)
    return of_x, outer(batch_major_rows(x), batch_major_rows(grads)).astype(kernel.dtype)


over_time.defvjp(_forward, _backward)
