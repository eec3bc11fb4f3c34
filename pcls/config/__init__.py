"""The recipe: one frozen, validated description of a run, from YAML and `key=value` overrides."""

from pcls.config.duration import Duration
from pcls.config.load import dump_recipe, find_recipe, flat_recipe, load_recipe, named_recipes, with_overrides
from pcls.config.schema import Recipe

__all__ = [
    "Duration",
    "Recipe",
    "dump_recipe",
    "find_recipe",
    "flat_recipe",
    "load_recipe",
    "named_recipes",
    "with_overrides",
]
