"""Policies: which operations an image gets, and how strong."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pcls.config.policy import AugMix, Policy, RandAugment, TrivialAugment
from pcls.data.augment.colour import blended, grey_levels
from pcls.data.augment.distributions import beta, dirichlet
from pcls.data.augment.keys import Draw
from pcls.data.augment.operations import Op, Operation, applied

# From a level (0: none, 1: the full range) and a sign, both [n], to the arguments of an operation.
Strength = Callable[[Array, Array], Array]

# How often each is drawn with `tweights`; of RandAugment without it all are as likely.
RAND_WEIGHTS: dict[Op, float] = {
    Op.AUTO_CONTRAST: 0.25,
    Op.EQUALIZE: 0.05,
    Op.INVERT: 0.05,
    Op.ROTATE: 3.0,
    Op.POSTERIZE: 0.05,
    Op.SOLARIZE: 0.05,
    Op.SOLARIZE_ADD: 0.05,
    Op.COLOR: 0.25,
    Op.CONTRAST: 0.05,
    Op.BRIGHTNESS: 0.05,
    Op.SHARPNESS: 0.25,
    Op.SHEAR_X: 2.0,
    Op.SHEAR_Y: 2.0,
    Op.TRANSLATE_X: 1.0,
    Op.TRANSLATE_Y: 1.0,
}
RAND_OPS = tuple(RAND_WEIGHTS)
AUGMIX_OPS = tuple(op for op in RAND_OPS if op not in (Op.INVERT, Op.SOLARIZE_ADD))
TRIVIAL_OPS = (Op.IDENTITY, *AUGMIX_OPS)

# Shares of the image's size that a level of 1 moves it by.
RAND_TRANSLATION, AUGMIX_TRANSLATION = 0.45, 0.3
MAGNITUDE_OF_LEVEL_1 = 10
AUGMIX_DEPTHS = 3
TRIVIAL_LEVELS = 31


def changed(image: Array, key: Array, policy: Policy, fill: Array) -> Array:
    """An image as a policy changes it.

    Args:
      image: [height, width, channels] uint8.
      key: of the image.
      policy: of the recipe.
      fill: [channels] uint8, what geometric operations bring in.
    """
    key = jax.random.fold_in(key, Draw.POLICY)
    height, width, _ = image.shape
    if isinstance(policy, AugMix):
        return mixture_of_chains(image, key, policy, fill)
    if isinstance(policy, TrivialAugment):
        return applied(image, trivial_operation(key), fill)
    return one_after_the_other(image, rand_operations(key, policy, height, width), fill)


def one_after_the_other(image: Array, operations: Operation, fill: Array) -> Array:
    """The image after all operations, [layers]. A loop: the compiler sees one of them."""
    return jax.lax.scan(lambda image, one: (applied(image, one, fill), None), image, operations)[0]


def rand_operations(key: Array, policy: RandAugment, height: int, width: int) -> Operation:
    """The operations of RandAugment for one image, [layers]; what is not applied is the identity."""
    choose, apply, strength, sign = jax.random.split(key, 4)
    count = (policy.layers,)
    if policy.weighted:
        # Gumbel's trick. Sorted, not `jax.random.choice`, whose top_k would gather the batch from all devices.
        scores = jnp.log(jnp.array(list(RAND_WEIGHTS.values()))) + jax.random.gumbel(choose, (len(RAND_OPS),))
        choice = jnp.argsort(-scores)[: policy.layers]
    else:
        choice = jax.random.randint(choose, count, 0, len(RAND_OPS))
    strengths = timm_strengths(
        increasing=policy.increasing or policy.weighted,
        across=RAND_TRANSLATION * width,
        along=RAND_TRANSLATION * height,
    )
    magnitude = drawn_magnitude(strength, policy.magnitude, policy.deviation, policy.limit, count)
    operation = strong(sign, RAND_OPS, choice, magnitude / MAGNITUDE_OF_LEVEL_1, strengths)
    is_applied = jax.random.bernoulli(apply, policy.probability, count)
    return operation._replace(op=jnp.where(is_applied, operation.op, Op.IDENTITY))


def trivial_operation(key: Array) -> Operation:
    """The operation of TrivialAugmentWide for one image."""
    choose, strength, sign = jax.random.split(key, 3)
    choice = jax.random.randint(choose, (1,), 0, len(TRIVIAL_OPS))
    level = jax.random.randint(strength, (1,), 0, TRIVIAL_LEVELS) / (TRIVIAL_LEVELS - 1)
    operation = strong(sign, TRIVIAL_OPS, choice, level, trivial_strengths())
    return Operation(operation.op[0], operation.argument[0])


def augmix_operations(key: Array, policy: AugMix, height: int, width: int) -> Operation:
    """The operations of AugMix for one image, [width of the mixture, depth]."""
    choose, deepen, strength, sign = jax.random.split(key, 4)
    shape = (policy.width, policy.depth or AUGMIX_DEPTHS)
    count = (math.prod(shape),)
    choice = jax.random.randint(choose, count, 0, len(AUGMIX_OPS))
    strengths = timm_strengths(increasing=True, across=AUGMIX_TRANSLATION * width, along=AUGMIX_TRANSLATION * height)
    magnitude = drawn_magnitude(strength, policy.magnitude, policy.deviation, MAGNITUDE_OF_LEVEL_1, count)
    drawn = strong(sign, AUGMIX_OPS, choice, magnitude / MAGNITUDE_OF_LEVEL_1, strengths)
    operations = Operation(drawn.op.reshape(shape), drawn.argument.reshape(shape))
    if policy.depth:
        return operations
    depth = jax.random.randint(deepen, (policy.width, 1), 1, AUGMIX_DEPTHS + 1)
    return operations._replace(op=jnp.where(jnp.arange(AUGMIX_DEPTHS) < depth, operations.op, Op.IDENTITY))


def mixture_of_chains(image: Array, key: Array, policy: AugMix, fill: Array) -> Array:
    """The image blended with a mean over chains of operations, all with drawn shares."""
    draw, share, blend = jax.random.split(key, 3)
    operations = augmix_operations(draw, policy, image.shape[0], image.shape[1])
    chains = jax.vmap(one_after_the_other, in_axes=(None, 0, None))(image, operations, fill).astype(jnp.float32)
    shares = dirichlet(share, policy.alpha, policy.width)
    # Rounded: shares add up to a little less than 1 as often as not, and a cut would then take a whole level away.
    mixed = grey_levels(jnp.sum(shares[:, None, None, None] * chains, 0) + 0.5)
    return blended(image, mixed, beta(blend, policy.alpha, policy.alpha))


def drawn_magnitude(key: Array, mean: float, deviation: float, limit: float, shape: tuple[int, ...]) -> Array:
    """Strengths around a mean, or uniform below it, within 0 and the limit."""
    if math.isinf(deviation):
        magnitude = mean * jax.random.uniform(key, shape)
    else:
        magnitude = mean + deviation * jax.random.normal(key, shape)
    return jnp.clip(magnitude, 0, limit)


def strong(key: Array, ops: tuple[Op, ...], choice: Array, level: Array, strengths: dict[Op, Strength]) -> Operation:
    """Chosen operations with their arguments, the sign of each drawn.

    Args:
      key: of the signs.
      ops: to choose from.
      choice: [n], places in `ops`.
      level: [n].
      strengths: of operations that have an argument.
    """
    sign = jax.random.rademacher(key, choice.shape, jnp.float32)
    # All of them, for they are few numbers an image.
    arguments = jnp.stack([strengths[op](level, sign) if op in strengths else 0 * level for op in ops])
    return Operation(jnp.array(ops)[choice], jnp.take_along_axis(arguments, choice[None], 0)[0])


def timm_strengths(*, increasing: bool, across: float, along: float) -> dict[Op, Strength]:
    """timm's arguments of RandAugment and AugMix.

    Args:
      increasing: whether a higher level always changes an image more.
      across, along: pixels by which a level of 1 moves it.
    """

    def factor(level: Array, sign: Array) -> Array:
        return jnp.maximum(0.1, 1 + 0.9 * sign * level) if increasing else 0.1 + 1.8 * level

    def posterize(level: Array, sign: Array) -> Array:
        return jnp.maximum(0, 4 - whole(4 * level)) if increasing else whole(4 * level)

    def solarize(level: Array, sign: Array) -> Array:
        threshold = jnp.minimum(256, whole(256 * level))
        return 256 - threshold if increasing else threshold

    return {
        **dict.fromkeys((Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS), factor),
        Op.POSTERIZE: posterize,
        Op.SOLARIZE: solarize,
        Op.SOLARIZE_ADD: lambda level, sign: jnp.minimum(128, whole(110 * level)),
        Op.ROTATE: lambda level, sign: 30 * sign * level,
        Op.SHEAR_X: lambda level, sign: 0.3 * sign * level,
        Op.SHEAR_Y: lambda level, sign: 0.3 * sign * level,
        Op.TRANSLATE_X: lambda level, sign: across * sign * level,
        Op.TRANSLATE_Y: lambda level, sign: along * sign * level,
    }


def trivial_strengths() -> dict[Op, Strength]:
    """The wide ranges of TrivialAugment."""

    def factor(level: Array, sign: Array) -> Array:
        return 1 + 0.99 * sign * level

    return {
        **dict.fromkeys((Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS), factor),
        Op.POSTERIZE: lambda level, sign: 8 - jnp.round(6 * level),
        Op.SOLARIZE: lambda level, sign: 255 - 255 * level,
        Op.ROTATE: lambda level, sign: 135 * sign * level,
        Op.SHEAR_X: lambda level, sign: 0.99 * sign * level,
        Op.SHEAR_Y: lambda level, sign: 0.99 * sign * level,
        Op.TRANSLATE_X: lambda level, sign: 32 * sign * level,
        Op.TRANSLATE_Y: lambda level, sign: 32 * sign * level,
    }


def whole(value: Array) -> Array:
    """The whole part; in float32 7 / 10 * 110 may fall short of 77."""
    return jnp.floor(value + 1e-4)
