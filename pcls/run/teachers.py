"""The teacher that a recipe names, fitted to the run."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pcls.config.schema import AugmentSection
from pcls.data.augment import normalise
from pcls.data.pipeline import Batch, evaluation_batches
from pcls.data.workers import usable_cores
from pcls.errors import UserError
from pcls.nn.module import Arrays
from pcls.parallel.mesh import replicated
from pcls.parallel.processes import everywhere, place
from pcls.pretrained.bundle import Bundle
from pcls.run.bundles import open_bundle
from pcls.run.features import check_memory
from pcls.run.setup import Setup
from pcls.training.distillation import Teacher, as_seen_by


def with_teacher(setup: Setup) -> Setup:
    """The setup of a run that is trained, with the teacher that its recipe names, if any.

    Raises:
      UserError: there is no such network, it tells other classes, sees something else, or cannot be cached.
    """
    section = setup.recipe.distill
    if not section.teacher:
        return setup
    try:
        bundle = open_bundle(section.teacher)
    except UserError as error:
        raise UserError(f"distill.teacher {error}; relative paths start in the working directory") from error
    _check(setup, bundle)
    model, params = bundle.runnable()
    teacher = Teacher(model, bundle.preprocessing, bundle.precision, params, dict(bundle.stats))
    if section.cache:
        teacher = replace(teacher, answers=answers_of(setup, teacher))
    return replace(setup, teacher=teacher)


def _check(setup: Setup, bundle: Bundle) -> None:
    path, ours, theirs = setup.recipe.distill.teacher, setup.dataset.preprocessing, bundle.preprocessing
    if bundle.class_names != setup.dataset.class_names:
        differ = [
            f"{theirs!r} there, {ours!r} here"
            for theirs, ours in zip(bundle.class_names, setup.dataset.class_names, strict=False)
            if theirs != ours
        ]
        what = differ[0] if differ else f"{len(bundle.class_names)} there, {len(setup.dataset.class_names)} here"
        raise UserError(
            f"distill.teacher {path}: tells other classes, or in another order ({what}); fine-tune it on this data "
            f"first: pcls finetune DATA --model {path}"
        )
    if (ours.sequence is None) != (theirs.sequence is None):
        raise UserError(f"distill.teacher {path}: sees {theirs.records}, and the data are {ours.records}")
    if ours.sequence is not None and (ours.sequence, ours.width) != (theirs.sequence, theirs.width):
        raise UserError(f"distill.teacher {path}: was trained on other features of a step than these data have")
    if ours.sequence is not None and not bundle.definition().takes_lengths:
        raise UserError(f"distill.teacher {path}: sees sequences of one length; choose a teacher that takes lengths")
    if ours.channels != theirs.channels and {ours.channels, theirs.channels} != {1, 3}:
        raise UserError(f"distill.teacher {path}: sees {theirs.channels} channels, and the images have {ours.channels}")


def answers_of(setup: Setup, teacher: Teacher) -> np.ndarray:
    """[records, classes] float32: the teacher's logits for each training record, as the run sees it in every epoch.

    Raises:
      UserError: the run sees a record otherwise in each epoch, or the answers take too much memory.
    """
    dataset, recipe = setup.dataset, setup.recipe
    if recipe.augment != AugmentSection() or (setup.random_crop and not dataset.in_memory) or recipe.data.progressive:
        raise UserError(
            "distill.cache is for runs that see a record the same in each epoch, and augment, data.train_crop or "
            "data.progressive change it; leave it out: the teacher is then asked at each step"
        )
    size, preprocessing = setup.plan.batch_size, setup.preprocessing.training
    found = np.zeros((len(dataset.train), setup.classes), np.float32)
    check_memory(found.nbytes, "distill.cache: the teacher's answers")
    dtype = jnp.dtype(recipe.train.precision)

    def answer(params: Arrays, stats: Arrays, batch: Batch) -> tuple[Array, Array]:
        images = normalise(batch.image, preprocessing, dtype, batch.length)
        seen = as_seen_by(
            teacher.preprocessing.training, images, preprocessing, jnp.dtype(teacher.precision), batch.length
        )
        logits, _ = teacher.model.apply(params, stats, seen, lengths=batch.length)
        return logits.astype(jnp.float32), jnp.where(batch.weight > 0, batch.record, -1)

    whole = replicated(setup.mesh)
    compiled = jax.jit(answer, in_shardings=(whole, whole, setup.batch_sharding), out_shardings=whole)
    arrays = everywhere((teacher.params, teacher.stats), whole)
    with evaluation_batches(
        dataset.train,
        preprocessing,
        batch_size=size,
        rows=setup.rows(size),
        threads=0 if dataset.in_memory else recipe.data.workers or usable_cores(),
        buckets=dataset.train_buckets if len(dataset.padded) > 1 else (),
    ) as batches:
        for batch in batches:
            logits, records = jax.device_get(compiled(*arrays, place(batch, setup.batch_sharding, size)))
            found[records[records >= 0]] = logits[records >= 0]
    return found
