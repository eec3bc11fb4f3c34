"""BatchNorm's running statistics taken anew, for weights that training never ran with, such as averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set

import jax
import jax.numpy as jnp
from jax import Array

from pcls.config.schema import Recipe
from pcls.data.augment import alternating, augment, mean_colour, normalise, record_keys
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import Preprocessing
from pcls.nn.module import Arrays, ModelDef
from pcls.nn.training import TrainingPass

StatisticsStep = Callable[[Arrays, Arrays, Array, Batch], tuple[Arrays, Array]]


def make_statistics_step(
    model: ModelDef,
    recipe: Recipe,
    preprocessing: Preprocessing,
    training: TrainingPass,
    frozen: Set[str] = frozenset(),
) -> StatisticsStep:
    """`(params, stats, key, batch) -> statistics of the batch, and its weight`, nothing dropped.

    Each image is augmented as in training. The weight is the number of records, without those that fill up the batch.

    Args:
      model, recipe, preprocessing: of the run.
      training: what BatchNorm normalises over.
      frozen: paths of statistics that stay as they are.
    """

    def statistics_step(params: Arrays, stats: Arrays, key: Array, batch: Batch) -> tuple[Arrays, Array]:
        drawn = jax.random.wrap_key_data(key), batch.epoch, batch.record
        keys, turned = record_keys(*drawn), alternating(*drawn)
        # Neither mixed nor erased: the statistics are for predictions, which see whole images; the mean of two images
        # varies less than each of them.
        images = batch.image
        if batch.length is None:
            images = augment(images, keys, recipe.augment, mean_colour(preprocessing), turned)
        images = normalise(images, preprocessing, jnp.dtype(recipe.train.precision), batch.length)
        return model.apply(params, stats, images, training, batch.length, frozen)[1], batch.weight.sum()

    return statistics_step


def mean_statistics(statistics: Iterable[tuple[Arrays, Array]]) -> Arrays:
    """The mean over one or more batches, by their weights: the last of a bucket may be nearly empty.

    Source: Izmailov et al. 2018, who needed it for averaged weights.
    """
    mean: Arrays = {}
    total: float | Array = 0.0
    for some, weight in statistics:
        total += weight
        # A batch of records that cannot be decoded weighs nothing.
        share = weight / jnp.maximum(total, 1)
        mean = jax.tree.map(lambda old, new: old + (new - old) * share, mean, some) if mean else some  # noqa: B023
    return mean
