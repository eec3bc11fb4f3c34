"""What a teacher says of a batch, and what of it is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pcls.config.distill import DistillSection
from pcls.data.augment import normalise
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import GREY, RGB, Preprocessing
from pcls.nn.module import Arrays, ModelDef

# Of red, green and blue in grey. Source: ITU-R BT.601.
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Teacher:
    """A trained network that does not learn any more.

    Attributes:
      model: without its arrays.
      preprocessing: what its weights expect.
      precision: type of its activations.
      params, stats: by path, on the host.
      answers: [records, classes] float32 logits for the training set; None: it is asked at each step.
    """

    model: ModelDef
    preprocessing: Preprocessing
    precision: str
    params: Arrays
    stats: Arrays
    answers: np.ndarray | None = None

    @property
    def given(self) -> Any:
        """What a compiled step takes of it besides state and batch."""
        return (self.params, self.stats) if self.answers is None else self.answers


class Taught(NamedTuple):
    """What a teacher says of a batch.

    Attributes:
      logits: [batch, classes].
      features: [batch, n] that enter its head; None: nobody asks.
    """

    logits: Array
    features: Array | None


# (what the step is given of the teacher, [batch, ...] normalised images, their batch) to what the teacher says of them.
Teaching = Callable[[Any, Array, Batch], Taught]


def make_teaching(teacher: Teacher, preprocessing: Preprocessing, *, features: bool) -> Teaching:
    """How a teacher is asked inside a training step.

    Args:
      teacher: of the run.
      preprocessing: by which the images of the step were normalised.
      features: whether what enters its head is wanted too.
    """
    dtype = jnp.dtype(teacher.precision)

    def ask(given: Any, images: Array, batch: Batch) -> Taught:
        if teacher.answers is not None:
            return Taught(given[batch.record], None)
        params, stats = given
        seen = as_seen_by(teacher.preprocessing.training, images, preprocessing, dtype, batch.length)
        entered: list[Array] | None = [] if features else None
        logits, _ = teacher.model.apply(params, stats, seen, lengths=batch.length, entered=entered)
        return jax.lax.stop_gradient(Taught(logits, entered[0] if entered else None))

    return ask


def as_seen_by(
    wanted: Preprocessing, images: Array, given: Preprocessing, dtype: jnp.dtype, lengths: Array | None = None
) -> Array:
    """Normalised images as another network wants them: of its size, its channels, its mean and deviation.

    Args:
      wanted: of the other network.
      images: [batch, height, width, channels], or sequences [batch, steps, features, 1].
      given: by which they were normalised.
      dtype: of the result.
      lengths: [batch], steps of sequences that count.
    """
    if (wanted.shape, wanted.mean, wanted.std) == (images.shape[1:], given.mean, given.std):
        return images.astype(dtype)
    mean, std = jnp.asarray(given.mean, jnp.float32), jnp.asarray(given.std, jnp.float32)
    images = images.astype(jnp.float32)
    if given.sequence is not None:
        return normalise(images * std[:, None] + mean[:, None], wanted, dtype, lengths)
    pixels = 255 * (images * std + mean)
    if wanted.channels == RGB and given.channels == GREY:
        pixels = jnp.repeat(pixels, RGB, -1)
    if wanted.channels == GREY and given.channels == RGB:
        pixels = (pixels @ jnp.array(LUMA, jnp.float32))[..., None]
    if wanted.shape[:2] != images.shape[1:3]:
        pixels = jax.image.resize(pixels, (len(pixels), *wanted.shape), "linear")
    return normalise(pixels, wanted, dtype)


def distilled(
    section: DistillSection,
    losses: Array,
    logits: Array,
    features: Array | None,
    taught: Taught,
    weight: Array,
    loss: str,
) -> Array:
    """[batch] losses by labels and teacher.

    Args:
      section: of the recipe.
      losses: [batch], by the labels.
      logits, features: [batch, classes], and if they are learned [batch, n], of the student.
      taught: by the teacher.
      weight: [batch], 0 for what does not count.
      loss: `train.loss`; by `softmax` classes exclude each other.
    """
    by_teacher = section.temperature**2 * divergence(
        logits / section.temperature, taught.logits / section.temperature, exclusive=loss == "softmax"
    )
    losses = (1 - section.share) * losses + section.share * by_teacher
    if features is None or taught.features is None:
        return losses
    return losses + section.features * similarity_gap(features, taught.features, weight)


def divergence(student: Array, teacher: Array, *, exclusive: bool) -> Array:
    """[batch] Kullback-Leibler divergence of the student's distribution from the teacher's, in nats, in float32.

    Args:
      student, teacher: [batch, classes] logits.
      exclusive: of one distribution over the classes; else the mean over those of yes and no for each class.
    """
    student, teacher = student.astype(jnp.float32), teacher.astype(jnp.float32)
    if exclusive:
        expected, found = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
        return jnp.sum(jnp.exp(expected) * (expected - found), -1)
    gaps = [
        jax.nn.sigmoid(sign * teacher) * (jax.nn.log_sigmoid(sign * teacher) - jax.nn.log_sigmoid(sign * student))
        for sign in (1, -1)
    ]
    return jnp.mean(gaps[0] + gaps[1], -1)


def similarity_gap(student: Array, teacher: Array, weight: Array) -> Array:
    """[batch] squared distance between the similarities of each example to all of the batch, in both networks.

    Args:
      student, teacher: [batch, n] and [batch, m].
      weight: [batch], 0 for examples that do not count.
    """

    def similarities(features: Array) -> Array:
        products = features.astype(jnp.float32) @ features.astype(jnp.float32).T * weight
        return products / jnp.maximum(jnp.linalg.norm(products, axis=-1, keepdims=True), 1e-12)

    return jnp.sum((similarities(student) - similarities(teacher)) ** 2, -1)
