"""Structured pruning: channels that do least are removed from a network, which gets narrower layers and is faster.

Source: Li et al. 2017, by the norm of kernels; Liu et al. 2017, by the scale of BatchNorm; Fang et al. 2023, together
what belongs together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from pcls.errors import UserError
from pcls.models.channels import Channels, channels_of
from pcls.nn.flops import image_costs, layer_flops
from pcls.nn.module import Arrays, ModelDef

Score = Literal["l2", "l1", "scale"]

# Channels are removed so many at once, or an eighth of a layer where that is less: odd numbers of them are slow.
STEP = 4


@dataclass(frozen=True)
class Pruned:
    """What is left of a network.

    Attributes:
      widths: its option `widths`.
      params, stats: by path.
      kept: of each of the channels of `channels_of`, the places of those that stayed, rising.
    """

    widths: tuple[int, ...]
    params: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    kept: tuple[np.ndarray, ...]


def prune(
    definition: ModelDef, params: Arrays, stats: Arrays, shape: tuple[int, ...], *, flops: float, score: Score = "l2"
) -> Pruned:
    """The network without the channels that score least, with at most the asked share of its FLOPs.

    Scores are compared over the whole network after those of each layer are divided by their mean. No layer keeps less
    than half of what it would if all were narrowed alike, unless the share cannot be had otherwise.

    Args:
      definition, params, stats: of the network.
      shape: [height, width, channels] of an image.
      flops: the share to keep, above 0 and below 1.
      score: `l2` or `l1`, the norm of the kernel that makes a channel, times the gain of its BatchNorm; `scale`, the
        magnitude of that BatchNorm's scale.

    Raises:
      UserError: a network of which nothing can be removed, less than one step of each layer is asked for, or a score
        that it does not have.
    """
    check_prunable(definition)
    groups = channels_of(definition)
    scores = [_scores(group, params, stats, score) for group in groups]
    costs = _Costs(definition, groups, [len(own) for own in scores], shape)
    counts = _counts(scores, costs, flops)
    kept = tuple(np.sort(np.argsort(own, kind="stable")[-count:]) for own, count in zip(scores, counts, strict=True))
    whole = {path: np.asarray(array) for path, array in params.items()}, dict(stats)
    params, stats = without_channels(*whole, groups, kept)
    return Pruned(tuple(counts), params, stats, kept)


def check_prunable(definition: ModelDef, name: str = "this network") -> None:
    """UserError where nothing can be removed of a network."""
    if not channels_of(definition):
        raise UserError(
            f"{name} cannot be pruned: pcls removes channels of cnn28, of ResNets without a deep stem and of wide "
            "ResNets; recurrent layers, depthwise and grouped convolutions have none that stand by themselves; --target"
            " int8 is for all of them"
        )


def without_channels(
    params: Arrays, stats: Arrays, groups: Sequence[Channels], kept: Sequence[np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Arrays of a network of which only some channels are left.

    Args:
      params, stats: of the whole network.
      groups: its channels.
      kept: of each group the places that stay.
    """
    arrays = {path: np.asarray(array) for path, array in {**params, **stats}.items()}
    for group, places in zip(groups, kept, strict=True):
        count = _count(group, params)
        for layer, norm in group.makers.items():
            leaves = [f"{layer}/kernel", f"{layer}/bias"]
            if norm:
                leaves += [f"{norm}/{leaf}" for leaf in ("scale", "bias", "mean", "var")]
            arrays |= {path: arrays[path][..., places] for path in leaves if path in arrays}
        for layer in group.readers:
            kernel = arrays[f"{layer}/kernel"]
            *window, inputs, outputs = kernel.shape
            split = kernel.reshape(*window, inputs // count, count, outputs)[..., places, :]
            arrays[f"{layer}/kernel"] = split.reshape(*window, -1, outputs)
    return {path: arrays[path] for path in params}, {path: arrays[path] for path in stats}


def _count(group: Channels, params: Mapping[str, Any]) -> int:
    return int(params[f"{next(iter(group.makers))}/kernel"].shape[-1])


def _scores(group: Channels, params: Arrays, stats: Arrays, score: Score) -> np.ndarray:
    """[channels] float64, 1 on average: the mean over the layers that make them."""
    found = []
    for layer, norm in group.makers.items():
        if score == "scale" and f"{norm}/scale" not in params:
            raise UserError(f"--score scale: no scale of a BatchNorm follows {layer}; choose --score l2 or l1")
        gain = np.abs(np.asarray(params.get(f"{norm}/scale", 1), np.float64))
        if score == "scale":
            own = gain
        else:
            kernel = np.asarray(params[f"{layer}/kernel"], np.float64)
            size = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), ord=2 if score == "l2" else 1, axis=0)
            own = size * gain / np.sqrt(np.asarray(stats[f"{norm}/var"], np.float64) + 1e-5) if norm else size
        found.append(own / (own.mean() or 1.0))
    return np.mean(found, axis=0)


class _Costs:
    """FLOPs of a network whose layers keep some of their channels."""

    def __init__(self, definition: ModelDef, groups: Sequence[Channels], sizes: Sequence[int], shape: tuple[int, ...]):
        self.whole, _ = image_costs(definition, shape, jnp.dtype("float32"))
        self._sizes = sizes
        made = {layer: place for place, group in enumerate(groups) for layer in group.makers}
        read = {layer: place for place, group in enumerate(groups) for layer in group.readers}
        layers = layer_flops(definition, shape)
        self._layers = [(flops, made.get(layer), read.get(layer)) for layer, flops in layers.items()]
        self._rest = self.whole - sum(layers.values())

    def __call__(self, counts: Sequence[int]) -> float:
        def share(place: int | None) -> float:
            return 1.0 if place is None else counts[place] / self._sizes[place]

        return self._rest + sum(flops * share(made) * share(read) for flops, made, read in self._layers)


def _counts(scores: Sequence[np.ndarray], costs: _Costs, flops: float) -> list[int]:
    """How many channels of each group are kept."""
    counts = [len(own) for own in scores]
    steps = [max(1, min(STEP, count // 8)) for count in counts]
    # The mean of each step's scores, the least first.
    rising = [_means(np.sort(own), step) for own, step in zip(scores, steps, strict=True)]
    removed = [0 for _ in scores]
    most = flops * costs.whole + 0.5

    def left() -> list[int]:
        return [count - step * gone for count, step, gone in zip(counts, steps, removed, strict=True)]

    for least in (math.sqrt(flops) / 2, 0.0):
        floors = [max(step, math.ceil(least * count)) for count, step in zip(counts, steps, strict=True)]
        while costs(left()) > most:
            open_ = [place for place, count in enumerate(left()) if count - steps[place] >= floors[place]]
            if not open_:
                break
            removed[min(open_, key=lambda place: rising[place][removed[place]])] += 1
    if costs(left()) > most:
        share = costs(left()) / costs.whole
        raise UserError(
            f"to keep {flops:.3g} of the FLOPs is not possible: with the fewest channels {share:.3g} are left; choose "
            "a larger share, or a smaller model"
        )
    # The last step may have been a large one: what still fits comes back, the best first.
    for place in sorted(range(len(counts)), key=partial(_last_score, rising, removed), reverse=True):
        while removed[place]:
            removed[place] -= 1
            if costs(left()) > most:
                removed[place] += 1
                break
    return left()


def _means(rising: np.ndarray, step: int) -> np.ndarray:
    """Of each whole step of so many."""
    return rising[: len(rising) // step * step].reshape(-1, step).mean(1)


def _last_score(rising: Sequence[np.ndarray], removed: Sequence[int], place: int) -> float:
    return float(rising[place][removed[place] - 1]) if removed[place] else -math.inf
