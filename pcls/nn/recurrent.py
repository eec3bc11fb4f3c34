"""Recurrent scans over time."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

Activation = Literal["tanh", "relu"]


def simple_rnn_scan(projected: Array, recurrent: Array, activation: Activation) -> Array:
    """Runs h_t = f(projected_t + h_{t-1} @ recurrent) from h_0 = 0.

    The input projection of all steps is one matmul outside the scan; only `h @ recurrent` stays inside.

    Args:
      projected: [time, batch, hidden], `x @ w + b`.
      recurrent: [hidden, hidden].
      activation: f, `tanh` or `relu`.

    Returns:
      The last hidden state, [batch, hidden].

    Source: Elman 1990.
    """

    f = jnp.tanh if activation == "tanh" else jax.nn.relu

    def step(h: Array, x: Array) -> tuple[Array, None]:
        return f(x + h @ recurrent), None

    return jax.lax.scan(step, jnp.zeros_like(projected[0]), projected)[0]
