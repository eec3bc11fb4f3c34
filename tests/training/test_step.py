"""The step, on a model small enough to follow with numpy, and on a network of every kind of layer."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pcls.config import Recipe, with_overrides
from pcls.data.augment import mix, record_keys
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import Preprocessing
from pcls.nn.platform import compiling_for
from pcls.training.losses import class_weights, training_loss
from pcls.training.state import state_of
from pcls.training.step import make_gradients, make_losses, make_train_step, moved

PREPROCESSING = Preprocessing(2, 2, 1, (0.0,), (1.0,))
CLASSES, BATCH, LR, DECAY, MOMENTUM = 3, 8, 0.5, 0.4, 0.75
POISON = 255


class Linear:
    """A linear classifier with a running mean; a pixel of 255 makes its logits NaN."""

    def __init__(self):
        self.stats = {"mean": jax.ShapeDtypeStruct((), jnp.float32)}

    def apply(self, params, stats, images, training, lengths, frozen, entered):
        assert entered is None
        assert training.keys.shape == (len(images),)
        pixels = images.reshape(len(images), -1)
        poison = jnp.where(jnp.any(images > 0.999), jnp.nan, 0.0)
        return pixels @ params["kernel"] + params["bias"] + poison, {"mean": pixels.mean()}


def batch_of(step, *, poisoned=False):
    rng = np.random.default_rng(step)
    images = rng.integers(0, 200, (BATCH, 2, 2, 1)).astype(np.uint8)
    if poisoned:
        images[3, 0, 0, 0] = POISON
    weight = np.ones(BATCH, np.float32)
    weight[-1] = 0
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    return Batch(images, labels, weight, np.arange(BATCH, dtype=np.int32), np.zeros(BATCH, np.int32))


@pytest.fixture(scope="module")
def optimizer():
    return optax.sgd(LR)


BALANCED = np.ones(CLASSES)


def loss_of(recipe, class_counts=BALANCED, **options):
    return training_loss(recipe.train, recipe.imbalance, class_counts, **options)


def linear_step(optimizer, recipe, loss):
    losses = make_losses(Linear(), recipe, PREPROCESSING, loss_of=loss)
    return jax.jit(make_train_step(make_gradients(losses, recipe), optimizer, recipe))


@pytest.fixture(scope="module")
def step_with(optimizer):
    """A function from overrides to the compiled step of the linear classifier."""

    def make(**overrides):
        settings = {"train.ema_decay": DECAY, "batch_norm.momentum": MOMENTUM}
        recipe = with_overrides(Recipe(), settings | overrides)
        return linear_step(optimizer, recipe, loss_of(recipe))

    return make


@pytest.fixture(scope="module")
def train_step(step_with):
    return step_with()


@pytest.fixture
def state(optimizer):
    kernel = np.random.default_rng(9).normal(size=(4, CLASSES)).astype(np.float32)
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(CLASSES)}
    return state_of(params, {"mean": jnp.float32(0)}, optimizer, 0, ema=True)


def softmax_errors(logits, target):
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return -(np.log(probabilities) * target).sum(-1), probabilities - target


def sigmoid_errors(logits, target):
    probabilities = 1 / (1 + np.exp(-logits))
    losses = -(target * np.log(probabilities) + (1 - target) * np.log(1 - probabilities)).mean(-1)
    return losses, (probabilities - target) / CLASSES


def numpy_gradients(params, batch, errors=softmax_errors, smoothing=0.0):
    """Loss, correct and the gradients."""
    pixels = batch.image.reshape(BATCH, -1) / 255
    logits = pixels @ params["kernel"] + params["bias"]
    target = (1 - smoothing) * np.eye(CLASSES)[batch.label] + smoothing / CLASSES
    count = batch.weight.sum()
    losses, of_logits = errors(logits, target)
    of_logits = of_logits * batch.weight[:, None] / count
    correct = (logits.argmax(-1) == batch.label) @ batch.weight
    return losses @ batch.weight / count, correct, {"kernel": pixels.T @ of_logits, "bias": of_logits.sum(0)}


def descended(params, grads):
    return jax.tree.map(lambda param, grad: param - LR * grad, params, grads)


def assert_same(found, expected):
    for some, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(some, other, rtol=1e-5, atol=1e-6)


def test_three_steps_and_their_averages_are_those_of_numpy(train_step, state):
    params, stats = jax.tree.map(np.float64, (state.params, state.stats))
    averages = jax.tree.map(np.copy, (params, stats))
    for step in range(3):
        batch = batch_of(step)
        loss, correct, grads = numpy_gradients(params, batch)
        params = descended(params, grads)
        stats = {"mean": MOMENTUM * stats["mean"] + (1 - MOMENTUM) * (batch.image / 255).mean()}
        rate = min(DECAY, (1 + step) / (10 + step))
        averages = jax.tree.map(lambda old, new, rate=rate: rate * old + (1 - rate) * new, averages, (params, stats))
        state, metrics = train_step(state, batch)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        assert (float(metrics["correct"]), float(metrics["weight"])) == (correct, BATCH - 1)
        assert {value.dtype.name for value in metrics.values()} == {"float32"}
    assert_same((state.params, state.stats, state.ema), (params, stats, averages))
    assert state.deliverable is state.ema


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        ({"train.label_smoothing": 0.2}, {"smoothing": 0.2}),
        ({"train.loss": "sigmoid"}, {"errors": sigmoid_errors}),
        ({"train.loss": "sigmoid", "train.label_smoothing": 0.2}, {"errors": sigmoid_errors, "smoothing": 0.2}),
    ],
    ids=["smoothing", "sigmoid", "both"],
)
def test_another_loss_is_that_of_numpy(step_with, state, overrides, options):
    batch = batch_of(0)
    loss, correct, grads = numpy_gradients(jax.tree.map(np.float64, state.params), batch, **options)
    after, metrics = step_with(**overrides)(state, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert float(metrics["correct"]) == correct
    assert_same(after.params, descended(state.params, grads))


@pytest.mark.parametrize(("loss", "count"), [("softmax", 1), ("sigmoid", 2)])
def test_a_mixed_batch_is_trained_towards_both_labels_by_their_shares(step_with, state, loss, count):
    settings = {"augment.mixup": 0.8, "augment.cutmix": 1.0, "train.label_smoothing": 0.2}
    batch = batch_of(0)
    keys = record_keys(jax.random.wrap_key_data(state.key), batch.epoch, batch.record)
    section = with_overrides(Recipe(), settings).augment
    images, others, share = jax.tree.map(np.asarray, mix(batch.image, batch.label, batch.weight, keys, section))
    # The last example has no weight, so the last pair is left alone.
    assert (share[:6] < 1).any() and share[6:].tolist() == [1, 1]
    eye, own = np.eye(CLASSES), share[:, None].astype(np.float64)
    target = 0.8 * (own * eye[batch.label] + (1 - own) * eye[others]) + 0.2 / CLASSES
    errors = softmax_errors if loss == "softmax" else sigmoid_errors
    expected_loss, correct, grads = numpy_gradients(
        jax.tree.map(np.float64, state.params), batch._replace(image=images), lambda logits, _: errors(logits, target)
    )
    # Micro-batches keep pairs together.
    after, metrics = step_with(**settings, **{"train.loss": loss, "train.accumulate": count})(state, batch)
    np.testing.assert_allclose(metrics["loss"], expected_loss, rtol=1e-5)
    # Of each image its own label counts.
    assert float(metrics["correct"]) == correct
    assert_same(after.params, descended(state.params, grads))


def test_each_label_of_a_mixed_image_weighs_as_its_class(optimizer, state):
    settings = {"augment.mixup": 0.8, "imbalance.class_weights": "given", "imbalance.weights": {"b": 5.0, "c": 0.2}}
    batch, counts = batch_of(0), np.array([7, 2, 3])
    recipe = with_overrides(Recipe(), settings | {"train.ema_decay": DECAY, "batch_norm.momentum": MOMENTUM})
    keys = record_keys(jax.random.wrap_key_data(state.key), batch.epoch, batch.record)
    mixed = mix(batch.image, batch.label, batch.weight, keys, recipe.augment)
    images, others, share = jax.tree.map(np.asarray, mixed)
    weights = np.array([1, 5, 0.2]) * counts.sum() / (np.array([1, 5, 0.2]) @ counts)

    def errors(logits, _):
        (mine, of_mine), (theirs, of_theirs) = (
            softmax_errors(logits, np.eye(CLASSES)[labels]) for labels in (batch.label, others)
        )
        own, other = share * weights[batch.label], (1 - share) * weights[others]
        return own * mine + other * theirs, own[:, None] * of_mine + other[:, None] * of_theirs

    params = jax.tree.map(np.float64, state.params)
    loss, _, grads = numpy_gradients(params, batch._replace(image=images), errors)
    weighted = loss_of(recipe, counts, class_names=("a", "b", "c"))
    step = linear_step(optimizer, recipe, weighted)
    after, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert_same(after.params, descended(state.params, grads))


def test_what_is_erased_is_the_mean_colour(step_with, state):
    batch = batch_of(0)
    step = step_with(**{"augment.erase": 1.0})
    after, _ = step(state, batch)
    darker = {"mean": (1 - MOMENTUM) * (batch.image / 255).mean()}
    # Without a mean to subtract, zeros: the running mean of the pixels falls.
    assert 0 < float(after.stats["mean"]) < darker["mean"]


def test_images_that_are_mirrored_in_turns_are_seen_the_other_way_in_the_next_epoch(step_with, state):
    step, batch = step_with(**{"augment.flip": "alternate"}), batch_of(0)
    first, _ = step(state, batch)
    turned = batch._replace(image=batch.image[:, :, ::-1], epoch=np.ones(BATCH, np.int32))
    assert_same(step(state, turned)[0].params, first.params)
    again, _ = step(state, turned._replace(image=batch.image))
    assert not np.allclose(again.params["kernel"], first.params["kernel"], atol=1e-4)


def test_sharpness_aware_steps_are_those_of_numpy_and_statistics_those_of_the_first_pass(step_with, state):
    batch, rho = batch_of(0), 0.7
    params = jax.tree.map(np.float64, state.params)
    loss, correct, grads = numpy_gradients(params, batch)
    scale = rho / np.sqrt(sum((grad**2).sum() for grad in grads.values()))
    _, _, ahead = numpy_gradients({name: param + scale * grads[name] for name, param in params.items()}, batch)
    after, metrics = step_with(**{"train.sam_rho": rho})(state, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert float(metrics["correct"]) == correct
    assert_same(after.params, descended(params, ahead))
    np.testing.assert_allclose(after.stats["mean"], (1 - MOMENTUM) * (batch.image / 255).mean(), rtol=1e-5)


def test_micro_batches_add_up_to_the_batch(step_with, train_step, state):
    batch = batch_of(0)
    whole, metrics = train_step(state, batch)
    for count in (2, 4):
        found, others = step_with(**{"train.accumulate": count})(state, batch)
        assert_same((found, others), (whole, metrics))


def test_an_update_of_two_batches_finishes_two_steps(step_with, train_step, state):
    batch = batch_of(0)
    once, metrics = train_step(state, batch)
    after, others = step_with(**{"train.batch_size": BATCH // 2})(state, batch)
    assert (int(after.step), int(after.last_good_step)) == (2, 2)
    assert_same((after.params, after.stats, others), (once.params, once.stats, metrics))
    # Averages forget as much as over two steps: at step 0 a tenth is the most that they keep.
    kept = min(DECAY**2, 0.1)
    expected = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, state.params, after.params)
    assert_same(after.ema[0], expected)


def test_a_batch_that_is_not_finite_leaves_the_state_and_counts_the_step(train_step, state):
    state, _ = train_step(state, batch_of(0))
    after, metrics = train_step(state, batch_of(1, poisoned=True))
    assert float(metrics["finite"]) == 0
    assert (int(after.step), int(after.last_good_step)) == (2, 1)
    jax.tree.map(np.testing.assert_array_equal, replace(after, step=state.step), state)
    again, metrics = train_step(after, batch_of(2))
    assert float(metrics["finite"]) == 1
    assert (int(again.step), int(again.last_good_step)) == (3, 3)
    assert not np.array_equal(again.params["kernel"], state.params["kernel"])


@pytest.mark.parametrize("overrides", [{"train.accumulate": 4}, {"train.sam_rho": 0.1}], ids=["accumulating", "sam"])
def test_one_micro_batch_that_is_not_finite_is_enough(step_with, state, overrides):
    after, metrics = step_with(**overrides)(state, batch_of(1, poisoned=True))
    assert float(metrics["finite"]) == 0
    jax.tree.map(np.testing.assert_array_equal, replace(after, step=state.step), state)


def test_a_batch_without_any_weight_changes_no_parameter_and_is_finite(train_step, state):
    after, metrics = train_step(state, batch_of(0)._replace(weight=np.zeros(BATCH, np.float32)))
    assert (float(metrics["loss"]), float(metrics["weight"]), float(metrics["finite"])) == (0, 0, 1)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


def test_running_statistics_keep_the_momentums_share():
    found = moved({"mean": jnp.float32(2)}, {"mean": jnp.float32(10)}, 0.75)
    assert float(found["mean"]) == 4


def test_the_key_is_constant_so_that_augmentation_depends_on_epoch_and_record_only(train_step, state):
    after, _ = train_step(state, batch_of(0))
    np.testing.assert_array_equal(after.key, state.key)


def test_without_averages_the_trained_weights_are_delivered(optimizer):
    state = state_of({"kernel": jnp.ones((4, 3))}, {}, optimizer, 0, ema=False)
    assert state.ema is None
    assert state.deliverable == (state.params, state.stats)


@pytest.mark.parametrize("ema", [False, True])
def test_statistics_taken_anew_are_those_that_are_delivered(optimizer, ema):
    state = state_of({"kernel": jnp.ones((4, 3))}, {"mean": jnp.float32(0)}, optimizer, 0, ema=ema)
    found = state.with_deliverable_stats({"mean": jnp.float32(5)})
    assert float(found.deliverable[1]["mean"]) == 5
    assert float(found.stats["mean"]) == (0 if ema else 5)


def test_the_best_evaluation_is_kept(state):
    assert float(state.best_top1) == -1
    assert float(state.with_best(0.5).with_best(0.25).best_top1) == 0.5


# The network of every kind of layer


@pytest.fixture(scope="module")
def one_step(program, batch_at, host_copy):
    """A function from overrides to the state and the metrics after a step on one device, compiled for a platform."""

    def take(platform="cpu", **overrides):
        some = program(1, **{"batch_norm.over": "groups", "batch_norm.group_size": 4, "model.dropout": 0.5} | overrides)
        step = make_train_step(some.gradients_of(0), some.optimizer, some.recipe)
        with compiling_for(platform):
            return host_copy(jax.jit(step)(some.initial_state(), batch_at(0)))

    return take


@pytest.fixture(scope="module")
def whole_batch(one_step):
    return one_step()


@pytest.mark.parametrize(("count", "platform"), [(2, "cpu"), (4, "cpu"), (2, "tpu")])
def test_with_groups_and_dropout_accumulation_changes_no_number(one_step, whole_batch, count, platform):
    found = one_step(platform, **{"train.accumulate": count})
    for some, other in zip(jax.tree.leaves(found), jax.tree.leaves(whole_batch), strict=True):
        np.testing.assert_allclose(some, other, rtol=1e-5, atol=1e-5 * max(1e-3, np.abs(other).max()))


def test_over_the_whole_batch_accumulation_normalises_micro_batches(one_step):
    overrides = {"batch_norm.over": "global", "batch_norm.group_size": 0}
    (_, whole), (_, halves) = one_step(**overrides), one_step(**overrides, **{"train.accumulate": 2})
    assert abs(float(halves["loss"]) / float(whole["loss"]) - 1) > 1e-4


def test_dropout_changes_the_update(one_step, whole_batch):
    _, without = one_step(**{"model.dropout": 0.0})
    assert abs(float(without["loss"]) / float(whole_batch[1]["loss"]) - 1) > 1e-3


def test_bfloat16_computes_almost_the_same_and_keeps_a_float32_state(one_step, whole_batch):
    state, metrics = one_step(**{"train.precision": "bfloat16"})
    assert float(metrics["loss"]) == pytest.approx(float(whole_batch[1]["loss"]), rel=0.02)
    for tree in (state.params, state.stats, state.opt_state):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(tree)} <= {"float32", "int32"}


def test_class_weights_hold_from_the_step_that_is_named(optimizer, state):
    settings = {"train.ema_decay": DECAY, "imbalance.class_weights": "inverse"}
    counts, recipe = np.array([90, 9, 1]), with_overrides(Recipe(), settings)
    loss = loss_of(recipe, counts, weighted_from=1)
    step = linear_step(optimizer, recipe, loss)
    batch = batch_of(0)
    assert step(state, batch)[1]["loss"] == pytest.approx(numpy_gradients(state.params, batch)[0], rel=1e-5)
    mine = class_weights("inverse", counts)[batch.label]

    def weighted_errors(logits, target):
        losses, errors = softmax_errors(logits, target)
        return losses * mine, errors * mine[:, None]

    later, metrics = step(replace(state, step=state.step + 1), batch)
    loss, _, gradients = numpy_gradients(state.params, batch, weighted_errors)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(
        later.params["kernel"], state.params["kernel"] - LR * gradients["kernel"], rtol=1e-4, atol=1e-5
    )
