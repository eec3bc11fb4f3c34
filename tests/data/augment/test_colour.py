"""Colours against Pillow's, in both formulations, and how often and how strongly they are changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from pcls.data.augment.colour import (
    Jitter,
    equalising_table,
    greyscaled,
    histogram,
    hue_turned,
    jittered,
    looked_up,
    luma,
)
from pcls.nn.platform import compiling_for

RNG = np.random.default_rng(0)
# Skewed, so that equalising has something to do, and with levels that do not occur.
DARK = (RNG.beta(2, 5, (60, 70, 3)) * 230).astype(np.uint8)
NOISE = RNG.integers(0, 256, (16, 16, 3), np.uint8)
KEYS = jax.random.split(jax.random.key(0), 1000)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_histogram_counts_every_pixel_and_equalising_is_pillows(platform):
    with compiling_for(platform):
        counts, equal = jax.jit(lambda image: (histogram(image), looked_up(image, equalising_table(histogram(image)))))(
            DARK
        )
    expected = np.stack([np.bincount(DARK[..., channel].ravel(), minlength=256) for channel in range(3)])
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(equal, ImageOps.equalize(Image.fromarray(DARK)))


@pytest.mark.parametrize(
    "counts",
    [{7: 500}, {0: 250, 255: 4}, {0: 1, 3: 300, 200: 200}, dict.fromkeys(range(256), 2)],
    ids=["flat", "too few", "three levels", "even"],
)
def test_equalising_few_levels_is_pillows(counts):
    levels = np.repeat(list(counts), list(counts.values())).astype(np.uint8)[None]
    table = np.asarray(equalising_table(histogram(jnp.asarray(levels[..., None]))))
    np.testing.assert_array_equal(table[0][levels], ImageOps.equalize(Image.fromarray(levels)))


def test_luma_is_pillows():
    np.testing.assert_array_equal(luma(jnp.asarray(NOISE))[..., 0], Image.fromarray(NOISE).convert("L"))


def turned_by_pillow(image, steps):
    hue, saturation, value = Image.fromarray(image).convert("HSV").split()
    moved = Image.fromarray(((np.asarray(hue).astype(int) + steps) % 256).astype(np.uint8))
    return np.asarray(Image.merge("HSV", (moved, saturation, value)).convert("RGB"), int)


@pytest.mark.parametrize("steps", [0, 20, -64, 128])
def test_a_hue_is_turned_as_by_pillow_but_for_its_rounding(steps):
    found = np.asarray(jax.jit(hue_turned)(NOISE, steps / 256), int)
    # Pillow keeps hue and saturation in 8 bits: a step of hue is up to 6 levels of the steepest colour.
    difference = np.abs(found - turned_by_pillow(NOISE, steps))
    assert difference.max() <= 8
    assert difference.mean() < 1.3


def test_a_hue_that_is_not_turned_keeps_the_image_and_greys_have_none():
    np.testing.assert_array_equal(hue_turned(jnp.asarray(NOISE), jnp.float32(0)), NOISE)
    grey = jnp.asarray(np.repeat(NOISE[..., :1], 3, -1))
    np.testing.assert_array_equal(hue_turned(grey, jnp.float32(0.3)), grey)


@pytest.mark.parametrize(
    ("most", "kind"),
    [
        (Jitter(0.4, 0, 0, 0), ImageEnhance.Brightness),
        (Jitter(0, 0.4, 0, 0), ImageEnhance.Contrast),
        (Jitter(0, 0, 0.4, 0), ImageEnhance.Color),
    ],
    ids=["brightness", "contrast", "saturation"],
)
def test_a_jitter_is_pillows_enhancement_by_a_factor_around_1(most, kind):
    small = np.array([[[40, 90, 130], [100, 60, 20]]], np.uint8)
    changed = np.asarray(jax.jit(jax.vmap(lambda key: jittered(jnp.asarray(small), key, most)))(KEYS))
    factors = np.linspace(0.6, 1.4, 161)
    by_pillow = np.stack([np.asarray(kind(Image.fromarray(small)).enhance(factor)) for factor in factors])
    difference = np.abs(changed[:, None].astype(int) - by_pillow).max((2, 3, 4))
    # Each is within a level of what Pillow makes of some factor within the bounds.
    assert difference.min(1).max() <= 1
    nearest = factors[difference.argmin(1)]
    # Uniform: mean 1 and deviation 0.231, of 1000 to within 4 of their own deviations, and the bins' width.
    assert abs(nearest.mean() - 1) < 4 * 0.231 / np.sqrt(1000) + 0.02
    assert abs(nearest.std() - 0.231) < 0.03


def test_a_share_of_the_images_loses_its_colours():
    found = np.asarray(jax.jit(jax.vmap(lambda key: greyscaled(jnp.asarray(NOISE[:1, :1]), key, 0.2)))(KEYS))
    grey = (found == np.asarray(luma(jnp.asarray(NOISE[:1, :1])))).all((1, 2, 3))
    # 1000 draws of 0.2: 200 +- 12.6; 4 deviations.
    assert abs(int(grey.sum()) - 200) < 51
    np.testing.assert_array_equal(found[~grey][0], NOISE[:1, :1])
