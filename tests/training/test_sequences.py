"""Training on sequences: no number depends on how far they are padded, and each padded length is one program."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.config import Recipe, with_overrides
from pcls.data.augment import normalise
from pcls.data.buckets import buckets_of
from pcls.data.pipeline import Batch, Places
from pcls.data.preprocessing import Preprocessing, SequenceFeatures
from pcls.errors import UserError
from pcls.evaluation.count import make_evaluation_step
from pcls.parallel.mesh import replicated
from pcls.parallel.processes import everywhere
from pcls.training.losses import LOSSES
from pcls.training.program import Program, make_program
from pcls.training.resident import Images

ROWS, FEATURES, CLASSES = 8, 3, 4
# Short: an unrolled loop takes long to compile.
LENGTHS = np.array([3, 1, 2, 4, 2, 4, 3, 4], np.int32)
PREPROCESSING = Preprocessing(4, FEATURES, 1, (2.0, -3.0, 0.5), (1.5, 0.1, 4.0), sequence=SequenceFeatures())
VALUES = np.random.default_rng(0).normal(PREPROCESSING.mean, PREPROCESSING.std, (ROWS, 4, FEATURES)).astype(np.float32)
SETTINGS = {
    "data.source": "sequences",
    "data.path": "somewhere",
    "model.name": "lstm",
    "model.hidden": 5,
    "model.bidirectional": True,
    "train.batch_size": ROWS,
    "train.duration": "20 steps",
    "optimizer.name": "sgd",
    "optimizer.lr": 0.5,
    "optimizer.schedule": "constant",
}


def program_of(devices: int = 1, lengths: np.ndarray | None = None, padded=(), **overrides) -> Program:
    recipe = with_overrides(Recipe(), SETTINGS | overrides)
    buckets = () if lengths is None else buckets_of(lengths, padded)
    records = ROWS if lengths is None else len(lengths)
    return make_program(
        recipe, PREPROCESSING, classes=CLASSES, records=records, buckets=buckets, devices=jax.devices()[:devices]
    )


def batch_of(steps: int, filling: float = 0.0) -> Batch:
    """The same sequences, padded to so many steps by anything."""
    image = np.full((ROWS, steps, FEATURES, 1), filling, np.float32)
    for row, length in enumerate(LENGTHS):
        image[row, :length, :, 0] = VALUES[row, :length]
    weight = np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32)
    return Batch(image, np.arange(ROWS, dtype=np.int32) % 4, weight, np.arange(ROWS), np.zeros(ROWS, np.int32), LENGTHS)


def test_sequences_are_normalised_by_feature_and_zero_where_they_are_padded():
    found = normalise(jnp.asarray(batch_of(6, np.nan).image), PREPROCESSING, jnp.dtype("float32"), LENGTHS)
    for row, length in enumerate(LENGTHS):
        expected = (VALUES[row, :length] - PREPROCESSING.mean) / PREPROCESSING.std
        np.testing.assert_allclose(found[row, :length, :, 0], expected, rtol=1e-4, atol=1e-5)
        assert not np.any(found[row, length:])
    assert normalise(jnp.asarray(VALUES)[..., None], PREPROCESSING, jnp.dtype("bfloat16"), LENGTHS).dtype == "bfloat16"


@pytest.fixture(scope="module")
def trained():
    """A function from steps and filling to what a training step says and changes, and what an evaluation says."""
    program = program_of(**{"train.label_smoothing": 0.1})
    step = program.train_step()
    evaluation = jax.jit(make_evaluation_step(program.model, PREPROCESSING, "float32", LOSSES["softmax"]))

    def run(steps: int, filling: float):
        state, batch = program.initial_state(), batch_of(steps, filling)
        before = jax.device_get(state.params)
        numbers = evaluation(state.params, state.stats, batch)
        state, metrics = step(state, batch)
        changes = jax.tree.map(lambda new, old: new - old, jax.device_get(state.params), before)
        return {"metrics": metrics, "changes": changes, "numbers": numbers}

    return run


@pytest.mark.parametrize(("steps", "filling"), [(5, 0.0), (5, np.nan), (7, -1e30)])
def test_loss_gradients_and_predictions_do_not_depend_on_the_padding(trained, steps, filling):
    expected, found = trained(4, 0.0), trained(steps, filling)
    assert float(found["metrics"]["loss"]) > 0.5
    assert float(found["metrics"]["finite"]) == 1
    assert max(np.abs(change).max() for change in expected["changes"].values()) > 0.01
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6), found, expected)


def test_what_lies_behind_the_end_would_be_seen_if_it_counted(trained):
    batch = batch_of(5)._replace(length=np.full(ROWS, 5, np.int32))
    program = program_of()
    step = jax.jit(make_evaluation_step(program.model, PREPROCESSING, "float32", LOSSES["softmax"]))
    params, stats = program.model.init(jax.random.key(0))
    some, other = (step(params, stats, one)["probability"] for one in (batch_of(5), batch))
    assert np.abs(some - other).max() > 1e-3


def test_sequences_that_live_on_the_devices_train_as_those_that_are_sent():
    program = program_of(8, **{"data.on_device": True, "mesh.sharding": "replicated"})
    batch = batch_of(4)._replace(weight=np.ones(ROWS, np.float32))
    images = everywhere(Images(batch.image, batch.label, batch.length), replicated(program.mesh))
    records = np.arange(ROWS, dtype=np.int32)
    places = Places(records, np.zeros(ROWS, np.int32))
    _, found = program.resident_step()(program.initial_state(), places, images)
    _, expected = program.train_step()(program.initial_state(), batch)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


# Buckets

MANY = np.repeat([2, 3, 4], [9, 20, 11])
THREE = {"data.buckets": 3}


def test_a_program_of_buckets_is_planned_for_the_longest():
    program = program_of(8, MANY, (2, 3, 4), **THREE)
    assert (program.order.size, program.plan.epoch_steps) == (40, 5)
    assert program.batch_shapes.image.shape == (ROWS, 4, FEATURES, 1)
    assert (program.batch_shapes.image.dtype, program.batch_shapes.length.dtype) == (np.float32, np.int32)
    assert program.plan.at_once == 1
    assert [update.height for update in program.sizes.programs_from(0)] == [3, 4, 2]


def test_each_padded_length_is_one_program():
    program = program_of(8, MANY, (2, 3, 4), **THREE)
    step, state, lengths = program.train_step(), program.initial_state(), []
    for number in range(15):
        update = program.sizes.update_at(number)
        batch = batch_of(4)
        image, length = batch.image[:, : update.height], np.minimum(LENGTHS, update.height)
        state, metrics = step(state, batch._replace(image=image, length=length))
        lengths.append(update.height)
        assert np.isfinite(metrics["loss"])
    assert set(lengths) == {2, 3, 4}
    assert step._cache_size() == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model.name": "rnn28", "model.hidden": 0, "model.bidirectional": None},
            "data.buckets is 3, and rnn28 sees pictures of one size: it takes no lengths; leave it out, or choose a "
            "model that does, such as lstm",
        ),
        (
            {"model.read": "columns"},
            "model.read is 'columns', and sequences are read by rows, their steps; leave it out",
        ),
        (
            {"data.tail": "drop", "train.batch_size": 16},
            "data.tail=drop would leave out all 9 sequences that are padded to 2 steps: a batch takes 16 of one "
            "length; lower train.batch_size or data.buckets, or write data.tail=carry",
        ),
    ],
)
def test_what_does_not_go_with_buckets_is_refused(overrides, message):
    with pytest.raises(UserError) as raised:
        program_of(8, MANY, (2, 3, 4), **THREE, **overrides)
    assert str(raised.value) == message


def test_a_model_of_pictures_sees_sequences_of_one_length():
    program = program_of(8, **{"model.name": "rnn28", "model.hidden": 0, "model.bidirectional": None})
    assert not program.model.takes_lengths
    _, metrics = program.train_step()(program.initial_state(), batch_of(4))
    assert np.isfinite(metrics["loss"])
    with pytest.raises(UserError) as raised:
        make_program(program.recipe, replace(PREPROCESSING, height=1), classes=CLASSES, records=ROWS)
    assert str(raised.value) == (
        f"rnn28 sees sequences as images, steps x features, of 2 x 2 or more, and these are 1 x {PREPROCESSING.width}; "
        "choose a model that takes lengths, such as lstm"
    )
