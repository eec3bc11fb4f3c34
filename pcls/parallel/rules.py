"""Ordered rules over parameter paths: which mesh axes an array is split over."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pcls.errors import UserError
from pcls.parallel.mesh import BATCH_AXES, FSDP, MODEL


@dataclass(frozen=True)
class Rule:
    """Arrays whose path matches are split over these axes; none: every device holds the whole.

    Attributes:
      match: a regular expression searched for in paths such as `stages/0/1/conv1/kernel`.
      over: mesh axes. `model` splits the last dimension (output channels), the others together the largest of the rest
        that divides.
    """

    match: str
    over: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How a state is split: parameters by rule, and what the optimizer keeps of each.

    Attributes:
      rules: first match wins.
      optimizer_over: axes that optimizer state and averages are split over beside those of their parameter.
    """

    rules: tuple[Rule, ...]
    optimizer_over: tuple[str, ...] = ()


# zero1: Rajbhandari et al. 2020, stage 1. A CNN's parameters are small beside its activations, so they stay whole; the
# update is what every device would do again. Unlike rules for language models, no size is too small to be split.
PRESETS = {
    "replicated": Layout((Rule(".*", (MODEL,)),)),
    "fsdp": Layout((Rule(".*", (FSDP, MODEL)),)),
    "zero1": Layout((Rule(".*", (MODEL,)),), optimizer_over=BATCH_AXES),
}


def matched_rules(rules: Sequence[Rule], paths: Iterable[str]) -> dict[str, Rule]:
    """The first rule that matches each path.

    Raises:
      UserError: a rule that matches nothing, or a path that no rule matches.
    """
    patterns = [(re.compile(rule.match), rule) for rule in rules]
    paths = list(paths)
    for pattern, rule in patterns:
        if not any(pattern.search(path) for path in paths):
            raise UserError(
                f"mesh.rules: {rule.match!r} matches no parameter; paths look like {', '.join(paths[:4])}; "
                "see all by: pcls plan"
            )
    matches = {path: next((rule for pattern, rule in patterns if pattern.search(path)), None) for path in paths}
    for path, match in matches.items():
        if match is None:
            raise UserError(f"mesh.rules: no rule matches {path}; add a last rule for the rest, as in match: '.*'")
    return {path: match for path, match in matches.items() if match is not None}


def spec(shape: Sequence[int], over: Sequence[str], sizes: Mapping[str, int]) -> P:
    """How an array of a shape is split over axes; what does not divide stays whole.

    Vectors are split over `model` at most: bringing one together again takes a collective of its own, for no memory.

    Args:
      shape: of the array.
      over: mesh axes.
      sizes: devices along each mesh axis.
    """
    parts: list[tuple[str, ...] | str | None] = [None] * len(shape)
    if MODEL in over and shape and sizes[MODEL] > 1 and shape[-1] % sizes[MODEL] == 0:
        parts[-1] = MODEL
    rest = tuple(axis for axis in over if axis != MODEL and sizes[axis] > 1) if len(shape) > 1 else ()
    # All together, else as many as divide: half of a pod still holds half of the rest.
    for axes in _by_size(rest, sizes):
        count = math.prod(sizes[axis] for axis in axes)
        fitting = [place for place, part in enumerate(parts) if part is None and shape[place] % count == 0]
        if fitting:
            parts[max(fitting, key=lambda place: shape[place])] = axes if len(axes) > 1 else axes[0]
            break
    return P(*parts)


def _by_size(axes: tuple[str, ...], sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """All axes together, then each alone, the largest first."""
    alone: list[tuple[str, ...]] = [(axis,) for axis in sorted(axes, key=lambda axis: -sizes[axis])]
    return [axes, *alone] if len(axes) > 1 else alone


def sharding(mesh: Mesh, shape: Sequence[int], over: Sequence[str]) -> NamedSharding:
    """The same, on a mesh."""
    return NamedSharding(mesh, spec(shape, over, mesh.shape))
