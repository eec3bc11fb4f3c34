"""Mixup and cutmix between the two images of a pair.

An example's partner is its neighbour, so that no device needs what lies on another. Records are shuffled: a neighbour
is as random as any other.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pcls.config.schema import AugmentSection
from pcls.data.augment.distributions import beta
from pcls.data.augment.keys import Draw

PAIR = 2


class Mixture(NamedTuple):
    """A mixed batch. Its targets stay two labels and a share: losses that are linear in the target need no more.

    Where records carry several labels, these are two rows of them.

    Attributes:
      images: [batch, height, width, channels] uint8.
      labels: [batch] int32, or [batch, classes], those of the partners.
      share: [batch] float32, of an example's own label.
    """

    images: Array
    labels: Array
    share: Array


class Box(NamedTuple):
    """Rows top to bottom and columns left to right, the ends excluded; int32 scalars."""

    top: Array
    bottom: Array
    left: Array
    right: Array


def mix(images: Array, labels: Array, weights: Array, keys: Array, section: AugmentSection) -> Mixture:
    """Mixes each image of an even row with that of the row after it, and the other way round.

    Args:
      images: [batch, height, width, channels] uint8, of an even number.
      labels: [batch], or [batch, classes].
      weights, keys: [batch]; a pair draws from the key of its first image, and stays as it is where one of its
        weights is 0.
      section: of the recipe, with mixup or cutmix.
    """
    both = weights.reshape(-1, PAIR).min(1) > 0
    pairs = images.reshape(-1, PAIR, *images.shape[1:])
    mixed, share = jax.vmap(lambda pair, key, usable: mixed_pair(pair, key, usable, section))(
        pairs, keys.reshape(-1, PAIR)[:, 0], both
    )
    return Mixture(mixed.reshape(images.shape), swapped(labels), jnp.repeat(share, PAIR))


def swapped(rows: Array) -> Array:
    """The row of each one's partner."""
    return rows.reshape(-1, PAIR, *rows.shape[1:])[:, ::-1].reshape(rows.shape)


def mixed_pair(pair: Array, key: Array, usable: Array, section: AugmentSection) -> tuple[Array, Array]:
    """Two images, mixed, and the share of each that is its own.

    Args:
      pair: [2, height, width, channels] uint8.
      key: of the pair.
      usable: whether they may be mixed at all.
      section: of the recipe.
    """
    whether, which, blend, cut, place = jax.random.split(jax.random.fold_in(key, Draw.MIX), 5)
    prob = 1.0 if section.mix_prob is None else section.mix_prob
    switch = 0.5 if section.switch_prob is None else section.switch_prob
    cuts = jnp.bool(section.cutmix > 0)
    if section.mixup and section.cutmix:
        cuts = jax.random.bernoulli(which, switch)
    share = jnp.float32(1)
    if section.mixup:
        share = jnp.where(cuts, 1, beta(blend, section.mixup, section.mixup))
    mixes = usable & jax.random.bernoulli(whether, prob)
    share = jnp.where(mixes, share, 1)
    own, other = pair.astype(jnp.float32), pair[::-1].astype(jnp.float32)
    mixed = jnp.round(share * own + (1 - share) * other).astype(pair.dtype)
    if section.cutmix:
        height, width = pair.shape[1:3]
        box = drawn_box(place, beta(cut, section.cutmix, section.cutmix), height, width)
        mask = box_mask(box, height, width) & cuts & mixes
        mixed = jnp.where(mask[..., None], pair[::-1], mixed)
        share = share - jnp.mean(mask, dtype=jnp.float32)
    return mixed, share


def drawn_box(key: Array, kept: Array, height: int, width: int) -> Box:
    """A box of 1 - kept of the area around a place of the image, clipped at its border. Source: Yun et al. 2019."""
    ratio = jnp.sqrt(1 - kept)
    size = jnp.array([height, width])
    half = (size * ratio).astype(jnp.int32) // 2
    middle = jax.random.randint(key, (2,), 0, size)
    low, high = jnp.maximum(middle - half, 0), jnp.minimum(middle + half, size)
    return Box(low[0], high[0], low[1], high[1])


def box_mask(box: Box, height: int, width: int) -> Array:
    """[height, width], true within a box."""
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    return (box.top <= y) & (y < box.bottom) & (box.left <= x) & (x < box.right)
