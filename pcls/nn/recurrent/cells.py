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

from pcls.nn.recurrent.products import outer, product

Activation = Literal["tanh", "relu"]
Reset = Literal["after", "before"]

# The states between steps, each [batch, hidden] float32; the first is the hidden state, which is also the output.
Carry = tuple[Array, ...]
# The first is the recurrent kernel [hidden, gates * hidden].
Weights = tuple[Array, ...]
# What a step keeps for its gradient, each [batch, n].
Saved = tuple[Array, ...]


class Cell(Protocol):
    """A recurrence h_t = cell(x_t, h_{t-1})."""

    @property
    def gates(self) -> int:
        """Width of the input's projection, in hidden sizes."""

    @property
    def states(self) -> int:
        """Arrays in the carry."""

    def step(self, projected: Array, weights: Weights, carry: Carry) -> tuple[Carry, Saved]:
        """One time step.

        Args:
          projected: [batch, gates * hidden] float32, `x @ kernel + bias`.
          weights: of the recurrence, in the compute type.
          carry: before the step.

        Returns:
          The carry after it, and what the gradient needs beside the hidden states.
        """

    def step_gradient(self, saved: Saved, weights: Weights, hidden: Array, grads: Carry) -> tuple[Array, Carry]:
        """Back over one time step; all float32 but the weights.

        Args:
          saved, weights: of the step.
          hidden: before it.
          grads: of the carry after it.

        Returns:
          The gradients of the projection and of the carry before it.
        """

    def weight_gradients(self, saved: Saved, hidden: Array, grads: Array) -> Weights:
        """The weights' gradients, float32.

        Args:
          saved: of all steps and examples, [rows, n] each.
          hidden: the hidden states before them, [rows, hidden].
          grads: of the projections, [rows, gates * hidden].
        """


@dataclass(frozen=True)
class SimpleRNN:
    """h_t = f(x_t + h_{t-1} @ recurrent). Source: Elman 1990."""

    activation: Activation = "tanh"

    gates = 1
    states = 1

    def step(self, projected: Array, weights: Weights, carry: Carry) -> tuple[Carry, Saved]:
        """As the protocol says; saved is the slope, which both activations give from their value."""
        z = projected + product(carry[0], weights[0])
        if self.activation == "tanh":
            hidden = jnp.tanh(z)
            return (hidden,), (1 - hidden * hidden,)
        return (jax.nn.relu(z),), ((z > 0).astype(z.dtype),)

    def step_gradient(self, saved: Saved, weights: Weights, hidden: Array, grads: Carry) -> tuple[Array, Carry]:
        """As the protocol says."""
        grad = grads[0] * saved[0]
        return grad, (product(grad, weights[0].T),)

    def weight_gradients(self, saved: Saved, hidden: Array, grads: Array) -> Weights:
        """As the protocol says."""
        return (outer(hidden, grads),)


@dataclass(frozen=True)
class LSTM:
    """Input, forget, cell and output gate, in this order. Source: Hochreiter & Schmidhuber 1997; Gers et al. 2000."""

    gates = 4
    states = 2

    def step(self, projected: Array, weights: Weights, carry: Carry) -> tuple[Carry, Saved]:
        """As the protocol says.

        Saved are the factors by which gradients go back, made here where their parts are at hand: to the gates' inputs
        [batch, 4 * hidden], from the hidden state to the cell, and from the cell to the one before.
        """
        hidden, cell = carry
        half, whole = jnp.full(hidden.shape[-1], 0.5), jnp.ones(hidden.shape[-1])
        # One tanh for all gates, because sigmoid(x) = (1 + tanh(x / 2)) / 2: a third of the time of exp and division.
        z = projected + product(hidden, weights[0])
        i, f, g, o = jnp.split(jnp.tanh(jnp.concatenate([half, half, whole, half]) * z), 4, -1)
        new = _open(f) * cell + _open(i) * g
        squashed = jnp.tanh(new)
        factors = [g * _slope(i), cell * _slope(f), _open(i) * (1 - g * g), squashed * _slope(o)]
        saved = jnp.concatenate(factors, -1), _open(o) * (1 - squashed * squashed), _open(f)
        return (_open(o) * squashed, new), saved

    def step_gradient(self, saved: Saved, weights: Weights, hidden: Array, grads: Carry) -> tuple[Array, Carry]:
        """As the protocol says."""
        to_gates, to_cell, kept = saved
        grad_hidden, grad_cell = grads
        grad_cell = grad_cell + grad_hidden * to_cell
        grad = jnp.concatenate([grad_cell, grad_cell, grad_cell, grad_hidden], -1) * to_gates
        return grad, (product(grad, weights[0].T), grad_cell * kept)

    def weight_gradients(self, saved: Saved, hidden: Array, grads: Array) -> Weights:
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

    def step(self, projected: Array, weights: Weights, carry: Carry) -> tuple[Carry, Saved]:
        """As the protocol says.

        Saved are the reset gate, the factors from the hidden state to the inputs of the new gate, of the update gate
        and to the state before, and from the new gate's input to the reset gate's (with `before`: from r h to it).
        """
        (hidden,) = carry
        size = hidden.shape[-1]
        if self.reset == "after":
            recurrent = product(hidden, weights[0])
            reset, update = jnp.split(jnp.tanh((projected + recurrent)[:, : 2 * size] / 2), 2, -1)
            inner = recurrent[:, 2 * size :] + weights[1].astype(jnp.float32)
            new = jnp.tanh(projected[:, 2 * size :] + _open(reset) * inner)
        else:
            gates = projected[:, : 2 * size] + product(hidden, weights[0][:, : 2 * size])
            reset, update = jnp.split(jnp.tanh(gates / 2), 2, -1)
            inner = hidden
            new = jnp.tanh(projected[:, 2 * size :] + product(_open(reset) * hidden, weights[0][:, 2 * size :]))
        to_new, to_update = (1 - _open(update)) * (1 - new * new), (hidden - new) * _slope(update)
        saved = _open(reset), to_new, to_update, _open(update), inner * _slope(reset)
        return (new + _open(update) * (hidden - new),), saved

    def step_gradient(self, saved: Saved, weights: Weights, hidden: Array, grads: Carry) -> tuple[Array, Carry]:
        """As the protocol says."""
        reset, to_new, to_update, kept, to_reset = saved
        (grad,) = grads
        size = grad.shape[-1]
        new, update = grad * to_new, grad * to_update
        if self.reset == "after":
            gates = jnp.concatenate([new * to_reset, update], -1)
            before = grad * kept + product(jnp.concatenate([gates, new * reset], -1), weights[0].T)
        else:
            scaled = product(new, weights[0][:, 2 * size :].T)
            gates = jnp.concatenate([scaled * to_reset, update], -1)
            before = grad * kept + scaled * reset + product(gates, weights[0][:, : 2 * size].T)
        return jnp.concatenate([gates, new], -1), (before,)

    def weight_gradients(self, saved: Saved, hidden: Array, grads: Array) -> Weights:
        """As the protocol says."""
        size, reset = hidden.shape[-1], saved[0]
        gates, new = grads[:, : 2 * size], grads[:, 2 * size :]
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
