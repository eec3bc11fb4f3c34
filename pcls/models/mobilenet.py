"""MobileNetV3. Source: Howard et al. 2019."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.models.inverted import Inverted, Single, SqueezeExcite, Stage, Style, Trunk, dense_init, plan_of
from pcls.nn.dropout import Dropout
from pcls.nn.pooling import Pool, global_pool, pooled_width
from pcls.nn.remat import named_product
from pcls.nn.training import TrainingPass


class MobileNetV3(Trunk):
    """The trunk, the mean over positions, and only then the last hidden layer; the head.

    Args:
      stem: channels of the first convolution.
      stages: of blocks.
      hidden: features of the last hidden layer.
      style: as `ConvNorm` has it.
      channels, classes: of images and logits.
      pool: over positions.
      dropout: before the head.
      drop_path: stochastic depth of the last block; it rises linearly from 0.
      remat: of each stage's blocks, as `run_block` names it.
      widths: as `plan_of` has it.
      dtype: of the computation.
    """

    def __init__(
        self,
        stem: int,
        stages: Sequence[Stage],
        hidden: int,
        *,
        style: Style = "timm",
        channels: int,
        classes: int,
        pool: Pool = "avg",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        remat: Sequence[str] = (),
        widths: Sequence[int] = (),
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        plan = plan_of(stem, stages, hidden, widths)
        super().__init__(
            plan, "hard_swish", style=style, channels=channels, drop_path=drop_path, remat=remat, dtype=dtype, rngs=rngs
        )
        self.pool = pool
        pooled = pooled_width(plan.blocks[-1].outputs, pool)
        self.hidden = nnx.Linear(pooled, plan.last, kernel_init=dense_init, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout, len(plan.blocks))
        self.head = nnx.Linear(plan.last, classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to [batch, classes] logits."""
        return self.head(self.dropout(self.embed(images, training), training))

    def embed(self, images: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to the input of the head [batch, features], before dropout."""
        return self.pooled(self.features(images, training)[-1])

    def pooled(self, last: Array) -> Array:
        """The map after the last stage to the input of the head [batch, features]."""
        return nnx.hard_swish(named_product(self.hidden(global_pool(last, self.pool))))


def squeeze(inputs: int, between: int) -> Callable[..., SqueezeExcite]:
    """To about a quarter of the channels between a block's convolutions, whatever enters it."""
    return partial(SqueezeExcite, squeezed=_of_eight(between / 4), act="relu", gate="hard_sigmoid")


def _of_eight(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and 90 % of the channels."""
    nearest = max(8, int(channels / 8 + 0.5) * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


_relu = partial(Stage, Inverted, act="relu")
_swish = partial(Stage, Inverted, act="hard_swish")

# Some expansions are the paper's channels over those that enter the block.
LARGE = (
    _relu(16, (1,)),
    _relu(24, (4, 3), stride=2),
    _relu(40, (3,) * 3, size=5, stride=2, squeeze=squeeze),
    _swish(80, (6, 200 / 80, 184 / 80, 184 / 80), stride=2),
    _swish(112, (6, 6), squeeze=squeeze),
    _swish(160, (6,) * 3, size=5, stride=2, squeeze=squeeze),
    Stage(Single, 960, (1,), size=1, act="hard_swish"),
)
SMALL = (
    _relu(16, (1,), stride=2, squeeze=squeeze),
    _relu(24, (72 / 16, 88 / 24), stride=2),
    _swish(40, (96 / 24, 6, 6), size=5, stride=2, squeeze=squeeze),
    _swish(48, (3, 3), size=5, squeeze=squeeze),
    _swish(96, (6,) * 3, size=5, stride=2, squeeze=squeeze),
    Stage(Single, 576, (1,), size=1, act="hard_swish"),
)

mobilenetv3_large_100 = partial(MobileNetV3, 16, LARGE, 1280)
mobilenetv3_small_100 = partial(MobileNetV3, 16, SMALL, 1024)
tf_mobilenetv3_large_100 = partial(mobilenetv3_large_100, style="tensorflow")
tf_mobilenetv3_small_100 = partial(mobilenetv3_small_100, style="tensorflow")
mobilenet_v3_large = partial(mobilenetv3_large_100, style="torchvision")
mobilenet_v3_small = partial(mobilenetv3_small_100, style="torchvision")
