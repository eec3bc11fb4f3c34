"""Random erasing: how often, how large, with what."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.config.schema import AugmentSection
from pcls.data.augment.erasing import erase, erased_box

ROWS = 1000
KEYS = jax.random.split(jax.random.key(7), ROWS)
IMAGES = jnp.full((ROWS, 16, 16, 3), 5.0)


@partial(jax.jit, static_argnames="fill")
def erased(keys, fill):
    return erase(IMAGES, keys, AugmentSection(erase=0.25, erase_fill=fill))


@pytest.fixture(scope="module")
def boxes():
    """Top, bottom, left, right of many boxes in an image of 100 x 200."""
    drawn = jax.jit(jax.vmap(lambda key: erased_box(key, jax.random.fold_in(key, 1), 100, 200)))(KEYS)
    return jax.tree.map(np.asarray, drawn)


def test_a_box_lies_within_the_image_and_has_2_to_33_percent_of_it(boxes):
    assert boxes.top.min() >= 0 and boxes.left.min() >= 0
    assert boxes.bottom.max() <= 100 and boxes.right.max() <= 200
    shares = (boxes.bottom - boxes.top) * (boxes.right - boxes.left) / 20_000
    assert 0.018 < shares.min() < 0.03 and 0.32 < shares.max() < 0.34
    assert boxes.top.min() == 0 and (boxes.bottom == 100).any()


def test_the_aspect_is_uniform_in_its_logarithm_where_the_image_does_not_cut_it(boxes):
    heights, widths = boxes.bottom - boxes.top, boxes.right - boxes.left
    whole = heights < 100
    aspect = np.log(heights / widths)[whole]
    assert np.exp(aspect.min()) == pytest.approx(0.3, rel=0.05)
    assert np.exp(aspect.max()) == pytest.approx(1 / 0.3, rel=0.05)
    assert abs(aspect.mean()) < 0.2
    assert (~whole).mean() < 0.2


@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_a_share_of_the_images_loses_a_box_to_zeros_or_noise(fill):
    found = np.asarray(erased(KEYS, fill))
    lost = found[..., 0] != 5
    # 1000 draws of 0.25: 250 +- 13.7; 4.5 deviations.
    assert abs(int(lost.any((1, 2)).sum()) - 250) < 62
    filling = found[lost]
    if fill == "mean":
        assert (filling == 0).all()
    else:
        assert abs(filling.mean()) < 0.05 and abs(filling.std() - 1) < 0.05
        assert filling.shape[1] == 3 and np.unique(filling).size > 0.99 * filling.size


def test_an_image_is_erased_in_the_same_way_wherever_it_stands_and_keeps_its_type():
    np.testing.assert_array_equal(erased(KEYS[::-1], "noise")[::-1], erased(KEYS, "noise"))
    section = AugmentSection(erase=0.5, erase_fill="noise")
    half = jax.eval_shape(lambda images: erase(images, KEYS, section), IMAGES.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_without_erasing_nothing_is_computed():
    assert erase(IMAGES, KEYS, AugmentSection()) is IMAGES
