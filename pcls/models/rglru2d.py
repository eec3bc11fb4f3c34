"""Linear recurrences down the columns and along the rows of a picture, in the stages of Sequencer2D."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.models.sequencer import Sequencer2D
from pcls.nn.dropout import Dropout
from pcls.nn.recurrent.linear_layers import RGLRU, LinearLayer
from pcls.nn.remat import named_product
from pcls.nn.training import TrainingPass

_norm = partial(nnx.LayerNorm, epsilon=1e-6)
_linear = partial(nnx.Linear, kernel_init=nnx.initializers.glorot_uniform())


class GatedScans(nnx.Module):
    """RG-LRUs down each column and along each row, both ways; what the four say is gated by the position itself.

    RG-LRU and not LRU: its decay depends on what is seen, so that a scan can forget at an edge, and it is real, so that
    bfloat16 and TPUs serve it well.

    Args:
      width: channels.
      hidden: states of each of the four directions.
      dtype: of the computation.

    Source: De et al. 2024 (Griffin); the axes: Tatsunami & Taki 2022.
    """

    def __init__(self, width: int, hidden: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.vertical = LinearLayer(RGLRU, width, hidden, bidirectional=True, dtype=dtype, rngs=rngs)
        self.horizontal = LinearLayer(RGLRU, width, hidden, bidirectional=True, dtype=dtype, rngs=rngs)
        self.gate = _linear(width, 4 * hidden, dtype=dtype, rngs=rngs)
        self.union = _linear(4 * hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """[batch, height, width, channels] to the same shape."""
        batch, height, width, channels = x.shape
        # The batch stays outside the sequences of an image: those of one device must stay together.
        down, _ = self.vertical(x.transpose(1, 0, 2, 3).reshape(height, batch * width, channels))
        along, _ = self.horizontal(x.transpose(2, 0, 1, 3).reshape(width, batch * height, channels))
        columns = down.reshape(height, batch, width, -1).transpose(1, 0, 2, 3)
        rows = along.reshape(width, batch, height, -1).transpose(1, 2, 0, 3)
        gate = jax.nn.gelu(named_product(self.gate(x)))
        return named_product(self.union(jnp.concatenate([columns, rows], -1) * gate))


class Block(nnx.Module):
    """Normalisation and gated scans, normalisation and gated channels; each beside the identity."""

    def __init__(self, width: int, *, drops: Sequence[Dropout], dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm1 = _norm(width, dtype=dtype, rngs=rngs)
        self.mix = GatedScans(width, width // 4, dtype=dtype, rngs=rngs)
        self.norm2 = _norm(width, dtype=dtype, rngs=rngs)
        # Value and gate, three times as wide each, as in Griffin: what these scans have less in weights than an LSTM.
        self.expand = _linear(width, 6 * width, dtype=dtype, rngs=rngs)
        self.project = _linear(3 * width, width, dtype=dtype, rngs=rngs)
        self.drops = nnx.List(drops)

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to the same shape."""
        x = x + self.drops[0](self.mix(self.norm1(x)), training)
        value, gate = jnp.split(named_product(self.expand(self.norm2(x))), 2, -1)
        return x + self.drops[1](named_product(self.project(value * jax.nn.gelu(gate))), training)


rglru2d_s = partial(Sequencer2D, (4, 3, 8, 3), block=Block)
# For 28 to 64 pixels.
rglru2d_tiny = partial(Sequencer2D, (1, 1, 2, 1), (32, 64, 64, 64), (2, 2, 1, 1), Block)
