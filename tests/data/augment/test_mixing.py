"""Mixup and cutmix: pixels, labels and shares agree."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pcls.config.schema import AugmentSection
from pcls.data.augment.mixing import drawn_box, mix

ROWS, SIZE = 2000, 16
KEYS = jax.random.split(jax.random.key(5), ROWS)
LABELS = np.arange(ROWS, dtype=np.int32)
# Black and white, so that a pixel says whose it is.
IMAGES = np.zeros((ROWS, SIZE, SIZE, 1), np.uint8)
IMAGES[1::2] = 200
WEIGHTS = np.ones(ROWS, np.float32)


@cache
def compiled(section):
    return jax.jit(partial(mix, section=section))


def mixed(rows=LABELS, weights=WEIGHTS, **settings):
    """Some of the rows, mixed."""
    found = compiled(AugmentSection(**settings))(IMAGES[rows], LABELS[rows], weights, KEYS[rows])
    return jax.tree.map(np.asarray, found)


@pytest.fixture(scope="module")
def cut():
    return mixed(cutmix=1.0)


@pytest.fixture(scope="module")
def blend():
    return mixed(mixup=0.8)


def test_the_other_label_is_that_of_the_neighbour(cut, blend):
    for some in (cut, blend):
        assert some.labels.tolist() == (LABELS ^ 1).tolist()
        np.testing.assert_array_equal(some.share[::2], some.share[1::2])
        assert some.share.min() >= 0 and some.share.max() <= 1


def test_cutmix_gives_each_label_the_share_of_the_pixels_that_are_its_own(cut):
    own = (cut.images == IMAGES).mean((1, 2, 3))
    np.testing.assert_allclose(cut.share, own, atol=1e-6)
    # Boxes that the border cuts are smaller than was drawn: 1/2 would be the mean share without.
    assert 0.55 < cut.share.mean() < 0.75
    assert set(np.unique(cut.images)) == {0, 200}


def test_the_two_of_a_pair_exchange_the_same_box(cut):
    np.testing.assert_array_equal(cut.images[::2] == 200, cut.images[1::2] == 0)


def test_a_box_is_a_rectangle_of_the_images_proportions_around_any_place():
    boxes = jax.jit(jax.vmap(lambda key: drawn_box(key, jnp.float32(0.75), 20, 40)))(KEYS)
    heights, widths = np.asarray(boxes.bottom - boxes.top), np.asarray(boxes.right - boxes.left)
    # Half of each side, and cut at the border by up to half of that.
    assert (heights.min(), heights.max(), widths.min(), widths.max()) == (5, 10, 10, 20)
    middles = np.asarray(boxes.top)[heights == 10] + 5
    assert set(middles.tolist()) == set(range(5, 16))


def test_mixup_blends_pixels_by_the_shares_of_the_labels(blend):
    share = blend.share[:, None, None, None]
    np.testing.assert_allclose(blend.images, share * IMAGES + (1 - share) * IMAGES[LABELS ^ 1], atol=0.5)
    assert stats.kstest(blend.share[::2], stats.beta(0.8, 0.8).cdf).pvalue > 1e-3


def test_each_pair_is_blended_cut_or_left_alone_as_often_as_was_said():
    some = mixed(mixup=0.8, cutmix=1.0, mix_prob=0.6, switch_prob=0.25)
    pixels = some.images[::2].reshape(ROWS // 2, -1)
    blended = (pixels == pixels[:, :1]).all(1) & (pixels[:, 0] != 0)
    cut = (pixels != pixels[:, :1]).any(1)
    assert abs(int(blended.sum()) - 450) < 70
    # Some boxes are of no pixel, and some of all.
    assert abs(int(cut.sum()) - 150) < 55
    untouched = ~blended & ~cut
    assert abs(int(untouched.sum()) - 400) < 75
    assert (some.share[::2][untouched & (pixels == 0).all(1)] == 1).mean() > 0.95


@pytest.mark.parametrize("row", [6, 7])
def test_a_pair_with_an_image_of_weight_0_stays_as_it_is(row, cut):
    weights = WEIGHTS.copy()
    weights[row] = 0
    some = mixed(weights=weights, cutmix=1.0)
    np.testing.assert_array_equal(some.images[6:8], IMAGES[6:8])
    assert some.share[6:8].tolist() == [1, 1]
    np.testing.assert_array_equal(some.images[8:], cut.images[8:])


def test_a_pair_is_mixed_in_the_same_way_wherever_it_stands(cut):
    order = np.random.default_rng(0).permutation(ROWS // 2)
    rows = np.stack([2 * order, 2 * order + 1], 1).ravel()
    found = mixed(rows, cutmix=1.0)
    np.testing.assert_array_equal(found.images, cut.images[rows])
    np.testing.assert_array_equal(found.share, cut.share[rows])
