"""The data that a run began with: what is kept of them, and whether they are still the same."""

from __future__ import annotations

import hashlib
import os
from itertools import zip_longest
from typing import Any

from pcls.config import Recipe, flat_recipe
from pcls.data.dataset import Dataset
from pcls.data.sources.remote import without_secrets
from pcls.data.sources.source import Source
from pcls.errors import UserError
from pcls.run.folder import RunFolder

DATA = "data.json"
# What decides which records there are, and which of them are held out.
DECIDING = (
    *("source", "path", "quarantine", "labels", "label_columns", "classes", "per_class", "validation", "long_tail"),
    *("split_seed", "test_match"),
)


def keep_data(folder: RunFolder, dataset: Dataset) -> None:
    """Notes what the data are."""
    folder.write_json(DATA, data_facts(dataset))


def data_facts(dataset: Dataset) -> dict[str, Any]:
    """The classes in their order, how many records are trained on and held out, and which are held out."""
    return {
        "class_names": list(dataset.class_names),
        "records": len(dataset.train),
        "held_out": len(dataset.evaluation),
        "held_out_names": names_digest(dataset.evaluation),
    }


def names_digest(source: Source) -> str:
    """SHA-256 over the sorted names of records, without what all begin with: the same wherever the set lies.

    Labels are left out: one that was corrected leaves the held-out records what they were.
    """
    names = sorted(source.name(record) for record in range(len(source)))
    # Of sorted names, what the first and the last begin with.
    shared = len(os.path.commonprefix([names[0], names[-1]])) if names else 0  # noqa: RUF071
    sha = hashlib.sha256()
    for name in names:
        sha.update(f"{name[shared:]}\n".encode("utf-8", "backslashreplace"))
    return f"sha256:{sha.hexdigest()}"


def check_held_out(folder: RunFolder, recipe: Recipe, dataset: Dataset) -> None:
    """UserError where the classes or the held-out records are not those that the run began with.

    Args:
      folder: of the run.
      recipe: of the run.
      dataset: what its data are now.
    """
    if change := held_out_change(folder, recipe, dataset):
        raise UserError(
            f"{change}: restore the data, or evaluate on a set of its own: pcls eval {folder.path} --data FOLDER"
        )


def change_of_data(folder: RunFolder, recipe: Recipe, dataset: Dataset) -> str:
    """What the user should know of the data that a run goes on training with; empty: nothing.

    Where the user has named other data, records may be others than those that the run began with; its classes never.

    Args:
      folder: of the run.
      recipe: to go on with; the folder has the one before.
      dataset: of that recipe.

    Raises:
      UserError: the classes differ, or the records do and the recipe names the same.
    """
    kept = folder.read_json(DATA)
    change = held_out_change(folder, recipe, dataset)
    if not change and kept and len(dataset.train) != kept["records"]:
        change = f"{name_of(recipe)} {_counts(dataset)}; the run began with {kept['records']:,} to train on"
    old, new = flat_recipe(folder.recipe()), flat_recipe(recipe)
    if not change or any(old[f"data.{key}"] != new[f"data.{key}"] for key in DECIDING):
        return change
    raise UserError(
        f"{change}: restore the data, or train a new run from this one: pcls finetune DATA --model {folder.path}"
    )


def held_out_change(folder: RunFolder, recipe: Recipe, dataset: Dataset) -> str:
    """How the held-out records differ from those that the run began with, in words; empty: they do not.

    A run of an older version has not kept what it began with: nothing is known to differ.

    Raises:
      UserError: the classes differ: the model's outputs would be read as other ones.
    """
    kept = folder.read_json(DATA)
    if kept is None:
        return ""
    _check_classes(folder, name_of(recipe), tuple(kept["class_names"]), dataset.class_names)
    if kept["held_out_names"] == names_digest(dataset.evaluation):
        return ""
    began = f"{kept['records']:,} and {kept['held_out']:,}"
    same = (kept["records"], kept["held_out"]) == (len(dataset.train), len(dataset.evaluation))
    other = "holds out other records than when the run began" if same else f"{_counts(dataset)}; it began with {began}"
    return f"{name_of(recipe)} {other}, and some that are held out now may have been trained on"


def name_of(recipe: Recipe) -> str:
    """What messages call a run's data."""
    return without_secrets(recipe.data.path) or recipe.data.source


def _counts(dataset: Dataset) -> str:
    records = dataset.preprocessing.records
    return f"now has {len(dataset.train):,} training and {len(dataset.evaluation):,} held-out {records}"


def _check_classes(folder: RunFolder, name: str, began: tuple[str, ...], now: tuple[str, ...]) -> None:
    pairs = enumerate(zip_longest(began, now))
    found = next(((number, *pair) for number, pair in pairs if pair[0] != pair[1]), None)
    if found is None:
        return
    number, old, new = found
    was, is_now = ("none" if each is None else repr(each) for each in (old, new))
    raise UserError(
        f"{name}: has {len(now):,} classes, and the run began with {len(began):,}: class {number} is {is_now} and was "
        f"{was}; give the classes their names back, or train a new run from this one: "
        f"pcls finetune DATA --model {folder.path}"
    )
