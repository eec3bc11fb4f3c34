"""Recurrent layers and stacks of them, one protocol for all cells."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.errors import UserError
from pcls.nn.dropout import Dropout
from pcls.nn.recurrent.cells import GRU, LSTM, Carry, Cell, SimpleRNN
from pcls.nn.recurrent.cudnn import cudnn_lstm
from pcls.nn.recurrent.linear_layers import LRU, RGLRU, LinearLayer, MinGRU, MinLSTM
from pcls.nn.recurrent.sequential import Scan, Stream, sequential_scan, zero_carry
from pcls.nn.training import TrainingPass


class Layer(Protocol):
    """A recurrent layer, of one direction or of both."""

    def __call__(self, x: Array, lengths: Array | None = None) -> tuple[Array, Array]:
        """Runs over a batch of sequences.

        Args:
          x: [time, batch, inputs].
          lengths: [batch] int32, steps that count; None: all do. Later steps change neither states nor gradients.

        Returns:
          Outputs [time, batch, directions * hidden], zero at steps that do not count, and the final states
          [batch, directions * hidden]: of the forward direction after the last step that counts, of the backward one
          after the first.
        """


class Direction(nnx.Module):
    """The weights of one direction of a sequential layer."""

    def __init__(self, cell: Cell, inputs: int, hidden: int, *, rngs: nnx.Rngs):
        gates = cell.gates
        self.kernel = nnx.Param(nnx.initializers.glorot_uniform()(rngs.params(), (inputs, gates * hidden), jnp.float32))
        self.bias = nnx.Param(_bias(cell, hidden))
        self.recurrent = nnx.Param(_recurrent_start(cell, hidden, rngs.params()))
        reset_after = cell == GRU("after")
        self.reset_bias = nnx.Param(jnp.zeros(hidden, jnp.float32)) if reset_after else None

    def stream(self, x: Array, carry: Carry, mask: Array | None) -> Stream:
        """These weights, in the type of x, over x [time, batch, inputs]."""
        recurrent = (self.recurrent,) if self.reset_bias is None else (self.recurrent, self.reset_bias)
        kernel, bias, *weights = (weight[...].astype(x.dtype) for weight in (self.kernel, self.bias, *recurrent))
        return Stream(x, kernel, bias, tuple(weights), carry, mask)


def _recurrent_start(cell: Cell, hidden: int, key: Array) -> Array:
    """[hidden, gates * hidden], orthogonal for each gate."""
    if cell == SimpleRNN("relu"):
        # It first sums its inputs: long gradients neither vanish nor explode. Source: Le et al. 2015.
        return jnp.eye(hidden)
    draw = nnx.initializers.orthogonal()
    # A loop compiles one decomposition for all gates. Not a batch of them: on CPU it waits for threads of the pool that
    # it runs on, and with several devices in a process it waits for ever.
    gates = jax.lax.map(lambda key: draw(key, (hidden, hidden), jnp.float32), jax.random.split(key, cell.gates))
    return jnp.concatenate(list(gates), 1)


def _bias(cell: Cell, hidden: int) -> Array:
    bias = jnp.zeros(cell.gates * hidden, jnp.float32)
    # The forget gate starts open: what is far back must reach the end to be learned. Source: Jozefowicz et al. 2015.
    return bias.at[hidden : 2 * hidden].set(1.0) if isinstance(cell, LSTM) else bias


class SequentialLayer(nnx.Module):
    """A layer that runs step by step; both directions in one loop.

    Args:
      cell: its arithmetic.
      inputs, hidden: sizes.
      bidirectional: run from both ends.
      truncate, chunk: of the scan (`Scan`).
      form: `sequential`, pcls's scan; `cudnn`, of an LSTM on an NVIDIA GPU (`cudnn_lstm`); None: the scan, until it was
        measured beside cuDNN.
      dtype: of the computation; the carry is float32.
      rngs: of the initial weights.

    Raises:
      UserError: another form, negative steps; cuDNN is asked for another cell, or for truncation or chunks.
    """

    def __init__(
        self,
        cell: Cell,
        inputs: int,
        hidden: int,
        *,
        bidirectional: bool = False,
        truncate: int = 0,
        chunk: int = 0,
        form: Literal["sequential", "cudnn"] | None = None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        if form not in (None, "sequential", "cudnn"):
            raise UserError(f'form of a layer that runs step by step is "{form}"; write one of sequential, cudnn')
        if truncate < 0 or chunk < 0:
            raise UserError(f"truncate is {truncate} and chunk is {chunk}; numbers of steps >= 0 are needed")
        if form == "cudnn" and (cell != LSTM() or truncate or chunk):
            raise UserError(
                "model.form is cudnn, which runs an LSTM only, without model.truncate and model.chunk; "
                "write model.form=sequential, or nothing"
            )
        self.cell, self.hidden, self.dtype, self.form = cell, hidden, dtype, form
        self.truncate, self.chunk = truncate, chunk
        self.forward = Direction(cell, inputs, hidden, rngs=rngs)
        self.backward = Direction(cell, inputs, hidden, rngs=rngs) if bidirectional else None

    def __call__(self, x: Array, lengths: Array | None = None) -> tuple[Array, Array]:
        """As `Layer` says."""
        x = x.astype(self.dtype)
        steps, batch = x.shape[:2]
        mask = None if lengths is None else jnp.arange(steps)[:, None] < lengths
        if mask is not None:
            # What stands in the padding, NaN too, must not meet a zero in a product.
            x = jnp.where(mask[..., None], x, 0)
        directions = [self.forward] if self.backward is None else [self.forward, self.backward]
        carry = zero_carry(self.cell, batch, self.hidden)
        streams = [one.stream(x, carry, mask) for one in directions]
        if self.form == "cudnn":
            return cudnn_lstm(streams, lengths)
        scan = Scan(self.cell, (False, True)[: len(directions)], self.truncate, self.chunk)
        results = sequential_scan(scan, streams)
        outputs = jnp.concatenate([outputs for outputs, _ in results], -1)
        return outputs, jnp.concatenate([carry[0] for _, carry in results], -1).astype(x.dtype)


# Each takes inputs, hidden, bidirectional, form, dtype and rngs; sequential ones truncate and chunk too.
LAYERS: dict[str, Callable[..., Layer]] = {
    "rnn": partial(SequentialLayer, SimpleRNN("tanh")),
    "irnn": partial(SequentialLayer, SimpleRNN("relu")),
    "gru": partial(SequentialLayer, GRU("after")),
    "gru_reset_before": partial(SequentialLayer, GRU("before")),
    "lstm": partial(SequentialLayer, LSTM()),
    "lru": partial(LinearLayer, LRU),
    "mingru": partial(LinearLayer, MinGRU),
    "minlstm": partial(LinearLayer, MinLSTM),
    "rglru": partial(LinearLayer, RGLRU),
}


class Recurrent(nnx.Module):
    """A stack of recurrent layers.

    Args:
      cell: a name of `LAYERS`.
      inputs: features of a step.
      hidden: states of a layer in each direction.
      layers: how many.
      bidirectional: each layer runs from both ends.
      residual: the output of each layer but the first is added to its input.
      normalise: layer normalisation of each layer's input but the first's.
      dropout: share of features dropped between layers.
      place: the number of the first dropping layer (`Dropout`); `layers - 1` of them are used.
      dtype: of the computation.
      rngs: of the initial weights.
      options: of the layers.

    Raises:
      UserError: no such cell, no layer or no state, or an option that is none of what it can be.
    """

    def __init__(
        self,
        cell: str,
        inputs: int,
        hidden: int,
        *,
        layers: int = 1,
        bidirectional: bool = False,
        residual: bool = False,
        normalise: bool = False,
        dropout: float = 0.0,
        place: int = 0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        if cell not in LAYERS:
            raise UserError(f"there is no recurrent cell {cell!r}; known: {', '.join(LAYERS)}")
        if layers < 1 or hidden < 1:
            raise UserError(f"layers is {layers} and hidden is {hidden}; whole numbers >= 1 are needed")
        width = hidden * (2 if bidirectional else 1)
        make = partial(LAYERS[cell], bidirectional=bidirectional, dtype=dtype, rngs=rngs, **options)
        self.layers = nnx.List([make(width if index else inputs, hidden) for index in range(layers)])
        norms = [nnx.LayerNorm(width, dtype=dtype, rngs=rngs) for _ in range(layers - 1)] if normalise else []
        self.norms = nnx.List(norms)
        self.drops = nnx.List([Dropout(dropout, place + index) for index in range(layers - 1)])
        self.residual = residual

    def __call__(
        self, x: Array, training: TrainingPass | None = None, lengths: Array | None = None
    ) -> tuple[Array, Array]:
        """Runs over a batch of sequences.

        Args:
          x: [batch, time, inputs].
          training: None when predicting.
          lengths: [batch] int32, steps that count; None: all do.

        Returns:
          Outputs of the last layer [batch, time, directions * hidden], zero at steps that do not count, and its final
          states [batch, directions * hidden].
        """
        x = x.swapaxes(0, 1)
        outputs, last = self.layers[0](x, lengths)
        for index, layer in enumerate(list(self.layers)[1:]):
            x = self.norms[index](outputs) if self.norms else outputs
            x = self.drops[index](x.swapaxes(0, 1), training).swapaxes(0, 1)
            new, last = layer(x, lengths)
            outputs = outputs + new if self.residual else new
        return outputs.swapaxes(0, 1), last
