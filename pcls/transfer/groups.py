"""The layers of a network in the order of their depth, as groups that learn together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

HEAD = "head"
# A dense layer between the features and the head.
HIDDEN = "dense/"
# What carries a number, from the input to the output.
NUMBERED = re.compile(r"^((?:stages|blocks|groups|recurrent/layers)/(\d+))/")
# Layers between those and the head.
ABOVE = re.compile(r"^(norm|last|hidden|dense)/")
STEM, TOP = "stem", "top"


def layer_groups(paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Group to its paths, from the input to the head: the stem, each numbered stage, what lies above them, the head.

    Args:
      paths: of parameters and statistics.
    """
    found: dict[tuple[int, int], tuple[str, list[str]]] = {}
    for path in paths:
        place, name = _place(path)
        found.setdefault(place, (name, []))[1].append(path)
    return {name: tuple(members) for _, (name, members) in sorted(found.items())}


def _place(path: str) -> tuple[tuple[int, int], str]:
    if path.startswith(f"{HEAD}/"):
        return (3, 0), HEAD
    if numbered := NUMBERED.match(path):
        return (1, int(numbered[2])), numbered[1]
    return ((2, 0), TOP) if ABOVE.match(path) else ((0, 0), STEM)


def pattern_of(group: str, paths: Sequence[str]) -> str:
    """A regular expression that matches the paths of a group and those of no other."""
    if group not in (STEM, TOP):
        return f"^{group}/"
    firsts = sorted({path.partition("/")[0] for path in paths})
    return f"^({'|'.join(firsts)})/"
