"""Maps of where a model looks: they point at what the model uses, and sum to what they explain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.evaluation.saliency import (
    AGAINST,
    FOR,
    coloured,
    grad_cam,
    gradient_times_input,
    integrated_gradients,
    patch_relevance,
    step_relevance,
)

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(2, 6, 8, 2)), jnp.float32)
CLASSES = jnp.array([2, 0])


def own(logits: jax.Array) -> np.ndarray:
    return np.asarray(jnp.take_along_axis(logits, CLASSES[:, None], 1)[:, 0])


@pytest.mark.parametrize("method", [gradient_times_input, integrated_gradients])
def test_a_model_that_looks_at_one_corner_is_explained_by_that_corner(method) -> None:
    def corner(images: jax.Array) -> jax.Array:
        seen = jnp.tanh(images[:, :2, 5:]).sum((1, 2))
        return jnp.stack([seen[:, 0], -seen[:, 1], seen.sum(-1)], -1)

    relevance = np.array(method(corner, IMAGES, CLASSES))
    assert (relevance[:, :2, 5:, 0] != 0).all()
    # The second channel has no part in the first class.
    assert (relevance[1, ..., 1] == 0).all()
    relevance[:, :2, 5:] = 0
    assert (relevance == 0).all()


def test_gradient_times_input_is_the_terms_of_a_linear_model() -> None:
    weights = jnp.asarray(RNG.normal(size=(6 * 8 * 2, 3)), jnp.float32)
    relevance = gradient_times_input(lambda x: x.reshape(len(x), -1) @ weights + 5.0, IMAGES, CLASSES)
    terms = np.asarray(IMAGES).reshape(2, -1) * np.asarray(weights)[:, np.asarray(CLASSES)].T
    np.testing.assert_allclose(np.asarray(relevance).reshape(2, -1), terms, rtol=1e-5)


def test_integrated_gradients_sum_to_the_score_minus_that_of_zeros_where_gradient_times_input_does_not() -> None:
    weights = jnp.asarray(RNG.normal(size=(6 * 8 * 2, 3)), jnp.float32)

    def predict(images: jax.Array) -> jax.Array:
        return jnp.tanh(images.reshape(len(images), -1) @ weights / 10) + 1.0

    difference = own(predict(IMAGES)) - own(predict(0 * IMAGES))
    sums = np.asarray(integrated_gradients(predict, IMAGES, CLASSES, steps=64).sum((1, 2, 3)))
    np.testing.assert_allclose(sums, difference, atol=1e-3)
    rough = np.asarray(gradient_times_input(predict, IMAGES, CLASSES).sum((1, 2, 3)))
    assert np.abs(rough - difference).max() > 0.05


def test_grad_cam_weighs_each_channel_by_its_mean_gradient_and_leaves_out_what_speaks_against() -> None:
    maps = jnp.abs(IMAGES)
    head = jnp.array([[1.0, 0.0, -3.0], [-2.0, 1.0, 1.0]])
    found = np.asarray(grad_cam(lambda m: m.mean((1, 2)) @ head, maps, CLASSES))
    by_hand = np.stack([np.asarray(maps[i]) @ np.asarray(head)[:, c] / 48 for i, c in enumerate([2, 0])])
    assert (by_hand < 0).any()
    np.testing.assert_allclose(found, np.maximum(by_hand, 0), rtol=1e-5, atol=1e-7)


def test_the_relevance_of_a_step_is_the_sum_of_what_it_reads() -> None:
    relevance = np.arange(24.0).reshape(2, 4, 3)
    assert step_relevance(relevance, "rows").tolist() == [sum(range(12)), sum(range(12, 24))]
    assert step_relevance(relevance, "columns").tolist() == [42, 60, 78, 96]
    patches = patch_relevance(relevance, 2)
    assert patches.tolist() == [[102, 102, 174, 174]] * 2


def test_what_speaks_for_a_class_is_blue_and_what_against_orange() -> None:
    picture = np.full((1, 3, 1), 100, np.uint8)
    strongest_for, none, half_against = coloured(picture, np.array([[4.0, 0.0, -2.0]]))[0].astype(int)
    assert none.tolist() == [170] * 3
    assert strongest_for[2] - strongest_for[0] > 0.8 * (FOR[2] - FOR[0])
    assert half_against[0] - half_against[2] > 0.5 * (AGAINST[0] - AGAINST[2])
    assert (coloured(picture, np.zeros((1, 3))) == 170).all()
