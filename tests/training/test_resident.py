"""Training on images that live on the devices is training on batches of them."""

import jax
import numpy as np
import pytest

from pcls.data.order import Order
from pcls.data.pipeline import Batch, training_places
from pcls.parallel.mesh import replicated
from pcls.parallel.processes import everywhere
from pcls.training.resident import Images

RECORDS, STEPS = 100, 8
ORDER = Order(RECORDS, 32, 3)


@pytest.fixture(scope="module")
def some(program):
    # An epoch of 3.125 steps: batches straddle epochs.
    return program(
        8, **{"model.dropout": 0.25, "mesh.sharding": "replicated", "augment.shift": 1, "augment.flip": True}
    )


@pytest.fixture(scope="module")
def host_images():
    rng = np.random.default_rng(0)
    return Images(
        rng.integers(0, 256, (RECORDS, 8, 8, 1)).astype(np.uint8), rng.integers(0, 4, RECORDS).astype(np.int32)
    )


@pytest.fixture(scope="module")
def images(some, host_images):
    return everywhere(host_images, replicated(some.mesh))


@pytest.fixture(scope="module")
def places(some):
    rows = some.rows(32)
    return list(training_places(ORDER, rows=rows, steps=range(STEPS)))


@pytest.fixture(scope="module")
def streamed(some, host_images, host_copy):
    """Losses and the last state of batches sent by the host."""
    state, step, losses = some.initial_state(), some.train_step(), []
    for number in range(STEPS):
        records, epochs = ORDER.records_of_step(number)
        weight = np.ones(32, np.float32)
        batch = Batch(host_images.image[records], host_images.label[records], weight, *np.int32([records, epochs]))
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, host_copy(state)


def assert_same(found, expected):
    for some, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(some, other, rtol=1e-6, atol=1e-6 * np.abs(other).max())


def test_the_places_are_the_records_and_epochs_of_the_order(places):
    for number, place in enumerate(places):
        records, epochs = ORDER.records_of_step(number)
        assert (place.record.dtype, place.epoch.dtype) == (np.int32, np.int32)
        assert place.record.tolist() == records.tolist()
        assert place.epoch.tolist() == epochs.tolist()


def test_a_process_has_the_places_of_its_rows():
    rows = np.arange(8, 16)
    (some,) = training_places(ORDER, rows=rows, steps=range(2, 3))
    assert some.record.tolist() == ORDER.records_of_step(2)[0][8:16].tolist()


def test_looked_up_batches_train_as_those_sent_by_the_host(some, images, places, streamed, host_copy):
    state, step, losses = some.initial_state(), some.resident_step(), []
    for place in places:
        state, metrics = step(state, place, images)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, streamed[0], rtol=1e-6)
    assert_same(host_copy(state), streamed[1])


def test_four_steps_a_dispatch_train_the_same(some, images, places, streamed, host_copy):
    state, steps, losses = some.initial_state(), some.resident_steps(), []
    for first in (0, 4):
        stacked = jax.tree.map(lambda *parts: np.stack(parts), *places[first : first + 4])
        state, metrics = steps(state, stacked, images)
        losses.extend(np.asarray(metrics["loss"]).tolist())
    np.testing.assert_allclose(losses, streamed[0], rtol=1e-6)
    assert_same(host_copy(state), streamed[1])


def test_looking_up_moves_nothing_between_devices_and_gives_the_state_up_but_not_the_images(some, images):
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), images)
    executable = some.resident_step().lower(some.state_shapes, some.place_shapes, shapes).compile()
    text = executable.as_text()
    assert "all-reduce" in text
    for name in ("all-gather", "all-to-all", "collective-permute"):
        assert name not in text
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(some.state_shapes))
    assert executable.memory_analysis().alias_size_in_bytes == state
