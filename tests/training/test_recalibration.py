"""BatchNorm's statistics taken anew, against what numpy finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.data.augment import augment, normalise, record_keys
from pcls.training.recalibration import mean_statistics

GROUPS = {"batch_norm.over": "groups", "batch_norm.group_size": 4}


def taken(made, batch):
    state = made.initial_state()
    return state, made.statistics_step()(state.params, state.stats, state.key, batch)[0]


def first_layer(made, state, images):
    """What the first BatchNorm sees, [batch, height, width, 8] float64."""
    pixels = normalise(jnp.asarray(images), made.preprocessing, jnp.float32)
    kernel = state.params["conv1/kernel"]
    seen = jax.lax.conv_general_dilated(pixels, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return np.asarray(seen, np.float64)


def test_the_statistics_of_a_batch_are_its_own_mean_and_variance(program, batch_at):
    made, batch = program(), batch_at(0)
    state, stats = taken(made, batch)
    seen = first_layer(made, state, batch.image)
    np.testing.assert_allclose(stats["bn1/mean"], seen.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["bn1/var"], seen.var((0, 1, 2), ddof=1), rtol=1e-4)


def test_the_running_statistics_are_not_in_them(program, batch_at):
    made, batch = program(), batch_at(0)
    state, stats = taken(made, batch)
    other = jax.tree.map(lambda stat: stat + 0.3, state.stats)
    for path, value in made.statistics_step()(state.params, other, state.key, batch)[0].items():
        np.testing.assert_allclose(value, stats[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_statistics_over_groups_are_the_mean_of_theirs(program, batch_at):
    made, batch = program(**GROUPS), batch_at(0)
    state, stats = taken(made, batch)
    seen = first_layer(made, state, batch.image).reshape(8, 4 * 8 * 8, 8)
    np.testing.assert_allclose(stats["bn1/mean"], seen.mean((0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["bn1/var"], seen.var(1, ddof=1).mean(0), rtol=1e-4)


def test_statistics_are_those_of_images_as_training_sees_them(program, batch_at):
    made, batch = program(**{"augment.flip": True, "augment.shift": 3}), batch_at(0)
    state, stats = taken(made, batch)
    keys = record_keys(jax.random.wrap_key_data(state.key), batch.epoch, batch.record)
    seen = first_layer(made, state, augment(jnp.asarray(batch.image), keys, made.recipe.augment))
    np.testing.assert_allclose(stats["bn1/mean"], seen.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    _, plain = taken(program(), batch)
    assert np.abs(np.asarray(stats["bn1/mean"] - plain["bn1/mean"])).max() > 1e-3


def test_images_are_neither_mixed_nor_erased_while_they_are_taken(program, batch_at):
    _, stats = taken(program(**{"augment.mixup": 1.0, "augment.erase": 1.0}), batch_at(0))
    _, plain = taken(program(), batch_at(0))
    for path, value in plain.items():
        np.testing.assert_array_equal(stats[path], value)


def test_nothing_is_dropped_while_they_are_taken(program, batch_at):
    _, stats = taken(program(**{"model.dropout": 0.5}), batch_at(0))
    _, plain = taken(program(), batch_at(0))
    for path, value in plain.items():
        np.testing.assert_array_equal(stats[path], value)


@pytest.mark.parametrize("changes", [{}, GROUPS], ids=["global", "groups"])
def test_any_number_of_devices_finds_the_same_statistics(changes, program, batch_at):
    _, eight = taken(program(8, **changes), batch_at(0))
    _, two = taken(program(2, **changes), batch_at(0))
    for path, value in eight.items():
        np.testing.assert_allclose(two[path], value, rtol=1e-5, atol=1e-6, err_msg=path)


def test_a_batch_weighs_as_many_records_as_it_holds(program, batch_at):
    made, batch = program(), batch_at(0)
    state, weight = made.initial_state(), np.ones(32, np.float32)
    weight[:5] = 0
    _, found = made.statistics_step()(state.params, state.stats, state.key, batch._replace(weight=weight))
    assert found == 27


def test_the_mean_over_batches_is_that_of_their_records():
    rng = np.random.default_rng(0)
    batches = [{"bn/mean": rng.normal(5, 2, 8), "bn/var": rng.gamma(2, 2, 8)} for _ in range(7)]
    weights = [0.0, 32.0, 32.0, 5.0, 0.0, 32.0, 1.0]
    found = mean_statistics(zip(batches, weights, strict=True))
    for path in batches[0]:
        expected = np.average([batch[path] for batch in batches], axis=0, weights=weights)
        np.testing.assert_allclose(found[path], expected, rtol=1e-5)
    assert mean_statistics([(batches[0], 32.0)]) == batches[0]
