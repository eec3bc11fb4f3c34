"""Classifiers that read a picture as a sequence, or a sequence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.models.reading import CUSTOMARY_ORDER, CUSTOMARY_PATCH, Order, Reading
from pcls.nn.dropout import Dropout
from pcls.nn.recurrent import Recurrent
from pcls.nn.recurrent.linear import Form
from pcls.nn.recurrent.linear_layers import LinearLayer, MinGRU, MinLSTM
from pcls.nn.training import TrainingPass


class SequenceClassifier(nnx.Module):
    """Recurrent layers that run step by step, and the head on their last states.

    On the last states, not on a mean over time: gates and orthogonal weights keep what was read, and a loss at the end
    alone is what these cells were published with.

    Args:
      cell: of the step-by-step cells of `LAYERS`.
      height, width, channels: of the images.
      classes: of the logits.
      read: the order of reading.
      patch: height and width of a patch, with `patches`.
      hidden: states of a layer in each direction.
      layers: how many.
      bidirectional: each layer runs from both ends.
      truncate, chunk, form: of the layers (`pcls.nn.recurrent.layer.SequentialLayer`).
      dropout: between layers and before the head.
      dtype: of the computation.
    """

    def __init__(
        self,
        cell: str,
        *,
        height: int,
        width: int,
        channels: int,
        classes: int,
        read: Order = CUSTOMARY_ORDER,
        patch: int = CUSTOMARY_PATCH,
        hidden: int = 128,
        layers: int = 1,
        bidirectional: bool = False,
        truncate: int = 0,
        chunk: int = 0,
        form: Literal["sequential", "cudnn"] | None = None,
        dropout: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.reading = Reading(read, patch)
        self.recurrent = Recurrent(
            cell,
            self.reading.features(height, width, channels),
            hidden,
            layers=layers,
            bidirectional=bidirectional,
            truncate=truncate,
            chunk=chunk,
            form=form,
            dropout=dropout,
            dtype=dtype,
            rngs=rngs,
        )
        self.dropout = Dropout(dropout, layers - 1)
        self.head = nnx.Linear(hidden * (2 if bidirectional else 1), classes, dtype=dtype, rngs=rngs)

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
        _, last = self.recurrent(self.reading(images, lengths), training, lengths)
        return last


class LinearBlock(nnx.Module):
    """Normalisation, a linear recurrence, GELU, a gated linear unit over channels; beside the identity.

    The recurrence is linear in its state, so all that is not linear in time comes from what lies between the layers.

    Source: Orvieto et al. 2023 (LRU); Smith et al. 2023 (S5).
    """

    def __init__(
        self,
        cell: Callable[..., nnx.Module],
        width: int,
        drop: Dropout,
        *,
        bidirectional: bool,
        form: Form | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.layer = LinearLayer(cell, width, width, bidirectional=bidirectional, form=form, dtype=dtype, rngs=rngs)
        self.mix = nnx.Linear(width * (2 if bidirectional else 1), 2 * width, dtype=dtype, rngs=rngs)
        self.drop = drop

    def __call__(self, x: Array, training: TrainingPass | None = None, lengths: Array | None = None) -> Array:
        """[batch, steps, width] to the same shape."""
        outputs, _ = self.layer(self.norm(x).swapaxes(0, 1), lengths)
        outputs = jax.nn.gelu(outputs.swapaxes(0, 1))
        # As rows: the kernel's gradient over two axes takes twice as long on CPU.
        mixed = self.mix(outputs.reshape(-1, outputs.shape[-1])).reshape(*x.shape[:2], -1)
        value, gate = jnp.split(mixed, 2, -1)
        return x + self.drop(value * jax.nn.sigmoid(gate), training)


class LinearSequenceClassifier(nnx.Module):
    """An encoder of steps, a deep stack of linear recurrences, the mean over steps, the head.

    On the mean, not on the last states: a linear state forgets by decay, at each channel's own pace, and through the
    mean every step has a way of its own to the loss. It is also what the sources of the block do.

    Args:
      cell: of `LinearLayer`, such as `LRU`.
      height, width, channels: of the images.
      classes: of the logits.
      read: the order of reading.
      patch: height and width of a patch, with `patches`.
      hidden: channels between the layers, and states of a layer in each direction.
      layers: how many.
      bidirectional: each layer runs from both ends.
      form: of the recurrences; None: the fastest.
      dropout: in each block and before the head.
      dtype: of the computation.
    """

    def __init__(
        self,
        cell: Callable[..., nnx.Module],
        *,
        height: int,
        width: int,
        channels: int,
        classes: int,
        read: Order = CUSTOMARY_ORDER,
        patch: int = CUSTOMARY_PATCH,
        hidden: int = 128,
        layers: int = 4,
        bidirectional: bool = False,
        form: Form | None = None,
        dropout: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.reading = Reading(read, patch)
        features = self.reading.features(height, width, channels)
        if cell in (MinGRU, MinLSTM):
            # As published, with no bias, they forget within two steps; so they remember up to the whole sequence.
            cell = partial(cell, memory=max(2, height * width * channels // features))
        self.encoder = nnx.Linear(features, hidden, dtype=dtype, rngs=rngs)
        drops = [Dropout(dropout, place) for place in range(layers)]
        self.blocks = nnx.List(
            [
                LinearBlock(cell, hidden, drop, bidirectional=bidirectional, form=form, dtype=dtype, rngs=rngs)
                for drop in drops
            ]
        )
        self.norm = nnx.LayerNorm(hidden, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout, layers)
        self.head = nnx.Linear(hidden, classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, training: TrainingPass | None = None, lengths: Array | None = None) -> Array:
        """As `SequenceClassifier`."""
        return self.head(self.dropout(self.embed(images, training, lengths), training))

    def embed(self, images: Array, training: TrainingPass | None = None, lengths: Array | None = None) -> Array:
        """The input of the head [batch, features], before dropout; arguments as when called."""
        x = self.encoder(self.reading(images, lengths))
        for block in self.blocks:
            x = block(x, training, lengths)
        return mean_over_steps(self.norm(x), lengths)


def counting_steps(steps: int, lengths: Array) -> Array:
    """[batch] lengths to [batch, steps] bool: the steps that count."""
    return jnp.arange(steps) < lengths[:, None]


def mean_over_steps(x: Array, lengths: Array | None) -> Array:
    """[batch, steps, features] to the mean over the steps that count [batch, features], summed in float32."""
    if lengths is None:
        return x.mean(1, dtype=jnp.float32).astype(x.dtype)
    counted = jnp.where(counting_steps(x.shape[1], lengths)[..., None], x, 0)
    # A sequence without steps fills up a batch; it has weight 0 and must not be NaN.
    return (counted.sum(1, dtype=jnp.float32) / jnp.maximum(lengths, 1)[:, None]).astype(x.dtype)
