"""What the verbs of `pcls data` are told: data in one word, or a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pcls.config import Recipe


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
