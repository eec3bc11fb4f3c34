"""Weights that a run starts from where the model computes some of them from training images."""

from __future__ import annotations

import jax
import numpy as np

from pcls.config import Recipe
from pcls.data.dataset import Dataset
from pcls.models.registry import model_entry
from pcls.nn.module import Arrays, ModelDef

# Images that are looked at, and the bytes that they may take as numbers.
IMAGES, BYTES = 5000, 2**28


def weights_from_images(recipe: Recipe, model: ModelDef, dataset: Dataset) -> tuple[Arrays, Arrays] | None:
    """Parameters and statistics on the host: drawn from the seed, but for what is computed from training images.

    Args:
      recipe, model, dataset: of the run.

    Returns:
      None where the model computes nothing from them.
    """
    of_images = model_entry(recipe.model.name).from_images
    if of_images is None:
        return None
    params, stats = jax.device_get(jax.jit(model.init)(jax.random.key(recipe.train.seed)))
    return {**params, **of_images(_some_images(dataset))}, stats


def _some_images(dataset: Dataset) -> np.ndarray:
    """[n, height, width, channels] float32, normalised; from all over the set, which may be sorted by class."""
    source, image = dataset.train, dataset.preprocessing.training
    count = min(len(source), IMAGES, max(1, BYTES // (4 * image.height * image.width * image.channels)))
    records = source.read(np.linspace(0, len(source) - 1, count).astype(np.int64), image, None)
    mean, std = np.array(image.mean, np.float32), np.array(image.std, np.float32)
    return (records.images[records.decoded] / np.float32(255) - mean) / std
