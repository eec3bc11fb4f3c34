"""The arithmetic of recurrent cells that run step by step, with gradients by hand.

A cell is a value without arrays, so that it can be a static argument. `step` computes a time step from the input's
projection and the carry; `step_gradient` goes back over it; `weight_gradients` makes those of the weights of all steps
at once, after the scan: one large matrix product instead of one small one in each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from jax import Array

Activation = Literal["tanh", "relu"]
Reset = Literal["after", "before"]

# The states between steps, each [batch, hidden] float32; the first is the hidden state, which is also the output.
Carry = tuple[Array, ...]
# The first is the recurrent kernel [hidden, gates * hidden].
Weights = tuple[Array, ...]


class Cell(Protocol):
    """A recurrence h_t = cell(x_t, h_{t-1})."""

    @property
    def gates(self) -> int:
        """Width of the input's projection, in hidden sizes."""

    @property
    def states(self) -> int:
        """Arrays in the carry."""

    def step(self, projected: Array, weights: Weights, carry: Carry) -> tuple[Carry, Array]:
        """One time step.

        Args:
          projected: [batch, gates * hidden] float32, `x @ kernel + bias`.
          weights: of the recurrence, in the compute type.
          carry: before the step.

        Returns:
          The carry after it, and what the gradient needs beside the carries: [batch, n].
        """

    def step_gradient(
        self, saved: Array, weights: Weights, before: Carry, after: Carry, grads: Carry
    ) -> tuple[Array, Carry]:
        """Back over one time step; all float32 but the weights.

        Args:
          saved, weights, before, after: of the step.
          grads: of the carry after it.

        Returns:
          The gradients of the projection and of the carry before it.
        """

    def weight_gradients(self, saved: Array, hidden: Array, grads: Array) -> Weights:
        """The weights' gradients, float32.

        Args:
          saved: of all steps and examples, [rows, n].
          hidden: the hidden states before them, [rows, hidden].
          grads: of the projections, [rows, gates * hidden].
        """


@dataclass(frozen=True)
class SimpleRNN:
    """h_t = f(x_t + h_{t-1} @ recurrent). Source: Elman 1990."""

    activation: Activation = "tanh"

    gates = 1
    states = 1

    def step(self, projected: Array, weights: Weights, carry: Carry) -> tuple[Carry, Array]:
        """As the protocol says."""
        f = jnp.tanh if self.activation == "tanh" else jax.nn.relu
        hidden = f(projected + product(carry[0], weights[0]))
        return (hidden,), hidden[:, :0]

    def step_gradient(
        self, saved: Array, weights: Weights, before: Carry, after: Carry, grads: Carry
    ) -> tuple[Array, Carry]:
        """As the protocol says."""
        (hidden,) = after
        # Both activations give their slope from their value.
        slope = 1 - hidden * hidden if self.activation == "tanh" else (hidden > 0).astype(hidden.dtype)
        grad = grads[0] * slope
        return grad, (product(grad, weights[0].T),)

    def weight_gradients(self, saved: Array, hidden: Array, grads: Array) -> Weights:
        """As the protocol says."""
        return (outer(hidden, grads),)


@dataclass(frozen=True)
class LSTM:
    """Input, forget, cell and output gate, in this order. Source: Hochreiter & Schmidhuber 1997; Gers et al. 2000."""

    gates = 4
    states = 2

    def step(self, projected: Array, weights: Weights, carry: Carry) -> tuple[Carry, Array]:
        """As the protocol says."""
        hidden, cell = carry
        size = hidden.shape[-1]
        # One tanh for all gates, because sigmoid(x) = (1 + tanh(x / 2)) / 2: a third of the time of exp and division.
        half, whole = jnp.full(size, 0.5), jnp.ones(size)
        scale = jnp.concatenate([half, half, whole, half])
        saved = jnp.tanh(scale * (projected + product(hidden, weights[0])))
        i, f, g, o = jnp.split(saved, 4, -1)
        cell = _open(f) * cell + _open(i) * g
        return (_open(o) * jnp.tanh(cell), cell), saved

    def step_gradient(
        self, saved: Array, weights: Weights, before: Carry, after: Carry, grads: Carry
    ) -> tuple[Array, Carry]:
        """As the protocol says."""
        i, f, g, o = jnp.split(saved, 4, -1)
        grad_hidden, grad_cell = grads
        squashed = jnp.tanh(after[1])
        grad_cell = grad_cell + grad_hidden * _open(o) * (1 - squashed * squashed)
        grad = jnp.concatenate(
            [
                grad_cell * g * _slope(i),
                grad_cell * before[1] * _slope(f),
                grad_cell * _open(i) * (1 - g * g),
                grad_hidden * squashed * _slope(o),
            ],
            -1,
        )
        return grad, (product(grad, weights[0].T), grad_cell * _open(f))

    def weight_gradients(self, saved: Array, hidden: Array, grads: Array) -> Weights:
        """As the protocol says."""
        return (outer(hidden, grads),)


@dataclass(frozen=True)
class GRU:
    """Reset, update and new gate, in this order: h_t = (1 - z) n + z h_{t-1}.

    Attributes:
      reset: where the reset gate works: `after` the recurrent product, n = tanh(x_n + r (h @ recurrent_n + bias)),
        which needs one product a step and is what cuDNN, torch and Keras do; or `before` it, n = tanh(x_n + (r h) @
        recurrent_n), as in the first publication. With `after` the weights are the kernel and that bias [hidden].

    Source: Cho et al. 2014.
    """

    reset: Reset = "after"

    gates = 3
    states = 1

    def step(self, projected: Array, weights: Weights, carry: Carry) -> tuple[Carry, Array]:
        """As the protocol says; saved are the gates' tanh, and with `after` what the reset gate is multiplied with."""
        (hidden,) = carry
        size = hidden.shape[-1]
        if self.reset == "after":
            recurrent = product(hidden, weights[0])
            reset, update = jnp.split(jnp.tanh((projected + recurrent)[:, : 2 * size] / 2), 2, -1)
            inner = recurrent[:, 2 * size :] + weights[1].astype(jnp.float32)
            new = jnp.tanh(projected[:, 2 * size :] + _open(reset) * inner)
            saved = [reset, update, new, inner]
        else:
            gates = projected[:, : 2 * size] + product(hidden, weights[0][:, : 2 * size])
            reset, update = jnp.split(jnp.tanh(gates / 2), 2, -1)
            new = jnp.tanh(projected[:, 2 * size :] + product(_open(reset) * hidden, weights[0][:, 2 * size :]))
            saved = [reset, update, new]
        return (new + _open(update) * (hidden - new),), jnp.concatenate(saved, -1)

    def step_gradient(
        self, saved: Array, weights: Weights, before: Carry, after: Carry, grads: Carry
    ) -> tuple[Array, Carry]:
        """As the protocol says."""
        (hidden,), (grad_hidden,) = before, grads
        size = hidden.shape[-1]
        reset, update, new, *inner = jnp.split(saved, saved.shape[-1] // size, -1)
        grad_new = grad_hidden * (1 - _open(update)) * (1 - new * new)
        grad_update = grad_hidden * (hidden - new) * _slope(update)
        kept = grad_hidden * _open(update)
        if self.reset == "after":
            grad_reset = grad_new * inner[0] * _slope(reset)
            back = jnp.concatenate([grad_reset, grad_update, grad_new * _open(reset)], -1)
            before_grad = kept + product(back, weights[0].T)
        else:
            grad_scaled = product(grad_new, weights[0][:, 2 * size :].T)
            grad_reset = grad_scaled * hidden * _slope(reset)
            gates = jnp.concatenate([grad_reset, grad_update], -1)
            before_grad = kept + grad_scaled * _open(reset) + product(gates, weights[0][:, : 2 * size].T)
        return jnp.concatenate([grad_reset, grad_update, grad_new], -1), (before_grad,)

    def weight_gradients(self, saved: Array, hidden: Array, grads: Array) -> Weights:
        """As the protocol says."""
        size = hidden.shape[-1]
        reset, gates, new = _open(saved[:, :size]), grads[:, : 2 * size], grads[:, 2 * size :]
        if self.reset == "before":
            return (jnp.concatenate([outer(hidden, gates), outer(reset * hidden, new)], -1),)
        inner = new * reset
        return outer(hidden, jnp.concatenate([gates, inner], -1)), jnp.sum(inner, 0, dtype=jnp.float32)


def _open(tanh: Array) -> Array:
    """sigmoid(x) from tanh(x / 2)."""
    return 0.5 * tanh + 0.5


def _slope(tanh: Array) -> Array:
    """The derivative of sigmoid at x, from tanh(x / 2)."""
    return 0.25 * (1 - tanh * tanh)


def product(hidden: Array, kernel: Array) -> Array:
    """[batch, n] float32 by [n, m] in the compute type, to float32."""
    return jnp.dot(hidden.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)


def outer(rows: Array, grads: Array) -> Array:
    """[rows, n] and [rows, m] to [n, m] float32."""
    return jax.lax.dot_general(rows, grads, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
