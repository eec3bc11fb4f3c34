"""Augmentation on the device, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.config.schema import AugmentSection
from pcls.data.augment import augment, flip, normalise, record_keys, shift
from pcls.data.preprocessing import Preprocessing

KEY = jax.random.key(3)
IMAGES = np.random.default_rng(0).integers(1, 256, (64, 5, 4, 3), np.uint8)


def keys_of(records, epochs) -> jax.Array:
    return record_keys(KEY, jnp.asarray(epochs, jnp.int32), jnp.asarray(records, jnp.int32))


@jax.jit
def augmented(images, keys):
    return augment(images, keys, AugmentSection(flip=True, shift=2))


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    """64 records of epoch 0, augmented."""
    return np.asarray(augmented(IMAGES, keys_of(range(64), [0] * 64)))


def test_a_record_is_changed_in_the_same_way_at_any_place_of_any_batch(whole):
    order = np.random.default_rng(1).permutation(64)
    assert np.array_equal(augmented(IMAGES[order], keys_of(order, [0] * 64)), whole[order])


def test_other_epochs_and_other_records_get_other_keys():
    keys = jax.random.key_data(keys_of(np.tile(np.arange(50), 4), np.repeat(np.arange(4), 50)))
    assert len({tuple(key) for key in keys.tolist()}) == 200
    assert not np.array_equal(keys_of([1], [2]), keys_of([2], [1]))


def test_another_run_key_gives_other_changes(whole):
    other = record_keys(jax.random.key(4), jnp.zeros(64, jnp.int32), jnp.arange(64))
    assert not np.array_equal(augmented(IMAGES, other), whole)


def test_augmented_images_are_shifted_and_flipped_copies(whole):
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
    moved = set()
    for index, image in enumerate(whole):
        ways = [
            (dy, dx, flipped)
            for dy in range(5)
            for dx in range(5)
            for flipped in (False, True)
            if np.array_equal(padded[index, dy : dy + 5, dx : dx + 4][:, :: -1 if flipped else 1], image)
        ]
        assert len(ways) == 1
        moved |= set(ways)
    # 64 draws of 50 ways: every offset of each axis and both mirrors come up.
    assert {way[0] for way in moved} == {way[1] for way in moved} == set(range(5))
    assert {way[2] for way in moved} == {False, True}


def test_half_of_the_images_are_mirrored():
    keys = jax.random.split(KEY, 2000)
    image = jnp.asarray(IMAGES[0])
    mirrored = np.asarray(jax.vmap(lambda key: (flip(image, key) != image).any())(keys))
    # 2000 fair coins: 1000 +- 22; 5 deviations.
    assert abs(int(mirrored.sum()) - 1000) < 5 * 22.4


def test_no_section_changes_nothing():
    assert augment(IMAGES, keys_of(range(64), [0] * 64), AugmentSection()) is IMAGES


def test_shape_and_type_are_kept():
    assert shift(jnp.asarray(IMAGES[0]), KEY, 9).dtype == jnp.uint8
    assert augmented(IMAGES, keys_of(range(64), [0] * 64)).shape == IMAGES.shape


def test_normalising_is_that_of_numpy():
    preprocessing = Preprocessing(5, 4, 3, (0.1, 0.4, 0.9), (0.2, 0.5, 1.0))
    expected = (IMAGES / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    found = normalise(jnp.asarray(IMAGES), preprocessing, jnp.dtype("float32"))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)
    half = normalise(jnp.asarray(IMAGES), preprocessing, jnp.dtype("bfloat16"))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=2**-8, atol=2e-6)
