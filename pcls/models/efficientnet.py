"""EfficientNet. Source: Tan & Le 2019; version 2: Tan & Le 2021."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax import Array

from pcls.models.inverted import ConvNorm, Fused, Inverted, Single, SqueezeExcite, Stage, Style, Trunk, plan_of
from pcls.nn.dropout import Dropout
from pcls.nn.pooling import Pool, global_pool, pooled_width
from pcls.nn.training import TrainingPass


class EfficientNet(Trunk):
    """The trunk, a 1 x 1 convolution, the mean over positions, the head.

    Args:
      stem: channels of the first convolution.
      stages: of blocks.
      width: channels of the last convolution.
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
        width: int,
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
        plan = plan_of(stem, stages, width, widths)
        super().__init__(
            plan, "silu", style=style, channels=channels, drop_path=drop_path, remat=remat, dtype=dtype, rngs=rngs
        )
        self.last = ConvNorm(plan.blocks[-1].outputs, plan.last, 1, act="silu", style=style, dtype=dtype, rngs=rngs)
        self.pool = pool
        self.dropout = Dropout(dropout, len(plan.blocks))
        self.head = nnx.Linear(pooled_width(plan.last, pool), classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to [batch, classes] logits."""
        return self.head(self.dropout(self.embed(images, training), training))

    def embed(self, images: Array, training: TrainingPass | None = None) -> Array:
        """[batch, height, width, channels] to the input of the head [batch, features], before dropout."""
        return self.pooled(self.features(images, training)[-1], training)

    def pooled(self, last: Array, training: TrainingPass | None = None) -> Array:
        """The map after the last stage to the input of the head [batch, features]."""
        return global_pool(self.last(last, training), self.pool)


def squeeze(inputs: int, between: int) -> Callable[..., SqueezeExcite]:
    """To a quarter of what enters the block, however much it expands."""
    return partial(SqueezeExcite, squeezed=inputs // 4, act="silu", gate="sigmoid")


_inverted = partial(Stage, Inverted, squeeze=squeeze)

B0 = (
    _inverted(16, (1,)),
    _inverted(24, (6,) * 2, stride=2),
    _inverted(40, (6,) * 2, size=5, stride=2),
    _inverted(80, (6,) * 3, stride=2),
    _inverted(112, (6,) * 3, size=5),
    _inverted(192, (6,) * 4, size=5, stride=2),
    _inverted(320, (6,)),
)
V2_S = (
    Stage(Single, 24, (1,) * 2),
    Stage(Fused, 48, (4,) * 4, stride=2),
    Stage(Fused, 64, (4,) * 4, stride=2),
    _inverted(128, (4,) * 6, stride=2),
    _inverted(160, (6,) * 9),
    _inverted(256, (6,) * 15, stride=2),
)
# timm's, made from the paper before its code was public.
V2_RW_S = (Stage(Fused, 24, (1,) * 2), *V2_S[1:-1], _inverted(272, (6,) * 15, stride=2))

efficientnet_b0 = partial(EfficientNet, 32, B0, 1280)
efficientnetv2_s = partial(EfficientNet, 24, V2_S, 1280)
efficientnetv2_rw_s = partial(EfficientNet, 24, V2_RW_S, 1792)
tf_efficientnet_b0 = partial(efficientnet_b0, style="tensorflow")
tf_efficientnetv2_s = partial(efficientnetv2_s, style="tensorflow")
efficientnet_v2_s = partial(efficientnetv2_s, style="torchvision")
