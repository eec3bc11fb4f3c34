"""Structured pruning: channels that do least are removed from a network, which gets narrower layers and is faster.

Source: Li et al. 2017, by the norm of kernels; Liu et al. 2017, by the scale of BatchNorm; Fang et al. 2023, together
what belongs together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from pcls.errors import UserError
from pcls.models.channels import Channels, channels_of
from pcls.nn.flops import image_costs, layer_flops
from pcls.nn.module import Arrays, ModelDef

Score = Literal["l2", "l1", "scale"]

# Layers keep a multiple of so many channels, or of a quarter of what they have: half of an untrained ResNet-18's FLOPs
# takes 0.60 of its time in thirty-twos, 0.68 in eights and 0.81 in fours (batches of 32, 2 CPU cores, jax 0.10).
STEP = 32
# Of BatchNorm's variance.
EPS = 1e-5


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

    Channels go in small steps, each from where it loses least for the FLOPs that it saves. What a layer has lost is the
    square of the scores that are gone over those that stay: all layers get narrower, and none to nothing.

    Args:
      definition, params, stats: of the network.
      shape: [height, width, channels] of an image.
      flops: the share to keep, above 0 and below 1.
      score: `l2` or `l1`, the norm of the kernel that makes a channel, times the gain of its BatchNorm; `scale`, the
        magnitude of that BatchNorm's scale.

    Raises:
      UserError: a network of which nothing can be removed, less than a channel of each layer would be left, or a score
        that it does not have.
    """
    check_prunable(definition)
    groups = channels_of(definition)
    scores = [_scores(group, params, stats, score) for group in groups]
    costs = _Costs(definition, groups, np.array([len(own) for own in scores]), shape)
    counts = _counts(scores, groups, costs, flops)
    kept = tuple(np.sort(np.argsort(own, kind="stable")[-count:]) for own, count in zip(scores, counts, strict=True))
    whole = {path: np.asarray(array) for path, array in params.items()}, dict(stats)
    params, stats = without_channels(*whole, groups, kept)
    return Pruned(tuple(map(int, counts)), params, stats, kept)


def check_prunable(definition: ModelDef, name: str = "this network") -> None:
    """UserError where nothing can be removed of a network."""
    if not channels_of(definition):
        raise UserError(
            f"{name} cannot be pruned: pcls removes channels of cnn28, ResNets, EfficientNets and MobileNets; "
            "recurrent layers and grouped convolutions have none that stand by themselves; --target int8 is for all of "
            "them"
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
    """[channels] float64, 1 in sum: the mean over the layers that make them."""
    found = []
    # Gates of squeeze-excite, which no BatchNorm follows, do not say how large a channel is.
    makers = {layer: norm for layer, norm in group.makers.items() if norm} or group.makers
    for layer, norm in makers.items():
        if score == "scale" and f"{norm}/scale" not in params:
            raise UserError(f"--score scale: no scale of a BatchNorm follows {layer}; choose --score l2 or l1")
        gain = np.abs(np.asarray(params.get(f"{norm}/scale", 1), np.float64))
        if score == "scale":
            own = gain
        else:
            kernel = np.asarray(params[f"{layer}/kernel"], np.float64)
            size = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), ord=2 if score == "l2" else 1, axis=0)
            own = size * gain / np.sqrt(np.asarray(stats[f"{norm}/var"], np.float64) + EPS) if norm else size
        found.append(own / (own.sum() or 1.0))
    return np.mean(found, axis=0)


class _Costs:
    """FLOPs of a network whose layers keep some of their channels."""

    def __init__(self, definition: ModelDef, groups: Sequence[Channels], sizes: np.ndarray, shape: tuple[int, ...]):
        self.whole, _ = image_costs(definition, shape, jnp.dtype("float32"))
        self._sizes = sizes
        made = {layer: place for place, group in enumerate(groups) for layer in group.makers}
        read = {layer: place for place, group in enumerate(groups) for layer in group.readers}
        layers = layer_flops(definition, shape)
        self._flops = np.array(list(layers.values()), np.float64)
        # Images and logits keep all of theirs: the place behind the last group.
        self._made, self._read = (np.array([own.get(layer, len(groups)) for layer in layers]) for own in (made, read))
        self._rest = self.whole - sum(layers.values())

    def __call__(self, counts: np.ndarray) -> float:
        shares = np.append(counts / self._sizes, 1.0)
        return float(self._rest + (self._flops * shares[self._made] * shares[self._read]).sum())


def _counts(scores: Sequence[np.ndarray], groups: Sequence[Channels], costs: _Costs, flops: float) -> np.ndarray:
    """How many channels of each group are kept."""
    ladders = [_ladder(len(own)) for own in scores]
    losses = [
        _losses(own, ladder, len(group.makers)) for own, ladder, group in zip(scores, ladders, groups, strict=True)
    ]
    most = flops * costs.whole + 0.5
    one = np.eye(len(ladders), dtype=np.int64)
    steps = np.zeros(len(ladders), np.int64)

    def counts(steps: np.ndarray) -> np.ndarray:
        return np.array([ladder[step] for ladder, step in zip(ladders, steps, strict=True)])

    def left(steps: np.ndarray) -> float:
        return costs(counts(steps))

    def price(place: int) -> float:
        """Of the next step: what is lost for each FLOP that is saved."""
        lost = losses[place][steps[place] + 1] - losses[place][steps[place]]
        return lost / (left(steps) - left(steps + one[place]))

    while left(steps) > most:
        open_ = [place for place, ladder in enumerate(ladders) if steps[place] + 1 < len(ladder)]
        if not open_:
            raise UserError(
                f"to keep {flops:.3g} of the FLOPs is not possible: with the fewest channels "
                f"{left(steps) / costs.whole:.3g} are left; choose a larger share, or a smaller model"
            )
        steps += one[min(open_, key=price)]
    # The last step may have been a large one: what still fits comes back, that which costs most first.
    for place in sorted(np.flatnonzero(steps), key=lambda place: losses[place][steps[place]], reverse=True):
        while steps[place] and left(steps - one[place]) <= most:
            steps -= one[place]
    return counts(steps)


def _ladder(count: int) -> list[int]:
    """How many of so many channels may be kept, from all to one."""
    kept = [count]
    while kept[-1] > 1:
        step = 2 ** (min(STEP, max(1, kept[-1] // 4)).bit_length() - 1)
        kept.append((kept[-1] - 1) // step * step)
    return kept


def _losses(scores: np.ndarray, ladder: Sequence[int], makers: int) -> np.ndarray:
    """What is lost with each of the counts: the square of the scores that are gone over those that stay.

    Small changes of many channels add up as squares; by the plain sum, layers whose scores differ most would lose all.
    """
    gone = np.append(0.0, np.cumsum(np.sort(scores)))[[len(scores) - kept for kept in ladder]]
    return makers * (gone / np.maximum(1 - gone, 1e-9)) ** 2
