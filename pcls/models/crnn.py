"""Convolutions over time and features, then recurrent layers over time: CRNN. Source: Shi et al. 2015."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.models.reading import Reading
from pcls.models.sequence import counting_steps, mean_over_steps
from pcls.nn.conv import Conv
from pcls.nn.dropout import Dropout
from pcls.nn.norm import BatchNorm
from pcls.nn.pooling import max_pool_2x2
from pcls.nn.recurrent import Recurrent
from pcls.nn.training import TrainingPass

# Steps that become one. Features are halved once in each block of the stem; time only here, in the first.
TIME_STRIDE = 2


class StemBlock(nnx.Module):
    """3 x 3 convolution, BatchNorm, ReLU, maximum over pairs of features and, where `strided`, of steps.

    An odd last step or feature makes a pair with nothing.
    """

    def __init__(self, inputs: int, outputs: int, *, strided: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = Conv(inputs, outputs, 3, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(outputs, rngs=rngs)
        self.strided = strided

    def __call__(
        self, x: Array, training: TrainingPass | None = None, lengths: Array | None = None
    ) -> tuple[Array, Array | None]:
        """[batch, steps, features, inputs] and lengths to [batch, ceil(steps / 2 or 1), ceil(features / 2), outputs].

        Steps that do not count are zero before the convolution and after it: as the border is, so that the end of a
        sequence looks the same in any batch.
        """
        mask = None if lengths is None else counting_steps(x.shape[1], lengths)[:, :, None]
        y = nnx.relu(self.norm(self.conv(_where(mask, x)), training, mask))
        # Nothing is below zero after ReLU, so zeros change no maximum.
        y = jnp.pad(_where(mask, y), ((0, 0), (0, y.shape[1] % 2 * self.strided), (0, y.shape[2] % 2), (0, 0)))
        if not self.strided:
            return jnp.maximum(y[:, :, ::2], y[:, :, 1::2]), lengths
        return max_pool_2x2(y), None if lengths is None else -(-lengths // TIME_STRIDE)


def _where(mask: Array | None, x: Array) -> Array:
    return x if mask is None else jnp.where(mask[..., None], x, 0)


class Crnn(nnx.Module):
    """A stem of three convolutions, bidirectional LSTM layers, the mean over time, the head.

    The mean, since what is said or written may stand anywhere: each step's states know both sides of it already.

    Args:
      height, width, channels: of the images; sequences are images of one channel whose rows are steps.
      classes: of the logits.
      read: time runs down the `rows`, or along the `columns` as in a line of text.
      hidden: states of a layer in each direction.
      layers: recurrent ones.
      dropout: between recurrent layers and before the head.
      dtype: of the computation.
      widths: channels of the stem's blocks.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        channels: int,
        classes: int,
        read: Literal["rows", "columns"] = "rows",
        hidden: int = 128,
        layers: int = 2,
        dropout: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        widths: Sequence[int] = (32, 64, 128),
    ):
        self.reading = Reading(read)
        pairs = zip((channels, *widths), widths, strict=False)
        self.stem = nnx.List(
            [
                StemBlock(inputs, outputs, strided=place == 0, dtype=dtype, rngs=rngs)
                for place, (inputs, outputs) in enumerate(pairs)
            ]
        )
        features = -(-(width if read == "rows" else height) // 2 ** len(widths)) * widths[-1]
        self.recurrent = Recurrent(
            "lstm", features, hidden, layers=layers, bidirectional=True, dropout=dropout, dtype=dtype, rngs=rngs
        )
        self.dropout = Dropout(dropout, layers - 1)
        self.head = nnx.Linear(2 * hidden, classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, training: TrainingPass | None = None, lengths: Array | None = None) -> Array:
        """Classifies.

        Args:
          images: [batch, height, width, channels]; of sequences [batch, steps, features, 1].
          training: None when predicting.
          lengths: [batch] int32, steps of sequences that count; None: all do.

        Returns:
          Logits [batch, classes].
        """
        return self.head(self.dropout(self.embed(images, training, lengths), training))

    def embed(self, images: Array, training: TrainingPass | None = None, lengths: Array | None = None) -> Array:
        """The input of the head [batch, features], before dropout; arguments as when called."""
        x = self.reading(images, lengths)
        x = x.reshape(*x.shape[:2], -1, images.shape[-1])
        for block in self.stem:
            x, lengths = block(x, training, lengths)
        outputs, _ = self.recurrent(x.reshape(*x.shape[:2], -1), training, lengths)
        return mean_over_steps(outputs, lengths)
