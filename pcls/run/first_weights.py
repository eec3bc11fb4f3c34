"""Weights that a run starts from where the model computes some of them from training images."""

from __future__ import annotations

import jax
import numpy as np

from pcls.models.registry import model_entry
from pcls.nn.module import Arrays
from pcls.run.setup import Setup

# Images that are looked at, and the bytes that they may take as numbers.
IMAGES, BYTES = 5000, 2**28


def weights_from_images(setup: Setup) -> tuple[Arrays, Arrays] | None:
    """Parameters and statistics on the host: drawn from the seed, but for what is computed from training images.

    None where the model computes nothing from them.
    """
    of_images = model_entry(setup.recipe.model.name).from_images
    if of_images is None:
        return None
    params, stats = jax.device_get(jax.jit(setup.model.init)(jax.random.key(setup.recipe.train.seed)))
    return {**params, **of_images(_some_images(setup))}, stats


def _some_images(setup: Setup) -> np.ndarray:
    """[n, height, width, channels] float32, normalised; from all over the set, which may be sorted by class."""
    source, image = setup.dataset.train, setup.preprocessing.training
    count = min(len(source), IMAGES, max(1, BYTES // (4 * image.height * image.width * image.channels)))
    records = source.read(np.linspace(0, len(source) - 1, count).astype(np.int64), image, None)
    mean, std = np.array(image.mean, np.float32), np.array(image.std, np.float32)
    return (records.images[records.decoded] / np.float32(255) - mean) / std
