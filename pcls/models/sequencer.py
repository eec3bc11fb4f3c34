"""Sequencer2D: LSTMs down the columns and along the rows of a picture. Source: Tatsunami & Taki 2022."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.nn.conv import Conv
from pcls.nn.dropout import Dropout, stochastic_depth
from pcls.nn.pooling import Pool, global_pool, pooled_width
from pcls.nn.recurrent.cells import LSTM, Carry
from pcls.nn.recurrent.sequential import Scan, Stream, sequential_scan, zero_carry
from pcls.nn.remat import named_product, run_block
from pcls.nn.training import TrainingPass

_norm = partial(nnx.LayerNorm, epsilon=1e-6)
_linear = partial(nnx.Linear, kernel_init=nnx.initializers.glorot_uniform())
_conv = partial(Conv, bias=True, pad=0)


class Direction(nnx.Module):
    """The weights of one direction of an LSTM, with both biases of public weights; they add.

    Args:
      start: [inputs + hidden + 2, 4 * hidden], the initial input kernel, recurrent kernel and biases.
      inputs: size.
    """

    def __init__(self, start: Array, inputs: int):
        self.kernel, self.recurrent = nnx.Param(start[:inputs]), nnx.Param(start[inputs:-2])
        self.bias, self.recurrent_bias = nnx.Param(start[-2]), nnx.Param(start[-1])

    def stream(self, x: Array, carry: Carry) -> Stream:
        """These weights, in the type of x, over x [steps, batch, inputs]."""
        weights = self.kernel[...], self.bias[...] + self.recurrent_bias[...], self.recurrent[...]
        kernel, bias, recurrent = (weight.astype(x.dtype) for weight in weights)
        return Stream(x, kernel, bias, (recurrent,), carry)


class BiLSTM2D(nnx.Module):
    """A bidirectional LSTM down each column, another along each row, and a dense layer over what the four say.

    Args:
      width: channels.
      hidden: states of each of the four directions.
      dtype: of the computation; the carry is float32.
    """

    def __init__(self, width: int, hidden: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        # As published. In one draw: orthogonal starts of all gates took 83 s to compile for Sequencer2D-S.
        start = nnx.initializers.uniform(2 * hidden**-0.5)
        parts = start(rngs.params(), (4, width + hidden + 2, 4 * hidden), jnp.float32) - hidden**-0.5
        directions = [Direction(part, width) for part in parts]
        self.vertical, self.horizontal = nnx.List(directions[:2]), nnx.List(directions[2:])
        self.union = _linear(4 * hidden, width, dtype=dtype, rngs=rngs)
        self.hidden, self.dtype = hidden, dtype

    def __call__(self, x: Array) -> Array:
        """[batch, height, width, channels] to the same shape."""
        x = x.astype(self.dtype)
        down = self._streams(self.vertical, x.transpose(1, 0, 2, 3))
        along = self._streams(self.horizontal, x.transpose(2, 0, 1, 3))
        # In a square both axes have as many steps and as many sequences: one loop for all four directions.
        square = x.shape[1] == x.shape[2]
        down_f, down_b, along_f, along_b = _run(down + along) if square else _run(down) + _run(along)
        height, width = x.shape[1:3]
        columns = [y.reshape(height, -1, width, self.hidden).transpose(1, 0, 2, 3) for y in (down_f, down_b)]
        rows = [y.reshape(width, -1, height, self.hidden).transpose(1, 2, 0, 3) for y in (along_f, along_b)]
        return named_product(self.union(jnp.concatenate(columns + rows, -1)))

    def _streams(self, directions: Sequence[Direction], x: Array) -> list[Stream]:
        """The forward and backward stream over x, [steps, batch, sequences of an image, channels]."""
        # The batch stays outside the sequences of an image: those of one device must stay together.
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        carry = zero_carry(LSTM(), x.shape[1], self.hidden)
        return [one.stream(x, carry) for one in directions]


def _run(streams: list[Stream]) -> list[Array]:
    reverse = (False, True) * (len(streams) // 2)
    return [outputs for outputs, _ in sequential_scan(Scan(LSTM(), reverse), streams)]


class Block(nnx.Module):
    """Normalisation and BiLSTM2D, normalisation and two dense layers over channels; each beside the identity."""

    def __init__(self, width: int, *, drops: Sequence[Dropout], dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm1 = _norm(width, dtype=dtype, rngs=rngs)
        self.mix = BiLSTM2D(width, width // 4, dtype=dtype, rngs=rngs)
        self.norm2 = _norm(width, dtype=dtype, rngs=rngs)
        self.expand = _linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.project = _linear(3 * width, width, dtype=dtype, rngs=rngs)
        self.drops = nnx.List(drops)

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to the same shape."""
        x = x + self.drops[0](self.mix(self.norm1(x)), training)
        # The exact GELU: the tanh form differs by 1e-3, which public weights notice.
        y = jax.nn.gelu(named_product(self.expand(self.norm2(x))), approximate=False)
        return x + self.drops[1](named_product(self.project(y)), training)


class Stage(nnx.Module):
    """Blocks of one width, after a convolution over patches unless `patch` is 0."""

    def __init__(
        self,
        inputs: int,
        width: int,
        patch: int,
        blocks: Sequence[Callable[..., nnx.Module]],
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.downsample = _conv(inputs, width, patch, stride=patch, dtype=dtype, rngs=rngs) if patch else None
        self.blocks = nnx.List([block(width, dtype=dtype, rngs=rngs) for block in blocks])


class Sequencer2D(nnx.Module):
    """A stem of patches, four stages, normalisation, the mean over positions, the head.

    Args:
      depths, widths: blocks and channels of each stage.
      patches: height and width of those of the stem and of the convolution before each other stage.
      block: makes a block from its width and its two dropping layers.
      channels, classes: of images and logits.
      pool: over positions.
      dropout: before the head.
      drop_path: stochastic depth of the last block's two branches; it rises linearly from 0.
      remat: of each stage's blocks, as `run_block` names it.
      dtype: of the computation.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int] = (192, 384, 384, 384),
        patches: Sequence[int] = (7, 2, 1, 1),
        block: Callable[..., nnx.Module] = Block,
        *,
        channels: int,
        classes: int,
        pool: Pool = "avg",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        remat: Sequence[str] = ("none",) * 4,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.stem = _conv(channels, widths[0], patches[0], stride=patches[0], dtype=dtype, rngs=rngs)
        blocks = iter([partial(block, drops=drops) for drops in branch_drops(drop_path, sum(depths))])
        stages, inputs = [], widths[0]
        for width, depth, patch in zip(widths, depths, (0, *patches[1:]), strict=True):
            stages.append(Stage(inputs, width, patch, list(islice(blocks, depth)), dtype=dtype, rngs=rngs))
            inputs = width
        self.stages = nnx.List(stages)
        self.remat = tuple(remat)
        self.norm = _norm(inputs, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout, 2 * sum(depths))
        self.pool = pool
        inputs = pooled_width(inputs, pool)
        # Starts at zero, as published: the first loss is that of a uniform guess.
        self.head = nnx.Linear(inputs, classes, kernel_init=nnx.initializers.zeros_init(), dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to [batch, classes] logits."""
        return self.head(self.dropout(self.embed(images, training), training))

    def embed(self, images: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to the input of the head [batch, features], before dropout."""
        return self.pooled(self.features(images, training)[-1])

    def pooled(self, last: Array) -> Array:
        """The map after the last stage to the input of the head [batch, features]."""
        return global_pool(self.norm(last), self.pool)

    def features(self, images: Array, training: TrainingPass | None = None) -> list[Array]:
        """[batch, height, width, channels] to the map after each stage."""
        x = self.stem(images)
        maps = []
        for stage, remat in zip(self.stages, self.remat, strict=True):
            if stage.downsample is not None:
                x = stage.downsample(x)
            for block in stage.blocks:
                x = run_block(block, x, training, remat)
            maps.append(x)
        return maps


def branch_drops(rate: float, blocks: int) -> list[tuple[Dropout, Dropout]]:
    """What drops the two branches of each block, with `stochastic_depth`'s rates, at the places 0 to 2 * blocks - 1."""
    drops = stochastic_depth(rate, blocks)
    return [
        (Dropout(drop.rate, 2 * drop.place, whole=True), Dropout(drop.rate, 2 * drop.place + 1, whole=True))
        for drop in drops
    ]


sequencer2d_s = partial(Sequencer2D, (4, 3, 8, 3))
sequencer2d_m = partial(Sequencer2D, (4, 3, 14, 3))
sequencer2d_l = partial(Sequencer2D, (8, 8, 16, 4))
