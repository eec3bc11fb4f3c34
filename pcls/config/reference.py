"""Every key of the recipe with its default, what is allowed and what it means, out of the schema itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml
from pydantic import BaseModel

from pcls.config.load import described_field, flat_recipe
from pcls.config.schema import Recipe


@dataclass(frozen=True)
class Key:
    """A key of the recipe.

    Attributes:
      name: with its section, as in `train.batch_size`.
      default: as a recipe dump shows it.
      allowed: in words.
      meaning: the schema's description.
    """

    name: str
    default: str
    allowed: str
    meaning: str


def recipe_keys() -> Iterator[Key]:
    """All keys in the schema's order."""
    defaults = flat_recipe(Recipe())
    for section, info in Recipe.model_fields.items():
        kind = info.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            raise TypeError(f"{section} is no section")
        meanings = attribute_texts(inspect.getdoc(kind) or "")
        for leaf in kind.model_fields:
            name = f"{section}.{leaf}"
            # As YAML writes it: '' for no text, null for nothing.
            default = yaml.safe_dump(defaults[name], default_flow_style=True).removesuffix("\n...\n").strip()
            yield Key(name, default, described_field(name), meanings[leaf])


def attribute_texts(docstring: str) -> dict[str, str]:
    """The names under `Attributes:` with their texts; several names may share one: `b1, b2: ...`."""
    _, _, block = docstring.partition("Attributes:\n")
    texts: dict[str, str] = {}
    for entry in re.split(r"\n(?=  \S)", block):
        names, _, text = entry.strip().partition(":")
        for name in names.split(", "):
            texts[name] = " ".join(text.split())
    return texts
