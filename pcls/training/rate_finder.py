"""Which learning rates a network bears: the rate rises exponentially from batch to batch, and its loss tells.

Source: Smith 2017 (Cyclical learning rates for training neural networks), the range test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from pcls.training.loop import Step
from pcls.training.state import TrainState

# Share of the running mean that a loss keeps.
SMOOTHING = 0.95
# The loss has diverged where its mean is this many times the lowest so far.
DIVERGED = 4.0
# The mean of the first losses is of few, and tells nothing: it may fall or rise by chance.
UNSETTLED = 10


@dataclass(frozen=True)
class RateCurve:
    """What a range test found.

    Attributes:
      rates: [points] float64, values of `optimizer.lr`, ascending.
      losses: [points] float64, of the batch after the update with each rate.
      smooth: [points] float64, their running mean.
      steepest: the rate at which the mean falls fastest; None: it never falls.
      valley: the rate halfway down its longest fall; None: it never falls.
      diverged: whether the test ended because the loss rose too far, before the highest rate.
    """

    rates: np.ndarray
    losses: np.ndarray
    smooth: np.ndarray
    steepest: float | None
    valley: float | None
    diverged: bool


def ramp(lowest: float, highest: float, steps: int) -> optax.Schedule:
    """An exponential rise: `lowest` at step 0, `highest` at step `steps - 1`, and beyond it on the same curve.

    Args:
      lowest, highest: rates.
      steps: 2 or more.
    """
    growth = math.log(highest / lowest) / (steps - 1)

    def schedule(step: ArrayLike) -> Array:
        return lowest * jnp.exp(growth * jnp.asarray(step, jnp.float32))

    return schedule


def ramp_losses(
    step: Step, state: TrainState, batches: Iterable[object], place: Callable[[object], object]
) -> np.ndarray:
    """The losses of a training whose optimizer follows a ramp, up to the first that is not finite or has diverged.

    Args:
      step: compiled, with the ramp.
      state: before the first step; it stays as it is, a copy is trained.
      batches: one more than there are rates: what a rate does shows in the batch after.
      place: brings a batch to the devices.

    Returns:
      [points + 1] float64; the first is that of the given state.
    """
    state = jax.tree.map(jnp.copy, state)
    losses: list[float] = []
    for batch in batches:
        state, metrics = step(state, place(batch))
        losses.append(float(metrics["loss"]))
        if not metrics["finite"] or diverged(smoothed(np.array(losses))):
            break
    return np.array(losses)


def curve(rates: np.ndarray, losses: np.ndarray) -> RateCurve:
    """Reads the rates off the losses.

    Args:
      rates: [steps] that were meant to be tried, ascending.
      losses: as `ramp_losses` returns them, of at least one rate.
    """
    tried, smooth = rates[: len(losses) - 1], smoothed(losses)[1:]
    # A last loss that is not finite is no point of the curve.
    finite = np.isfinite(smooth)
    tried, after, smooth = tried[finite], losses[1:][finite], smooth[finite]
    ended = len(tried) < len(rates) or diverged(smooth)
    settled = slice(min(UNSETTLED, len(tried) // 4), None)
    part = tried[settled], smooth[settled]
    return RateCurve(tried, after, smooth, steepest(*part), valley(*part), ended)


def smoothed(losses: np.ndarray, keep: float = SMOOTHING) -> np.ndarray:
    """The exponential running mean of losses [n], as if those before the first were their mean (no pull to zero)."""
    means, mean, weight = np.empty(len(losses)), 0.0, 0.0
    for place, loss in enumerate(losses):
        mean, weight = keep * mean + (1 - keep) * loss, keep * weight + 1 - keep
        means[place] = mean / weight
    return means


def diverged(smooth: np.ndarray) -> bool:
    """Whether the last of the running means [n] is several times the lowest; the first ones do not count."""
    settled = smooth[UNSETTLED:]
    return bool(len(settled) and settled[-1] > DIVERGED * settled.min())


def steepest(rates: np.ndarray, smooth: np.ndarray) -> float | None:
    """The rate at which the running mean falls fastest over the logarithm of the rate, before its lowest point.

    Args:
      rates, smooth: [points].

    Returns:
      None where it never falls.
    """
    lowest = int(smooth.argmin()) if len(smooth) else 0
    if not lowest:
        return None
    slopes = np.gradient(smooth[: lowest + 1], np.log(rates[: lowest + 1]))
    return float(rates[slopes.argmin()])


def valley(rates: np.ndarray, smooth: np.ndarray) -> float | None:
    """The rate in the middle of the longest fall of the running mean, on the logarithm of the rate.

    The fall is the longest subsequence in which each value is lower than the one before, so that a short rise on the
    way down ends nothing; it is as wide as it has values, up to its last, so that what lies far before it adds nothing.
    Source of the idea: fastai's `valley`.

    Args:
      rates, smooth: [points].

    Returns:
      None where it never falls.
    """
    lengths = np.ones(len(smooth), np.int64)
    for place in range(1, len(smooth)):
        lengths[place] = 1 + np.max(lengths[:place], where=smooth[:place] > smooth[place], initial=0)
    if not len(smooth) or lengths.max() < 2:
        return None
    # Of equally long falls the last: it ends lower.
    end = int(np.flatnonzero(lengths == lengths.max())[-1])
    start = end - int(lengths.max()) + 1
    return float(np.sqrt(rates[start] * rates[end]))
