"""What is learned of a teacher, beside its formula, and what the teacher sees."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax

from pcls.config.distill import DistillSection
from pcls.data.augment import normalise
from pcls.data.preprocessing import Preprocessing, SequenceFeatures
from pcls.training.distillation import Taught, as_seen_by, distilled, divergence, similarity_gap

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 6, 4)).astype(np.float32) * 3
GREY = Preprocessing(height=8, width=8, channels=1, mean=(0.2,), std=(0.3,))
RGB = Preprocessing(height=8, width=8, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def test_the_divergence_of_one_distribution_is_that_of_kullback_and_leibler():
    expected, found = log_softmax(TEACHER.astype(np.float64), -1), log_softmax(STUDENT.astype(np.float64), -1)
    by_formula = (np.exp(expected) * (expected - found)).sum(-1)
    np.testing.assert_allclose(divergence(STUDENT, TEACHER, exclusive=True), by_formula, rtol=1e-5)
    np.testing.assert_allclose(divergence(TEACHER, TEACHER, exclusive=True), 0, atol=1e-6)


def test_where_classes_do_not_exclude_each_other_each_has_its_own():
    yes, said = expit(TEACHER.astype(np.float64)), expit(STUDENT.astype(np.float64))
    by_formula = (yes * np.log(yes / said) + (1 - yes) * np.log((1 - yes) / (1 - said))).mean(-1)
    np.testing.assert_allclose(divergence(STUDENT, TEACHER, exclusive=False), by_formula, rtol=1e-4)


def test_the_gradient_of_a_warm_comparison_is_as_large_as_that_of_a_cold_one():
    def pull(temperature):
        section = DistillSection(teacher="t", share=1.0, temperature=temperature)
        taught = Taught(jnp.asarray(TEACHER / 100), None)
        loss = lambda logits: distilled(section, 0.0, logits, None, taught, np.ones(6), "softmax").sum()  # noqa: E731
        return np.linalg.norm(jax.grad(loss)(jnp.asarray(STUDENT / 100)))

    assert pull(10.0) == pytest.approx(pull(1.0), rel=0.02)


def test_share_and_features_weigh_the_parts():
    labels, weight = np.linspace(1, 2, 6), np.array([1, 1, 1, 1, 1, 0.0])
    features, entering = RNG.normal(size=(6, 3)).astype(np.float32), RNG.normal(size=(6, 7)).astype(np.float32)
    section = DistillSection(teacher="t", share=0.25, temperature=3.0, features=2.0)
    found = distilled(section, labels, STUDENT, features, Taught(TEACHER, entering), weight, "softmax")
    parts = 9 * divergence(STUDENT / 3, TEACHER / 3, exclusive=True)
    expected = 0.75 * labels + 0.25 * parts + 2 * similarity_gap(features, entering, weight)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_similarities_are_compared_between_networks_of_any_width_and_without_what_does_not_count():
    features, weight = RNG.normal(size=(5, 3)).astype(np.float32), np.array([1, 1, 1, 1, 0.0])
    turned = features @ np.linalg.qr(RNG.normal(size=(3, 3)))[0].astype(np.float32)
    np.testing.assert_allclose(similarity_gap(features, 4 * turned, weight), 0, atol=1e-6)
    other = features.copy()
    other[4] = 100
    np.testing.assert_allclose(
        similarity_gap(features, other, weight)[:4], similarity_gap(features, features, weight)[:4], atol=1e-6
    )
    assert (similarity_gap(features, RNG.normal(size=(5, 9)).astype(np.float32), weight) > 1e-3).all()


# What the teacher sees


def pixels(*shape):
    return RNG.integers(0, 256, shape).astype(np.uint8)


def test_a_teacher_of_the_same_preprocessing_sees_the_images_as_they_are():
    images = normalise(pixels(2, 8, 8, 1), GREY, jnp.float32)
    assert as_seen_by(GREY, images, GREY, jnp.float32) is images


@pytest.mark.parametrize(
    ("given", "wanted"), [(GREY, replace(GREY, mean=(0.5,), std=(0.1,))), (RGB, replace(RGB, std=(1.0, 0.5, 0.2)))]
)
def test_mean_and_deviation_are_changed(given, wanted):
    images = pixels(2, *given.shape)
    found = as_seen_by(wanted, normalise(images, given, jnp.float32), given, jnp.float32)
    np.testing.assert_allclose(found, normalise(images, wanted, jnp.float32), rtol=1e-4, atol=1e-4)


def test_grey_becomes_rgb_and_rgb_becomes_grey():
    grey = pixels(2, 8, 8, 1)
    found = as_seen_by(RGB, normalise(grey, GREY, jnp.float32), GREY, jnp.float32)
    np.testing.assert_allclose(found, normalise(np.repeat(grey, 3, -1), RGB, jnp.float32), rtol=1e-4, atol=1e-4)
    rgb = pixels(2, 8, 8, 3)
    found = as_seen_by(GREY, normalise(rgb, RGB, jnp.float32), RGB, jnp.float32)
    weighed = (rgb * np.array([0.299, 0.587, 0.114])).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, normalise(weighed, GREY, jnp.float32), rtol=1e-4, atol=1e-4)


def test_another_size_is_resized():
    even = np.full((2, 8, 8, 1), 51, np.uint8)
    found = as_seen_by(replace(GREY, height=16, width=4), normalise(even, GREY, jnp.float32), GREY, jnp.bfloat16)
    assert found.shape == (2, 16, 4, 1) and found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), 0, atol=1e-2)


def test_padded_steps_of_sequences_stay_zero():
    features = SequenceFeatures("values")
    given = Preprocessing(height=5, width=2, channels=1, mean=(1.0, 2.0), std=(2.0, 3.0), sequence=features)
    wanted = replace(given, mean=(0.0, 1.0), std=(1.0, 2.0))
    steps, lengths = RNG.normal(size=(3, 5, 2, 1)).astype(np.float32), np.array([5, 3, 1], np.int32)
    found = as_seen_by(wanted, normalise(steps, given, jnp.float32, lengths), given, jnp.float32, lengths)
    np.testing.assert_allclose(found, normalise(steps, wanted, jnp.float32, lengths), rtol=1e-4, atol=1e-5)
    assert (np.asarray(found)[2, 1:] == 0).all()
