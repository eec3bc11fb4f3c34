"""The arithmetic of recurrent cells that run step by step, with gradients by hand.

A cell is a value without arrays, so that it can be a static argument. `step` computes a time step from the input's
projection and the carry; `step_gradient` goes back over it; `weight_gradients` makes those of the weights of all steps
at once, after the scan: one large matrix product instead of one small one in each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

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
    """A recurrence h_t = cell(x_t, h_{t-1}).

    Attributes:
      gates: width of the input's projection, in hidden sizes.
      states: arrays in the carry.
    """

    @property
    def gates(self) -> int: ...

    @property
    def states(self) -> int: ...

    def step(self, projected: Array, weights: Weights, carry: Carry) -> tuple[Carry, Any]:
        """One time step.

        Args:
          projected: [batch, gates * hidden] float32, `x @ kernel + bias`.
          weights: of the recurrence, in the compute type.
          carry: before the step.

        Returns:
          The carry after it, and what the gradient needs beside the carries.
        """

    def step_gradient(
        self, saved: Any, weights: Weights, before: Carry, after: Carry, grads: Carry
    ) -> tuple[Array, Carry]:
        """Back over one time step.

        Args:
          saved, weights, before, after: of the step.
          grads: of the carry after it.

        Returns:
          The gradients of the projection and of the carry before it.
        """

    def weight_gradients(self, saved: Any, hidden: Array, grads: Array) -> Weights:
        """The weights' gradients.

        Args:
          saved: of all steps, [time, ...].
          hidden: states before each step, [time, batch, hidden].
          grads: of the projections, [time, batch, gates * hidden].
        """


@dataclass(frozen=True)
class SimpleRNN:
    """h_t = f(x_t + h_{t-1} @ recurrent). Source: Elman 1990."""

    activation: Activation = "tanh"

    gates = 1
    states = 1

    def step(self, projected: Array, weights: Weights, carry: Carry) -> tuple[Carry, tuple[()]]:
        """As the protocol says."""
        f = jnp.tanh if self.activation == "tanh" else jax.nn.relu
        return (f(projected + product(carry[0], weights[0])),), ()

    def step_gradient(
        self, saved: tuple[()], weights: Weights, before: Carry, after: Carry, grads: Carry
    ) -> tuple[Array, Carry]:
        """As the protocol says."""
        (hidden,) = after
        # Both activations give their slope from their value.
        slope = 1 - hidden * hidden if self.activation == "tanh" else (hidden > 0).astype(hidden.dtype)
        grad = grads[0] * slope
        return grad, (product_back(grad, weights[0]),)

    def weight_gradients(self, saved: tuple[()], hidden: Array, grads: Array) -> Weights:
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
        i, f, g, o = jnp.split(projected + product(hidden, weights[0]), 4, -1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        cell = f * cell + i * g
        return (o * jnp.tanh(cell), cell), jnp.concatenate([i, f, g, o], -1)

    def step_gradient(
        self, saved: Array, weights: Weights, before: Carry, after: Carry, grads: Carry
    ) -> tuple[Array, Carry]:
        """As the protocol says."""
        i, f, g, o = jnp.split(saved.astype(jnp.float32), 4, -1)
        grad_hidden, grad_cell = grads
        squashed = jnp.tanh(after[1])
        grad_cell = grad_cell + grad_hidden * o * (1 - squashed * squashed)
        grad = jnp.concatenate(
            [
                grad_cell * g * i * (1 - i),
                grad_cell * before[1] * f * (1 - f),
                grad_cell * i * (1 - g * g),
                grad_hidden * squashed * o * (1 - o),
            ],
            -1,
        )
        return grad, (product_back(grad, weights[0]), grad_cell * f)

    def weight_gradients(self, saved: Array, hidden: Array, grads: Array) -> Weights:
        """As the protocol says."""
        return (outer(hidden, grads),)


@dataclass(frozen=True)
class GRU:
    """Reset, update and new gate, in this order: h_t = (1 - z) n + z h_{t-1}.

    Attributes:
      reset: where the reset gate works: `after` the recurrent product, n = tanh(x_n + r (h @ recurrent_n + bias)), which
        needs one product a step and is what cuDNN, torch and Keras do; or `before` it, n = tanh(x_n + (r h) @
        recurrent_n), as in the first publication. With `after` the weights are the kernel and that bias [hidden].

    Source: Cho et al. 2014.
    """

    reset: Reset = "after"

    gates = 3
    states = 1

    def step(self, projected: Array, weights: Weights, carry: Carry) -> tuple[Carry, Array]:
        """As the protocol says."""
        raise NotImplementedError

    def step_gradient(
        self, saved: Array, weights: Weights, before: Carry, after: Carry, grads: Carry
    ) -> tuple[Array, Carry]:
        """As the protocol says."""
        raise NotImplementedError

    def weight_gradients(self, saved: Array, hidden: Array, grads: Array) -> Weights:
        """As the protocol says."""
        raise NotImplementedError


def product(hidden: Array, kernel: Array) -> Array:
    """[batch, hidden] float32 by [hidden, n] in the compute type, to float32."""
    return jnp.dot(hidden.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)


def product_back(grad: Array, kernel: Array) -> Array:
    """[batch, n] float32 by the transposed kernel."""
    return jax.lax.dot_general(
        grad.astype(kernel.dtype), kernel, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )


def outer(hidden: Array, grads: Array) -> Array:
    """[time, batch, hidden] and [time, batch, n] to [hidden, n]."""
    return jnp.einsum("tbh,tbg->hg", hidden, grads, preferred_element_type=jnp.float32)
