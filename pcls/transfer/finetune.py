"""Fine-tuning: a recipe derived from pretrained weights and somebody's data."""

from __future__ import annotations

import math
from pathlib import Path

from pcls.config import Recipe, with_overrides
from pcls.config.load import Overrides
from pcls.data.dataset import data_settings, open_dataset
from pcls.run.session import Run
from pcls.run.train import train_recipe
from pcls.transfer.start import open_bundle, start_from

BATCH_SIZE = 32
# Few images need many epochs, many need few: whichever of the two is longer.
MIN_STEPS, EPOCHS = 300, 10


def finetune(source: str | Path, data: str, overrides: Overrides = (), *, keep_head: bool = False) -> Run:
    """Fine-tunes pretrained weights on data, in a new run folder.

    Args:
      source: a finished run, a bundle, or a name of the catalogue.
      data: as `pcls.data.dataset.data_settings` reads it.
      overrides: changes to the recipe that `finetune_recipe` makes.
      keep_head: refuse data of other classes; else they get a new head.
    """
    recipe = finetune_recipe(source, data, overrides)
    return train_recipe(recipe, start_from(source, recipe.model, keep_head=keep_head))


def finetune_recipe(source: str | Path, data: str, overrides: Overrides = ()) -> Recipe:
    """The recipe of a fine-tuning run, its length chosen by the number of images.

    Raises:
      UserError: the weights, the data or the overrides are at fault.
    """
    bundle = open_bundle(source)
    settings = {
        "run.dir": f"runs/{Path(source).name}-finetuned",
        "model.name": bundle.model,
        "model.init": str(source),
        "train.batch_size": BATCH_SIZE,
        "train.precision": bundle.precision,
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-3,
        "optimizer.weight_decay": 1e-4,
        **{f"model.{key}": value for key, value in bundle.options.items()},
    }
    recipe = with_overrides(with_overrides(Recipe(), settings | data_settings(data)), overrides)
    records = len(open_dataset(recipe.data, bundle.preprocessing).train)
    steps = max(MIN_STEPS, math.ceil(EPOCHS * records / recipe.train.batch_size))
    lengths = {
        "train.duration": f"{steps} steps",
        "evaluate.every": f"{math.ceil(steps / 5)} steps",
        "checkpoint.every": f"{math.ceil(steps / 5)} steps",
    }
    return with_overrides(with_overrides(recipe, lengths), overrides)
