"""Layers whose recurrence is linear, so that all steps can be computed in parallel: LRU, minGRU, minLSTM, RG-LRU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.errors import UserError
from pcls.nn.recurrent.linear import Complex, Form, linear_scan
from pcls.nn.recurrent.products import over_time


class Scan(Protocol):
    """`linear_scan` in a direction, with the inputs of steps that do not count set to zero."""

    def __call__(self, decay: Any, inputs: Any) -> Any:
        """States [time, batch, n]."""


class LinearLayer(nnx.Module):
    """A layer with a linear recurrence, of one direction or of both; `pcls.nn.recurrent.layer.Layer`.

    A state starts from zero, so that it stays zero before the first step that counts; what becomes of it after the last
    one is neither returned nor part of the gradient. The final states are the outputs there.

    Args:
      cell: `LRU`, `MinGRU`, `MinLSTM` or `RGLRU`: makes the weights of a direction from inputs, hidden and rngs, which
        called with x and a `Scan` give outputs [time, batch, hidden].
      inputs, hidden: sizes.
      bidirectional: run from both ends.
      form: of `linear_scan`; None: the fastest.
      dtype: of products and outputs; the recurrence and its gates are float32.
      rngs: of the initial weights.
      options: of the cell.
    """

    def __init__(
        self,
        cell: Callable[..., Any],
        inputs: int,
        hidden: int,
        *,
        bidirectional: bool = False,
        form: Form | None = None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        self.form, self.dtype = form, dtype
        self.forward = cell(inputs, hidden, rngs=rngs, **options)
        self.backward = cell(inputs, hidden, rngs=rngs, **options) if bidirectional else None

    def __call__(self, x: Array, lengths: Array | None = None) -> tuple[Array, Array]:
        """As `Layer` says."""
        mask = None if lengths is None else (jnp.arange(len(x))[:, None] < lengths)[..., None]
        x = _masked(x.astype(self.dtype), mask)
        outputs = _masked(self.forward(x, self._scan(mask, reverse=False)), mask)
        last = _last(outputs, lengths)
        if self.backward is None:
            return outputs, last
        back = _masked(self.backward(x, self._scan(mask, reverse=True)), mask)
        return jnp.concatenate([outputs, back], -1), jnp.concatenate([last, back[0]], -1)

    def _scan(self, mask: Array | None, *, reverse: bool) -> Scan:
        def scan(decay: Any, inputs: Any) -> Any:
            inputs = jax.tree.map(lambda part: _masked(part, mask), inputs)
            return linear_scan(decay, inputs, reverse=reverse, form=self.form)

        return scan


def _masked(values: Array, mask: Array | None) -> Array:
    # where, not multiply: padding may hold NaN.
    return values if mask is None else jnp.where(mask, values, 0)


def _last(outputs: Array, lengths: Array | None) -> Array:
    if lengths is None:
        return outputs[-1]
    # A sequence without a step gets its first output, which is zero.
    index = jnp.maximum(lengths - 1, 0)[None, :, None]
    return jnp.take_along_axis(outputs, index, 0)[0]


class LRU(nnx.Module):
    """One direction of a linear recurrent unit: h_t = lambda h_{t-1} + gamma (B x_t), y_t = Re(C h_t) + D x_t.

    h and lambda = exp(-exp(nu_log) + i exp(theta_log)) are complex; `hidden` is the number of states and of outputs.
    Lambda starts in a ring of the unit disc, which sets how far back the layer sees: 1 / (1 - |lambda|) steps. It is
    linear in x: a nonlinearity must come between two of them. Complex weights are held as real and imaginary part.

    Args:
      inputs, hidden: sizes.
      r_min, r_max: bounds of |lambda|, 0 <= r_min < r_max < 1; by default it sees 10 to 1000 steps.
      max_phase: radians, > 0, by which lambda turns in a step at most; by default a twentieth of a turn, for long
        sequences that change slowly. The publication has 2 pi for short ones.
      rngs: of the initial weights.

    Raises:
      UserError: a bound is outside its range.

    Source: Orvieto et al. 2023.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        r_min: float = 0.9,
        r_max: float = 0.999,
        max_phase: float = math.pi / 10,
        rngs: nnx.Rngs,
    ):
        if not 0 <= r_min < r_max < 1:
            raise UserError(f"r_min {r_min} and r_max {r_max} of an LRU must be 0 <= r_min < r_max < 1")
        if max_phase <= 0:
            raise UserError(f"max_phase {max_phase} of an LRU must be > 0 (radians)")
        uniform = 1 - jax.random.uniform(rngs.params(), (2, hidden), jnp.float32)
        # Uniform over the area of the ring.
        squared = r_min**2 + (r_max**2 - r_min**2) * uniform[0]
        self.nu_log = nnx.Param(jnp.log(-0.5 * jnp.log(squared)))
        self.theta_log = nnx.Param(jnp.log(max_phase * uniform[1]))
        # White noise of variance 1 as input gives states of variance 1.
        self.gamma_log = nnx.Param(0.5 * jnp.log1p(-squared))
        self.b_re = nnx.Param(_normal(rngs, inputs, hidden) / math.sqrt(2))
        self.b_im = nnx.Param(_normal(rngs, inputs, hidden) / math.sqrt(2))
        self.c_re = nnx.Param(_normal(rngs, hidden, hidden))
        self.c_im = nnx.Param(_normal(rngs, hidden, hidden))
        self.d = nnx.Param(_normal(rngs, inputs, hidden))

    def __call__(self, x: Array, scan: Scan) -> Array:
        """Outputs [time, batch, hidden]."""
        gamma = jnp.exp(self.gamma_log[...])
        # A product each: the loop would copy the halves of one (1 feature, 784 steps, 128 rows of 128, forward and back
        # on two CPU cores: 463 ms against 389).
        re, im = scan(self.decay(), tuple(over_time(x, gamma * b[...]).astype(x.dtype) for b in (self.b_re, self.b_im)))
        parts = over_time(re, self.c_re[...]), -over_time(im, self.c_im[...]), over_time(x, self.d[...])
        return sum(parts[1:], parts[0]).astype(x.dtype)

    def decay(self) -> Complex:
        """Lambda, [hidden]."""
        size, phase = jnp.exp(-jnp.exp(self.nu_log[...])), jnp.exp(self.theta_log[...])
        return size * jnp.cos(phase), size * jnp.sin(phase)


def _normal(rngs: nnx.Rngs, inputs: int, outputs: int) -> Array:
    return jax.random.normal(rngs.params(), (inputs, outputs), jnp.float32) / math.sqrt(inputs)


class MinGRU(nnx.Module):
    """One direction of a minimal GRU: h_t = (1 - z_t) h_{t-1} + z_t n_t, both from x_t alone.

    z = sigmoid(x @ kernel + bias), n = x @ kernel + bias; one kernel, in the order z, n.

    Args:
      inputs, hidden: sizes.
      memory: steps, >= 2: gates start so that units remember for 2 to so many steps, evenly over the orders of
        magnitude. By default all biases are zero, as published.
      rngs: of the initial weights.

    Raises:
      UserError: memory below 2.

    Source: Feng et al. 2024; biases from a memory: Tallec & Ollivier 2018.
    """

    def __init__(self, inputs: int, hidden: int, *, memory: float = 2.0, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_glorot(rngs, inputs, 2, hidden))
        odds = _log_odds_of_keeping(rngs, hidden, memory)
        self.bias = nnx.Param(jnp.concatenate([-odds, jnp.zeros(hidden, jnp.float32)]))

    def __call__(self, x: Array, scan: Scan) -> Array:
        """Outputs [time, batch, hidden]."""
        z, new = jnp.split(_project(x, self.kernel[...], self.bias[...]), 2, -1)
        return scan(jax.nn.sigmoid(-z), (jax.nn.sigmoid(z) * new).astype(x.dtype))


class MinLSTM(nnx.Module):
    """One direction of a minimal LSTM: h_t = f'_t h_{t-1} + i'_t n_t, f' = f / (f + i), i' = i / (f + i).

    f and i = sigmoid(x @ kernel + bias), n = x @ kernel + bias; one kernel, in the order f, i, n.

    Args:
      inputs, hidden: sizes.
      memory: as that of `MinGRU`.
      rngs: of the initial weights.

    Raises:
      UserError: memory below 2.

    Source: Feng et al. 2024, with normalised gates; biases from a memory: Tallec & Ollivier 2018.
    """

    def __init__(self, inputs: int, hidden: int, *, memory: float = 2.0, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_glorot(rngs, inputs, 3, hidden))
        # sigmoid(odds) / sigmoid(-odds) = exp(odds).
        odds = _log_odds_of_keeping(rngs, hidden, memory)
        self.bias = nnx.Param(jnp.concatenate([odds, -odds, jnp.zeros(hidden, jnp.float32)]))

    def __call__(self, x: Array, scan: Scan) -> Array:
        """Outputs [time, batch, hidden]."""
        f, i, new = jnp.split(_project(x, self.kernel[...], self.bias[...]), 3, -1)
        # log(f / i): the quotient itself is 0 / 0 where both sigmoids vanish.
        ratio = jax.nn.softplus(-i) - jax.nn.softplus(-f)
        return scan(jax.nn.sigmoid(ratio), (jax.nn.sigmoid(-ratio) * new).astype(x.dtype))


def _glorot(rngs: nnx.Rngs, inputs: int, gates: int, hidden: int) -> Array:
    init = nnx.initializers.glorot_uniform()
    return jnp.concatenate([init(rngs.params(), (inputs, hidden), jnp.float32) for _ in range(gates)], 1)


def _log_odds_of_keeping(rngs: nnx.Rngs, hidden: int, memory: float) -> Array:
    """Of each unit the logarithm of the steps that it remembers, less one."""
    if memory < 2:
        raise UserError(f"memory of a linear recurrence is {memory}; a number of steps >= 2 is needed")
    return jax.random.uniform(rngs.params(), (hidden,), jnp.float32, 0.0, math.log(memory - 1))


def _project(x: Array, kernel: Array, bias: Array) -> Array:
    """[time, batch, inputs] to [time, batch, gates * hidden] float32, all steps in one product."""
    return over_time(x, kernel) + bias


# The c of RG-LRU.
SHARPNESS = 8.0

# Lower bound of 1 - a^2, below which the slope of its root would outgrow everything else.
LEAST_INPUT = 1e-8


class RGLRU(nnx.Module):
    """One direction of a real-gated linear recurrent unit: h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t u_t).

    u = x @ kernel + bias, of `hidden` features; a = exp(-c softplus(decay) r), c = 8; the recurrence gate r and the
    input gate i are sigmoids of u * gate + bias. These gates are diagonal, where the publication has blocks of
    features, so that one product of the state's width reads x.

    Args:
      inputs, hidden: sizes.
      rngs: of the initial weights.

    Source: De et al. 2024 (Griffin).
    """

    def __init__(self, inputs: int, hidden: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_glorot(rngs, inputs, 1, hidden))
        self.bias = nnx.Param(jnp.zeros(hidden, jnp.float32))
        # Recurrence gate, input gate.
        self.gates = nnx.Param(jax.random.normal(rngs.params(), (2, hidden), jnp.float32))
        self.gate_bias = nnx.Param(jnp.zeros((2, hidden), jnp.float32))
        # With an open gate a is uniform in 0.9 to 0.999, as published.
        slowest = jax.random.uniform(rngs.params(), (hidden,), jnp.float32, 0.9, 0.999)
        self.decay = nnx.Param(jnp.log(jnp.expm1(-jnp.log(slowest) / SHARPNESS)))

    def __call__(self, x: Array, scan: Scan) -> Array:
        """Outputs [time, batch, hidden]."""
        u = _project(x, self.kernel[...], self.bias[...])
        r, i = (jax.nn.sigmoid(u * self.gates[...][k] + self.gate_bias[...][k]) for k in range(2))
        log_a = -SHARPNESS * jax.nn.softplus(self.decay[...]) * r
        # expm1: at an a near 1 no digit of 1 - a * a would be right.
        scale = jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_a), LEAST_INPUT))
        return scan(jnp.exp(log_a), (scale * i * u).astype(x.dtype))
