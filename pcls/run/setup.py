"""A recipe put together with its data, all checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from pcls.config import Recipe
from pcls.data.dataset import Dataset, open_dataset
from pcls.data.preprocessing import Preprocessing
from pcls.errors import UserError
from pcls.parallel.mesh import replicated
from pcls.parallel.processes import everywhere
from pcls.training.program import Program, make_program
from pcls.training.resident import Images


@dataclass(frozen=True)
class Setup(Program):
    """The program of a recipe, and the data that it runs on."""

    dataset: Dataset


def prepare(recipe: Recipe, preprocessing: Preprocessing | None = None) -> Setup:
    """Opens the data and checks that recipe, data, model and devices fit together.

    Args:
      recipe: validated by itself.
      preprocessing: that of pretrained weights; None: worked out from the data.

    Raises:
      UserError: one line that says what does not fit.
    """
    dataset = open_dataset(recipe.data, preprocessing)
    classes, records = len(dataset.class_names), len(dataset.train)
    program = make_program(recipe, dataset.preprocessing, classes=classes, records=records)
    return Setup(**vars(program), dataset=dataset)


def images_on_devices(setup: Setup) -> Images:
    """The whole training set, on every device.

    Raises:
      UserError: files that are cut anew each epoch, images that cannot be decoded, or more than the memory holds.
    """
    dataset, size = setup.dataset, len(setup.dataset.train)
    if not dataset.in_memory and setup.recipe.data.train_crop != "center":
        raise UserError(
            "data.on_device keeps each image once, and data.train_crop=random cuts it anew each epoch; "
            "write data.train_crop=center, or data.on_device=false"
        )
    image = setup.preprocessing
    needed = size * image.height * image.width * image.channels
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if memory and needed > memory // 2:
        raise UserError(
            f"data.on_device: the {size:,} images take {needed / 1e9:.1f} GB, more than half of a device's "
            f"{memory / 1e9:.1f} GB; write data.on_device=false"
        )
    records = dataset.train.read(np.arange(size), image, None)
    if not records.decoded.all():
        bad = int(np.flatnonzero(~records.decoded)[0])
        raise UserError(
            f"{dataset.train.name(bad)} {dataset.train.failure(bad, image)}; data.on_device needs every image; "
            "mend or remove the file"
        )
    return everywhere(Images(records.images, records.labels), replicated(setup.mesh))
