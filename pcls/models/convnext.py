"""ConvNeXt. Source: Liu et al. 2022."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.nn.conv import Conv
from pcls.nn.dropout import Dropout, stochastic_depth
from pcls.nn.pooling import Pool, global_pool, pooled_width
from pcls.nn.remat import named_product, run_block
from pcls.nn.training import TrainingPass

_INIT = nnx.initializers.truncated_normal(0.02)
_norm = partial(nnx.LayerNorm, epsilon=1e-6)
_linear = partial(nnx.Linear, kernel_init=_INIT)
_conv = partial(Conv, bias=True, kernel_init=_INIT)


class Block(nnx.Module):
    """7 x 7 depthwise convolution, normalisation, two dense layers over channels; scaled beside the identity."""

    def __init__(self, width: int, drop: Dropout, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = _conv(width, width, 7, groups=width, dtype=dtype, rngs=rngs)
        self.norm = _norm(width, dtype=dtype, rngs=rngs)
        self.expand = _linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.project = _linear(4 * width, width, dtype=dtype, rngs=rngs)
        self.scale = nnx.Param(jnp.full((width,), 1e-6, jnp.float32))
        self.drop = drop

    def __call__(self, x: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to the same shape."""
        # The exact GELU: the tanh form differs by 1e-3, which public weights notice.
        y = jax.nn.gelu(named_product(self.expand(self.norm(self.conv(x)))), approximate=False)
        y = named_product(self.project(y)) * self.scale[...].astype(x.dtype)
        return x + self.drop(y, training)


class Downsample(nnx.Module):
    """Halves height and width."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = _norm(inputs, dtype=dtype, rngs=rngs)
        self.conv = _conv(inputs, outputs, 2, stride=2, pad=0, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """[batch, height, width, inputs] to [batch, height // 2, width // 2, outputs]."""
        return self.conv(self.norm(x))


class Stage(nnx.Module):
    """Blocks of one width, after a downsampling where the width changes."""

    def __init__(self, inputs: int, width: int, drops: Sequence[Dropout], *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.downsample = Downsample(inputs, width, dtype=dtype, rngs=rngs) if inputs != width else None
        self.blocks = nnx.List([Block(width, drop, dtype=dtype, rngs=rngs) for drop in drops])


class ConvNeXt(nnx.Module):
    """A stem of 4 x 4 patches, four stages, global mean, normalisation, the head.

    Args:
      depths, widths: blocks and channels of each stage.
      channels, classes: of images and logits.
      pool: over positions.
      dropout: before the head.
      drop_path: stochastic depth of the last block; it rises linearly from 0.
      remat: of each stage's blocks, as `run_block` names it.
      dtype: of the computation.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
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
        self.stem = _conv(channels, widths[0], 4, stride=4, pad=0, dtype=dtype, rngs=rngs)
        self.stem_norm = _norm(widths[0], dtype=dtype, rngs=rngs)
        drops = iter(stochastic_depth(drop_path, sum(depths)))
        stages, inputs = [], widths[0]
        for width, depth in zip(widths, depths, strict=True):
            stages.append(Stage(inputs, width, list(islice(drops, depth)), dtype=dtype, rngs=rngs))
            inputs = width
        self.stages = nnx.List(stages)
        self.remat = tuple(remat)
        self.pool = pool
        self.norm = _norm(pooled_width(inputs, pool), dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout, sum(depths))
        self.head = _linear(pooled_width(inputs, pool), classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to [batch, classes] logits."""
        return self.head(self.dropout(self.embed(images, training), training))

    def embed(self, images: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to the input of the head [batch, features], before dropout."""
        return self.pooled(self.features(images, training)[-1])

    def pooled(self, last: Array) -> Array:
        """The map after the last stage to the input of the head [batch, features]."""
        return self.norm(global_pool(last, self.pool))

    def features(self, images: Array, training: TrainingPass | None = None) -> list[Array]:
        """[batch, height, width, channels] to the map after each stage, of 1/4, 1/8, 1/16 and 1/32 of the size."""
        x = self.stem_norm(self.stem(images))
        maps = []
        for stage, remat in zip(self.stages, self.remat, strict=True):
            if stage.downsample is not None:
                x = stage.downsample(x)
            for block in stage.blocks:
                x = run_block(block, x, training, remat)
            maps.append(x)
        return maps


# Those smaller than tiny are from timm, the others as published.
CONVNEXTS = {
    "convnext_atto": partial(ConvNeXt, (2, 2, 6, 2), (40, 80, 160, 320)),
    "convnext_femto": partial(ConvNeXt, (2, 2, 6, 2), (48, 96, 192, 384)),
    "convnext_pico": partial(ConvNeXt, (2, 2, 6, 2), (64, 128, 256, 512)),
    "convnext_nano": partial(ConvNeXt, (2, 2, 8, 2), (80, 160, 320, 640)),
    "convnext_tiny": partial(ConvNeXt, (3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": partial(ConvNeXt, (3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": partial(ConvNeXt, (3, 3, 27, 3), (128, 256, 512, 1024)),
}
