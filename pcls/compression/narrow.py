"""A network narrowed to what a target asks for, in steps: remove channels, train a little, remove more."""

from __future__ import annotations

import bisect
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp

from pcls.compression.latency import latencies
from pcls.compression.measured import Variant
from pcls.compression.prune import Score, check_prunable, prune
from pcls.compression.quantize import with_integers
from pcls.compression.recovery import Recovery
from pcls.compression.targets import Target
from pcls.errors import UserError
from pcls.evaluation.metrics import Evaluation
from pcls.nn.flops import image_costs
from pcls.nn.quantized import Bits
from pcls.pretrained.bundle import WEIGHTS, Bundle, save_bundle

# Shares of FLOPs that are tried for a size or a latency: each an eighth of a halving below the one before.
SHARES = tuple(0.5 ** (step / 8) for step in range(1, 57))
# Of the latency that was asked for: the same network takes a little longer at another time.
AIM = 0.95
# What the last step keeps of what it would have kept, where that does not fit.
CLOSER = 0.95
Say = Callable[[str], None]


@dataclass(frozen=True)
class Goal:
    """What a target comes to for one network.

    Attributes:
      share: of its FLOPs that stays; 1: no channel is removed.
      bits: of its weights afterwards; None: they stay floats.
      fits: whether a network is small enough; None: the share says it.
      met: whether one that was measured beside the others is; None: the last one.
    """

    share: float
    bits: Bits | None = None
    fits: Callable[[Bundle], bool] | None = None
    met: Callable[[Variant], bool] | None = None


def goal_of(wanted: Target, bundle: Bundle, bits: Bits, score: Score, say: Say) -> Goal:
    """How far a network must be narrowed for a target; nothing is trained for it.

    Args:
      wanted: of any kind.
      bundle: of the network.
      bits: of integer weights, for `int8` and for a size.
      score: as `prune` has it.
      say: hears what is being done.

    Raises:
      UserError: a network that cannot be pruned, that is small enough already, or cannot be made so small.
    """
    if wanted.kind == "int8":
        return Goal(1.0, bits)
    if wanted.kind == "flops":
        check_prunable(bundle.definition(), bundle.model)
        # Whether it can be had.
        without_some(bundle, wanted.value, score)
        return Goal(wanted.value)
    if wanted.kind == "size":
        _refuse_reached(wanted, file_bytes(bundle))

        def size(one: Bundle) -> int:
            return file_bytes(with_integers(one, bits, {}))

        if size(bundle) <= wanted.value:
            return Goal(1.0, bits)
        check_prunable(bundle.definition(), bundle.model)
        return Goal(_widest(wanted, bundle, score, size), bits, lambda one: size(one) <= wanted.value)
    check_prunable(bundle.definition(), bundle.model)
    _refuse_reached(wanted, _milliseconds(bundle))
    say(f"how narrow a network takes {wanted.value:g} ms")
    share = _widest(wanted, bundle, score, lambda one: _milliseconds(one) / AIM)
    return Goal(
        share,
        fits=lambda one: _milliseconds(one) <= AIM * wanted.value,
        met=lambda one: one.latencies[0].median <= wanted.value,
    )


def narrowed(
    bundle: Bundle,
    goal: Goal,
    recovery: Recovery,
    steps: int,
    score: Score,
    allowed: Callable[[Evaluation], bool],
    say: Say,
) -> Iterator[tuple[float, Bundle, Evaluation]]:
    """The network after each step, until one is small enough, or is not allowed.

    The share is that of the network as it was; trained, it may lose other channels and be larger with the same share.
    So the last step goes on until it fits, and no step is taken after one that does.

    Args:
      bundle: of the whole network.
      goal: how much of it is left after the last step.
      recovery: trains after each.
      steps: each leaves the same share of the one before.
      score: as `prune` has it.
      allowed: whether a step may be followed by another.
      say: hears of each.

    Returns:
      The share of FLOPs that is left, the network, and its accuracy.
    """
    whole = _flops(bundle)
    with tempfile.TemporaryDirectory() as place:
        for step in range(1, steps + 1):
            if step > 1 and goal.fits and goal.fits(bundle):
                return
            # The step before may have removed more than was asked for: so much that this one has nothing to do.
            share = goal.share ** (step / steps) * whole / _flops(bundle)
            if share >= 1 and (step < steps or not goal.fits):
                continue
            share = min(1 - 1e-6, share)
            narrower = without_some(bundle, share, score)
            while step == steps and goal.fits and not goal.fits(narrower):
                share *= CLOSER
                narrower = without_some(bundle, share, score)
            bundle, left = narrower, _flops(narrower) / whole
            say(f"step {step} of {steps}: {left:.1%} of the FLOPs are left; training for {recovery.length}")
            bundle, evaluation = recovery(bundle, Path(place) / str(step))
            yield left, bundle, evaluation
            if not allowed(evaluation):
                return


def without_some(bundle: Bundle, share: float, score: Score) -> Bundle:
    """A bundle of the network with a share of its FLOPs, not trained since."""
    arrays = dict(bundle.params), dict(bundle.stats)
    found = prune(bundle.definition(), *arrays, bundle.preprocessing.shape, flops=share, score=score)
    options = {**bundle.options, "widths": found.widths}
    return replace(bundle, params=found.params, stats=found.stats, options=options)


def file_bytes(bundle: Bundle) -> int:
    """Of its weights."""
    with tempfile.TemporaryDirectory() as place:
        save_bundle(bundle, Path(place) / "bundle")
        return (Path(place) / "bundle" / WEIGHTS).stat().st_size


def _refuse_reached(wanted: Target, now: float) -> None:
    if now <= wanted.value:
        has = f"{now:,.0f} bytes" if wanted.kind == "size" else f"{now:.3g} ms"
        raise UserError(f"--target {wanted.text}: the model as it is has {has}; there is nothing to do")


def _widest(wanted: Target, bundle: Bundle, score: Score, measure: Callable[[Bundle], float]) -> float:
    """The largest of the shares with which a network is small enough: found by halves, as less is always smaller."""
    found: dict[int, float] = {}

    def small_enough(place: int) -> bool:
        try:
            found[place] = measure(without_some(bundle, SHARES[place], score))
        except UserError:
            # Not so much can be removed of this one.
            return True
        return found[place] <= wanted.value

    place = bisect.bisect_left(range(len(SHARES)), True, key=small_enough)
    if place in found:
        return SHARES[place]
    least = min(found.values(), default=measure(bundle))
    reached = f"{least:,.0f} bytes" if wanted.kind == "size" else f"{least:.3g} ms"
    bits = " try --bits 4," if wanted.kind == "size" else ""
    raise UserError(
        f"--target {wanted.text}: the least that pruning reaches is about {reached};{bits} ask for more, or train a "
        "smaller model"
    )


def _milliseconds(bundle: Bundle) -> float:
    """Of a prediction of one image."""
    runnable = (*bundle.runnable(), dict(bundle.stats))
    return latencies([runnable], bundle.preprocessing.shape, bundle.precision, batches=(1,))[0][0].median


def _flops(bundle: Bundle) -> int:
    return image_costs(bundle.definition(), bundle.preprocessing.shape, jnp.dtype("float32"))[0]
