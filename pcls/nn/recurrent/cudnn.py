"""LSTM layers by cuDNN, through `jax.experimental.rnn`."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import rnn

from pcls.errors import UserError
from pcls.nn.recurrent.sequential import Stream


def cudnn_lstm(streams: Sequence[Stream], lengths: Array | None = None) -> tuple[Array, Array]:
    """Runs one direction, or both, from zero states.

    cuDNN computes in float32, with products in TF32 where jax's matrix precision allows it. XLA cannot divide its
    kernel: over several devices the whole batch is gathered on each.

    Args:
      streams: the forward direction, then the backward one, over the same x [time, batch, inputs]; masks are not used.
      lengths: [batch] int32, steps that count; None: all do.

    Returns:
      As a `Layer`: outputs [time, batch, directions * hidden], final hidden states [batch, directions * hidden].

    Raises:
      UserError: no GPU is at hand, or x is not float32.
    """
    x = streams[0].x
    _check(x)
    steps, batch, inputs = x.shape
    hidden = streams[0].weights[0].shape[0]
    counts = jnp.full(batch, steps, jnp.int32) if lengths is None else lengths.astype(jnp.int32)
    start = jnp.zeros((len(streams), batch, hidden))
    # It knows no empty sequence: such a one runs over one step of zeros, and what comes of it is taken out again.
    outputs, last, _ = rnn.lstm(
        x.swapaxes(0, 1),
        start,
        start,
        flat_weights(streams),
        jnp.maximum(counts, 1),
        inputs,
        hidden,
        num_layers=1,
        dropout=0.0,
        bidirectional=len(streams) == 2,
    )
    counted = (jnp.arange(steps)[:, None] < counts)[..., None]
    outputs = jnp.where(counted, outputs.swapaxes(0, 1), 0)
    last = jnp.where((counts > 0)[:, None], last.swapaxes(0, 1).reshape(batch, -1), 0)
    return outputs, last


def _check(x: Array) -> None:
    if jax.default_backend() != "gpu":
        raise UserError(
            f"model.form is cudnn, which needs an NVIDIA GPU, and jax finds devices of kind {jax.default_backend()}; "
            "write model.form=sequential, or nothing"
        )
    if x.dtype != jnp.float32:
        raise UserError(
            f"model.form is cudnn, which jax offers in float32 only, and train.precision is {x.dtype}; "
            "write model.form=sequential, or train.precision=float32"
        )


def flat_weights(streams: Sequence[Stream]) -> Array:
    """cuDNN's order: the kernels of each direction, [gates * hidden, inputs] and [gates * hidden, hidden], then biases.

    The gates are i, f, g, o, as here. There are two biases, which are added: the second is zero.
    """
    kernels = [kernel.T.ravel() for stream in streams for kernel in (stream.kernel, stream.weights[0])]
    biases = [bias for stream in streams for bias in (stream.bias, jnp.zeros_like(stream.bias))]
    return jnp.concatenate([*kernels, *biases])
