"""Exact counting. The model here hands its pixels out as logits, so that numpy knows every answer."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.data.pipeline import Batch, evaluation_batches
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.arrays import ArraySource
from pcls.errors import UserError
from pcls.evaluation.count import collect_logits, count, make_evaluation_step, mean_logits
from pcls.evaluation.quality import quality, scores
from pcls.parallel.mesh import batch_sharding, make_mesh, replicated
from pcls.training.losses import LOSSES

RECORDS = 13


class Pixels:
    """Logits are the pixels, times a factor."""

    def apply(self, params, stats, images, lengths=None):
        return images.reshape(len(images), -1) * params["factor"], stats


@cache
def compiled_step(classes, devices, loss="softmax"):
    """As a run compiles it: rows split over the devices, numbers whole on each."""
    mesh = make_mesh(devices, devices=jax.devices()[:devices])
    preprocessing = Preprocessing(1, classes, 1, (0.0,), (1.0,))
    step = make_evaluation_step(Pixels(), preprocessing, "float32", LOSSES[loss])
    whole, rows = replicated(mesh), batch_sharding(mesh)
    return preprocessing, jax.jit(step, in_shardings=(whole, whole, rows), out_shardings=whole)


def evaluation_of(images, labels, batch_size, *, factor=40.0, undecodable=(), devices=1, loss="softmax"):
    """Evaluates [n, classes] uint8 logits."""
    classes = images.shape[1]
    names = tuple(map(str, range(classes)))
    preprocessing, step = compiled_step(classes, devices, loss)
    source = ArraySource(images[:, None, :, None], labels, names, "pixels")
    with evaluation_batches(
        source, preprocessing, batch_size=batch_size, rows=np.arange(batch_size), threads=2
    ) as batches:
        outputs = [step({"factor": jnp.float32(factor)}, {}, without(batch, undecodable)) for batch in batches]
    return count(outputs, size=len(images), class_names=names)


def without(batch: Batch, undecodable):
    return batch._replace(weight=np.where(np.isin(batch.record, undecodable), 0, batch.weight).astype(np.float32))


def some_records(classes=7):
    # Few levels, so that there are many ties.
    rng = np.random.default_rng(5)
    return rng.integers(0, 4, (RECORDS, classes)).astype(np.uint8), rng.integers(0, classes, RECORDS)


def expected(images, labels, factor=40.0):
    logits = images / 255 * factor
    order = np.argsort(-images.astype(int), axis=1, kind="stable")
    rank = (order == labels[:, None]).argmax(1)
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    own = log_probabilities[np.arange(len(labels)), labels]
    return {"top1": np.mean(rank < 1), "top5": np.mean(rank < 5), "loss": -own.mean(), "predicted": order[:, 0]}


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 13, 16])
def test_every_batch_size_counts_every_record_once_with_the_same_result(batch_size):
    images, labels = some_records()
    found, predictions = evaluation_of(images, labels, batch_size)
    wanted = expected(images, labels)
    assert (found.n, found.undecodable, int(found.confusion.sum())) == (RECORDS, 0, RECORDS)
    assert (found.top1, found.top5) == (wanted["top1"], wanted["top5"])
    assert found.loss == pytest.approx(wanted["loss"], rel=1e-6)
    np.testing.assert_array_equal(predictions.records, np.arange(RECORDS))
    np.testing.assert_array_equal(predictions.labels, labels)
    np.testing.assert_array_equal(predictions.predicted, wanted["predicted"])


@pytest.mark.parametrize(
    ("records", "batch_size", "devices"),
    [
        (13, 8, 8),
        (13, 24, 8),
        (1, 8, 8),
        (7, 8, 8),
        (8, 8, 8),
        (9, 8, 8),
        (13, 4, 4),
        (5, 6, 2),
        (12, 4, 4),
        (3, 16, 2),
    ],
)
def test_every_number_of_devices_counts_every_record_once_with_the_same_result(records, batch_size, devices):
    images, labels = (array[:records] for array in some_records())
    found, predictions = evaluation_of(images, labels, batch_size, devices=devices)
    wanted = expected(images, labels)
    assert (found.n, found.undecodable, int(found.confusion.sum())) == (records, 0, records)
    assert (found.top1, found.top5) == (wanted["top1"], wanted["top5"])
    assert found.loss == pytest.approx(wanted["loss"], rel=1e-6)
    np.testing.assert_array_equal(predictions.records, np.arange(records))
    np.testing.assert_array_equal(predictions.predicted, wanted["predicted"])


def test_the_loss_is_the_one_that_is_handed_in_and_the_ranks_are_those_of_the_logits():
    images, labels = some_records()
    found, predictions = evaluation_of(images, labels, 8, loss="sigmoid")
    logits, target = images / 255 * 40, np.eye(7)[labels]
    probabilities = 1 / (1 + np.exp(-logits))
    losses = -(target * np.log(probabilities) + (1 - target) * np.log(1 - probabilities)).mean(-1)
    assert found.loss == pytest.approx(losses.mean(), rel=1e-5)
    assert found.top1 == expected(images, labels)["top1"]
    # Of the softmax, whatever the loss: probabilities that add up to one.
    np.testing.assert_allclose(predictions.probability, (np.exp(logits).max(1) / np.exp(logits).sum(1)), rtol=1e-5)


def test_ties_rank_like_a_stable_sort_so_a_constant_model_is_no_better_than_its_first_class():
    images, labels = np.zeros((RECORDS, 7), np.uint8), np.arange(RECORDS) % 7
    found, predictions = evaluation_of(images, labels, 4)
    assert found.top1 == np.mean(labels == 0)
    assert found.top5 == np.mean(labels < 5)
    assert set(predictions.predicted) == {0}
    np.testing.assert_allclose(predictions.probability, 1 / 7, rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_top_5_of_five_classes_or_fewer_is_1(classes):
    images, labels = some_records(classes)
    assert evaluation_of(images, labels, 4)[0].top5 == 1.0


def test_records_that_cannot_be_decoded_are_in_no_number_but_their_own():
    images, labels = some_records()
    left = np.setdiff1d(np.arange(RECORDS), [0, 4, 12])
    found, predictions = evaluation_of(images, labels, 5, undecodable=(0, 4, 12))
    wanted = expected(images[left], labels[left])
    assert (found.n, found.undecodable, int(found.confusion.sum())) == (10, 3, 10)
    assert (found.top1, found.top5) == (wanted["top1"], wanted["top5"])
    assert found.loss == pytest.approx(wanted["loss"], rel=1e-6)
    np.testing.assert_array_equal(predictions.records, left)


def test_a_set_of_which_nothing_can_be_decoded_counts_0():
    images, labels = some_records()
    found, _ = evaluation_of(images, labels, 4, undecodable=tuple(range(RECORDS)))
    assert (found.n, found.undecodable, found.loss, found.top1) == (0, RECORDS, 0.0, 0.0)


def test_the_confusion_matrix_has_labels_in_rows():
    images = np.asarray([[9, 0, 0], [9, 0, 0], [0, 0, 9]], np.uint8)
    found, _ = evaluation_of(images, np.asarray([0, 1, 1]), 2)
    np.testing.assert_array_equal(found.confusion, [[1, 0, 0], [1, 0, 1], [0, 0, 0]])


def test_a_model_that_answers_nan_is_never_right():
    images, labels = some_records()
    assert evaluation_of(images, labels, 4, factor=np.nan)[0].top1 == 0.0


# Views of an image


class Weighted:
    """Logits are sums of pixels times weights that no mirror leaves alone."""

    def apply(self, params, stats, images, lengths=None):
        return images.reshape(len(images), -1) @ params["kernel"], stats


@pytest.fixture(scope="module")
def of_views():
    """A function from a choice of views to images, their kernel and what was found."""
    rng = np.random.default_rng(0)
    batch = Batch(
        image=rng.integers(0, 256, (8, 3, 4, 1)).astype(np.uint8),
        label=rng.integers(0, 5, 8).astype(np.int32),
        weight=np.ones(8, np.float32),
        record=np.arange(8, dtype=np.int32),
        epoch=np.zeros(8, np.int32),
    )
    kernel = rng.normal(size=(12, 5)).astype(np.float32)
    mesh = make_mesh(8)
    whole, rows = replicated(mesh), batch_sharding(mesh)

    def find(tta):
        step = make_evaluation_step(
            Weighted(), Preprocessing(3, 4, 1, (0.5,), (0.25,)), "float32", LOSSES["softmax"], tta
        )
        compiled = jax.jit(step, in_shardings=(whole, whole, rows), out_shardings=whole)
        return batch, kernel, jax.tree.map(np.asarray, compiled({"kernel": kernel}, {}, batch))

    return find


def logits_of(images, kernel):
    return ((images / 255 - 0.5) / 0.25).reshape(len(images), -1) @ kernel


@pytest.mark.parametrize("tta", ["none", "mirror", "shift"])
def test_logits_are_means_over_the_views_of_an_image(of_views, tta):
    batch, kernel, found = of_views(tta)
    images = batch.image.astype(np.float64)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    moved = [padded[:, :3, :4], padded[:, 2:, 2:]]
    both = lambda some: (logits_of(some, kernel) + logits_of(some[:, :, ::-1], kernel)) / 2  # noqa: E731
    logits = {
        "none": lambda: logits_of(images, kernel),
        "mirror": lambda: both(images),
        "shift": lambda: both(images) / 2 + (both(moved[0]) + both(moved[1])) / 4,
    }[tta]()
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(found["loss"], -log_probabilities[np.arange(8), batch.label], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found["predicted"], logits.argmax(-1))
    np.testing.assert_array_equal(found["record"], batch.record)


def test_views_of_a_batch_that_is_split_stay_on_their_device():
    rows = batch_sharding(make_mesh(8))
    images = jax.ShapeDtypeStruct((8, 4, 4, 1), np.float32, sharding=rows)
    some = jax.jit(lambda images: mean_logits(lambda views: views.mean((1, 2)), images, "shift"), out_shardings=rows)
    assert not re.findall(
        r"all-gather|all-to-all|collective-permute|all-reduce", some.lower(images).compile().as_text()
    )


# Probabilities, calibration and logits


def test_the_quality_of_the_probabilities_is_that_of_the_logits_in_float64():
    images, labels = some_records()
    found = evaluation_of(images, labels, 5, undecodable=(3,))[0].quality
    left = np.setdiff1d(np.arange(RECORDS), [3])
    expected = quality(scores(images[left] / 255 * 40, labels[left]))
    for name in ("nll", "brier", "ece", "ece_equal_mass", "aurc"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5), name
    assert [part.count for part in found.bins] == [part.count for part in expected.bins]


def batch_of(images, labels, weight=None):
    n = len(images)
    return Batch(
        image=images[:, None, :, None],
        label=labels.astype(np.int32),
        weight=np.ones(n, np.float32) if weight is None else weight,
        record=np.arange(n, dtype=np.int32),
        epoch=np.zeros(n, np.int32),
    )


def test_a_calibration_changes_the_probabilities_and_leaves_the_loss_alone():
    images, labels = some_records()
    preprocessing = Preprocessing(1, 7, 1, (0.0,), (1.0,))
    scale, bias = np.float32([1, 2, 1, 1, 0.5, 1, 1]), np.float32([0, 0, 0.1, 0, 0, -0.2, 0])
    plain = make_evaluation_step(Pixels(), preprocessing, "float32", LOSSES["softmax"])
    calibrated = make_evaluation_step(
        Pixels(), preprocessing, "float32", LOSSES["softmax"], calibration=lambda logits: logits * scale + bias
    )
    params = {"factor": jnp.float32(40)}
    one, other = (jax.jit(step)(params, {}, batch_of(images, labels)) for step in (plain, calibrated))
    np.testing.assert_array_equal(one["loss"], other["loss"])
    expected = scores(images / 255 * 40 * scale + bias, labels)
    np.testing.assert_allclose(other["nll"], expected.nll, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other["brier"], expected.brier, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other["probability"], expected.confidence, rtol=1e-5)
    assert not np.array_equal(one["predicted"], other["predicted"])


def test_logits_are_put_down_by_record_once_each_without_padding_or_what_cannot_be_decoded():
    images, labels = some_records()
    step = make_evaluation_step(
        Pixels(), Preprocessing(1, 7, 1, (0.0,), (1.0,)), "float32", LOSSES["softmax"], with_logits=True
    )
    whole = batch_of(images, labels)
    whole = whole._replace(weight=np.where(whole.record == 4, 0, 1).astype(np.float32))
    # From the last record on, with a row of padding.
    order = np.arange(RECORDS)[::-1]
    last = jax.tree.map(lambda array: array[order[:7]], whole)
    padded = jax.tree.map(lambda array: array[np.append(order[7:], 0)], whole)
    padded = padded._replace(record=np.append(order[7:], -1), weight=np.append(whole.weight[order[7:]], 0))
    outputs = [jax.jit(step)({"factor": jnp.float32(40)}, {}, batch) for batch in (last, padded)]
    found = collect_logits(outputs, size=RECORDS, classes=7)
    left = np.setdiff1d(np.arange(RECORDS), [4])
    np.testing.assert_array_equal(found.records, left)
    np.testing.assert_array_equal(found.labels, labels[left])
    np.testing.assert_allclose(found.logits, images[left] / 255 * 40, rtol=1e-6)


def test_logits_that_would_take_too_much_memory_are_refused_before_any_is_computed():
    with pytest.raises(UserError, match=r"60,000 records and 21,841 classes take 5\.2 GB, and 1\.1 GB are all"):
        collect_logits(iter(()), size=60_000, classes=21_841)
