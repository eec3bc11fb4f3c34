"""A batch through all that the recipe names: what is drawn depends on the record alone, and nothing is communicated."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.config.schema import AugmentSection
from pcls.data.augment import alternating, augment, erase, flip, mean_colour, mix, normalise, record_keys, shift
from pcls.data.preprocessing import Preprocessing
from pcls.parallel.mesh import batch_sharding, make_mesh

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


def test_an_alternating_flip_shows_each_image_both_ways_in_two_epochs():
    section, records = AugmentSection(flip="alternate"), jnp.arange(64)

    def epoch(number, records=records):
        turned = alternating(KEY, jnp.full_like(records, number), records)
        return np.asarray(augment(IMAGES[records], keys_of(records, [0] * len(records)), section, turned=turned))

    first, second, third = map(epoch, range(3))
    is_turned = (first != IMAGES).any((1, 2, 3))
    assert 20 < is_turned.sum() < 44
    np.testing.assert_array_equal(first[is_turned], IMAGES[is_turned][:, :, ::-1])
    np.testing.assert_array_equal(second, first[:, :, ::-1])
    np.testing.assert_array_equal(third, first)
    # By the record, whatever its place in a batch; and by the run.
    order = np.random.default_rng(1).permutation(64)
    np.testing.assert_array_equal(epoch(1, order), second[order])
    zeros = jnp.zeros(64, jnp.int32)
    assert not np.array_equal(alternating(jax.random.key(4), zeros, records), alternating(KEY, zeros, records))


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
    assert jax.eval_shape(lambda image: shift(image, KEY, 9), IMAGES[0]) == jax.ShapeDtypeStruct((5, 4, 3), np.uint8)
    assert augmented(IMAGES, keys_of(range(64), [0] * 64)).shape == IMAGES.shape


def test_with_reflection_the_image_itself_moves_in_where_it_was_black():
    image = jnp.asarray(IMAGES[0])
    plain, reflected = (np.asarray(shift(image, KEY, 3, padding)) for padding in ("zero", "reflect"))
    assert (plain == 0).any() and reflected.min() > 0
    assert np.array_equal(plain[plain > 0], reflected[plain > 0])
    padded = np.pad(IMAGES[0], ((3, 3), (3, 3), (0, 0)), mode="reflect")
    windows = [padded[y : y + 5, x : x + 4] for y in range(7) for x in range(7)]
    assert any(np.array_equal(reflected, window) for window in windows)


# Everything at once

EVERYTHING = AugmentSection(
    flip=True,
    shift=2,
    shift_padding="reflect",
    policy="rand-m9-mstd0.5-inc1-n3-tweights",
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    greyscale=0.2,
    mixup=0.2,
    cutmix=1.0,
    erase=0.25,
    erase_fill="noise",
)
ROWS = 16


def prepared(images, labels, weights, records):
    keys = record_keys(KEY, jnp.zeros_like(records), records)
    single = augment(images, keys, EVERYTHING, (9, 8, 7))
    mixed = mix(single, labels, weights, keys, EVERYTHING)
    return single, mixed, erase(mixed.images.astype(jnp.float32), keys, EVERYTHING)


@pytest.fixture(scope="module")
def inputs():
    images = np.random.default_rng(2).integers(0, 256, (ROWS, 16, 16, 3), np.uint8)
    return images, np.arange(ROWS, dtype=np.int32), np.ones(ROWS, np.float32), np.arange(ROWS, dtype=np.int32)


@pytest.fixture(scope="module")
def over_eight_devices(inputs):
    """The compiled function of a batch that lies on eight devices."""
    rows = batch_sharding(make_mesh(8, devices=jax.devices()[:8]))
    compiled = jax.jit(prepared, in_shardings=rows, out_shardings=rows).lower(*inputs).compile()
    return lambda *some: compiled(*jax.device_put(some, rows)), compiled.as_text()


def test_no_device_needs_anything_of_another(over_eight_devices):
    _, program = over_eight_devices
    assert re.findall(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", program) == []


def test_pairs_that_change_places_are_changed_in_the_same_way(over_eight_devices, inputs):
    run, _ = over_eight_devices
    order = np.random.default_rng(3).permutation(ROWS // 2)
    rows = np.stack([2 * order, 2 * order + 1], 1).ravel()
    for found, expected in zip(
        jax.tree.leaves(run(*(array[rows] for array in inputs))), jax.tree.leaves(run(*inputs)), strict=True
    ):
        np.testing.assert_array_equal(found, np.asarray(expected)[rows])


def test_before_mixing_an_image_does_not_depend_on_its_neighbour(over_eight_devices, inputs):
    run, _ = over_eight_devices
    reverse = run(*(array[::-1] for array in inputs))[0]
    np.testing.assert_array_equal(np.asarray(reverse)[::-1], run(*inputs)[0])


# Normalising


def test_normalising_is_that_of_numpy():
    preprocessing = Preprocessing(5, 4, 3, (0.1, 0.4, 0.9), (0.2, 0.5, 1.0))
    expected = (IMAGES / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    found = normalise(jnp.asarray(IMAGES), preprocessing, jnp.dtype("float32"))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)
    half = normalise(jnp.asarray(IMAGES), preprocessing, jnp.dtype("bfloat16"))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=2**-8, atol=2e-6)


def test_the_mean_colour_is_normalised_to_about_0():
    preprocessing = Preprocessing(1, 1, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert mean_colour(preprocessing) == (124, 116, 104)
    found = normalise(jnp.array([[[mean_colour(preprocessing)]]], jnp.uint8), preprocessing, jnp.dtype("float32"))
    assert np.abs(found).max() < 0.5 / 255 / 0.224
