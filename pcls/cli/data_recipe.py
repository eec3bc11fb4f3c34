"""What the verbs of `pcls data` are told: data in one word, or a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pcls.errors import UserError

if TYPE_CHECKING:
    from pcls.config import Recipe
    from pcls.config.data import DataSection


def data_recipe(word: str, overrides: Sequence[str]) -> Recipe:
    """The recipe that a word means: a recipe's file or name, or data for an otherwise default one.

    Raises:
      UserError: neither, or an override that is not valid.
    """
    from pcls.config import Recipe, load_recipe, with_overrides
    from pcls.config.load import named_recipes
    from pcls.data.dataset import data_settings

    if Path(word).suffix in (".yaml", ".yml") or word in named_recipes():
        return load_recipe(word, overrides)
    return with_overrides(with_overrides(Recipe(), data_settings(word)), overrides)


def check_pictures(section: DataSection, verb: str) -> None:
    """UserError for a set of sequences.

    Args:
      section: of the recipe.
      verb: what was asked for, as in `show`.
    """
    if section.holds_sequences:
        raise UserError(
            f"pcls data {verb} is for pictures, and data.source={section.source} holds sequences; "
            "pcls data info tells of them"
        )
