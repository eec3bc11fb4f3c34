"""Augmentation on the device, in the compiled step.

The key of each image is a pure function of (seed, epoch, record number): the same picture in the same epoch is
changed in the same way, whatever the batch, mesh or host that it passes through. Only `mix` looks at a neighbour too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from pcls.config.policy import parse_policy
from pcls.config.schema import AugmentSection
from pcls.data.augment.colour import Jitter, greyscaled, jittered
from pcls.data.augment.erasing import erase
from pcls.data.augment.geometry import flip, mirrored, shift
from pcls.data.augment.keys import alternating, record_keys
from pcls.data.augment.mixing import PAIR, Mixture, mix
from pcls.data.augment.normalising import mean_colour, normalise
from pcls.data.augment.policies import changed
from pcls.data.preprocessing import Preprocessing

__all__ = [
    "PAIR",
    "alternating",
    "augment",
    "erase",
    "flip",
    "mean_colour",
    "mix",
    "model_inputs",
    "normalise",
    "record_keys",
    "shift",
]


def model_inputs(
    images: Array,
    labels: Array,
    weights: Array,
    keys: Array,
    section: AugmentSection,
    preprocessing: Preprocessing,
    dtype: jnp.dtype,
    lengths: Array | None = None,
    turned: Array | None = None,
) -> tuple[Array, Mixture | None]:
    """A training batch as the model sees it: augmented, mixed, normalised, erased. Sequences are normalised only.

    Args:
      images: [batch, height, width, channels] uint8, or sequences as `normalise` takes them.
      labels: [batch], or [batch, classes] where records carry several.
      weights, keys: [batch].
      section, preprocessing: of the recipe.
      dtype: of the result.
      lengths: [batch], steps of sequences that count; None: pictures.
      turned: as `augment` takes it.

    Returns:
      The same shape in `dtype`, and what was mixed in; None: the recipe mixes nothing.
    """
    if lengths is not None:
        return normalise(images, preprocessing, dtype, lengths), None
    images = augment(images, keys, section, mean_colour(preprocessing), turned)
    mixture = mix(images, labels, weights, keys, section) if section.mixes else None
    images = normalise(images if mixture is None else mixture.images, preprocessing, dtype)
    return erase(images, keys, section), mixture


def augment(
    images: Array,
    keys: Array,
    section: AugmentSection,
    fill: Sequence[int] = (),
    turned: Array | None = None,
) -> Array:
    """Applies what the recipe names and what concerns one image: shift, flip, policy, jitter, greyscale.

    Args:
      images: [batch, height, width, channels], any type; uint8 for what changes colours.
      keys: [batch].
      section: of the recipe.
      fill: grey level of what a policy's geometric operations bring in, one a channel; `mean_colour` as in timm; empty:
        a middle grey.
      turned: [batch] bool of `alternating`, which images are mirrored where the flip alternates.

    Returns:
      The same shape and type.
    """
    for change in changes(section, jnp.array(fill or (128,) * images.shape[-1], jnp.uint8), turned):
        images = change(images, keys)
    return images


def changes(section: AugmentSection, fill: Array, turned: Array | None = None) -> list[Callable[[Array, Array], Array]]:
    """What happens to images, in its order: functions of them and their keys.

    Args:
      section: of the recipe.
      fill: [channels] uint8.
      turned: as `augment` takes it.
    """
    found: list[Callable[[Array, Array], Array]] = []
    if section.shift:
        found.append(jax.vmap(lambda image, key: shift(image, key, section.shift, section.shift_padding or "zero")))
    if section.flip == "alternate":
        assert turned is not None
        found.append(lambda images, keys: mirrored(images, turned))
    elif section.flip:
        found.append(jax.vmap(flip))
    if section.policy:
        policy = parse_policy(section.policy)
        found.append(jax.vmap(lambda image, key: changed(image, key, policy, fill)))
    jitter = Jitter(section.brightness, section.contrast, section.saturation, section.hue)
    if any(jitter):
        found.append(jax.vmap(lambda image, key: jittered(image, key, jitter)))
    if section.greyscale:
        found.append(jax.vmap(lambda image, key: greyscaled(image, key, section.greyscale)))
    return found
