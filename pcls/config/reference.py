"""Every key of the recipe with its default, what is allowed and what it means, out of the schema itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
    yield from _keys(Recipe, "", flat_recipe(Recipe()))


def _keys(kind: type[BaseModel], prefix: str, defaults: Mapping[str, Any]) -> Iterator[Key]:
    meanings = attribute_texts(inspect.getdoc(kind) or "") if prefix else {}
    for leaf, info in kind.model_fields.items():
        name = f"{prefix}{leaf}"
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _keys(info.annotation, f"{name}.", defaults)
        else:
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
