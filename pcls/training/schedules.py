"""Learning-rate schedules: a warm-up, then the shape that a recipe names."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from pcls.config.optimizer import OptimizerSection
from pcls.errors import UserError

# The rates of recipes that scale with the batch are stated for this many images. Source: Goyal et al. 2017.
BASE_BATCH_SIZE = 256

Share = Callable[[Array], Array]


def learning_rate(section: OptimizerSection, *, steps: int, epoch_steps: float, batch_size: int) -> optax.Schedule:
    """The rate at a step, float32: at step 0 `warmup_start` of the peak, the peak where the warm-up ends.

    Args:
      section: of the recipe.
      steps: of the run; the last one that is taken is `steps - 1`, and the schedule's end is at `steps`.
      epoch_steps: steps of an epoch, for durations in epochs.
      batch_size: images in a global batch, for `lr_per_256`.

    Raises:
      UserError: warm-up and cool-down do not fit into the run.
    """
    peak, arguments = peak_rate(section, batch_size), section.schedule_arguments
    warmup = _phase_steps(section, "warmup", epoch_steps, steps - 1)
    rise = _cosine if section.schedule == "one_cycle" else _linear
    share = _after_warmup(section, warmup, steps, epoch_steps)

    def schedule(step: ArrayLike) -> Array:
        step = jnp.asarray(step, jnp.float32)
        rising = _between(arguments["warmup_start"], 1.0, rise(step / max(1, warmup)))
        return peak * jnp.where(step < warmup, rising, share(step))

    return schedule


def peak_rate(section: OptimizerSection, batch_size: int) -> float:
    """The highest rate of a run; with `lr_per_256` it grows linearly with the batch. Source: Goyal et al. 2017."""
    return section.lr * batch_size / BASE_BATCH_SIZE if section.lr_per_256 else section.lr


def _after_warmup(section: OptimizerSection, warmup: int, steps: int, epoch_steps: float) -> Share:
    """The share of the peak at a step, which holds from the end of the warm-up."""
    arguments = section.schedule_arguments
    match section.schedule:
        case "constant":
            return jnp.ones_like
        case "step":
            # Counted from step 0, not from the end of the warm-up: recipes say `at epochs 30, 60 and 80`.
            every = arguments["step_every"].exact_steps(epoch_steps)
            # Compiled, the division is a product with 1 / every, which may fall short of the whole number by 2e-7.
            return lambda step: arguments["step_factor"] ** jnp.floor(step / every * (1 + 1e-6))
        case "wsd":
            # Hu et al. 2024; 1 - sqrt: Hägele et al. 2024.
            length = _phase_steps(section, "cooldown", epoch_steps, steps - warmup)
            fall, start = (_root if arguments["cooldown_shape"] == "1-sqrt" else _linear), steps - length
        case shape:
            # one_cycle: Smith & Topin 2017, with both halves of the cycle as cosines and the momentum left alone.
            fall, start, length = (_linear if shape == "linear" else _cosine), warmup, steps - warmup
    return lambda step: _between(1.0, arguments["end_lr"], fall(jnp.clip((step - start) / length, 0, 1)))


def _phase_steps(section: OptimizerSection, key: str, epoch_steps: float, most: int) -> int:
    length = getattr(section, key)
    steps = length.steps(epoch_steps)
    if steps > max(0, most):
        raise UserError(
            f"optimizer.{key} is {length}, {steps:,} steps, and the run has room for {max(0, most):,}; "
            f"shorten optimizer.{key} or lengthen train.duration"
        )
    return steps


def _between(start: float, end: float, progress: Array) -> Array:
    return start + (end - start) * progress


def _linear(progress: Array) -> Array:
    return progress


def _cosine(progress: Array) -> Array:
    return (1 - jnp.cos(jnp.pi * progress)) / 2


def _root(progress: Array) -> Array:
    return jnp.sqrt(progress)
