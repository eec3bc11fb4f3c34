"""The optimizer and the schedule that a recipe names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from pcls.config.schema import LrScale, OptimizerSection
from pcls.errors import UserError


def learning_rate(section: OptimizerSection, *, warmup_steps: int, steps: int) -> optax.Schedule:
    """The rate at a step: a linear rise from 0, then cosine to 0 at `steps`, or constant."""
    after = max(1, steps - warmup_steps)
    decay = (
        optax.cosine_decay_schedule(section.lr, after)
        if section.schedule == "cosine"
        else optax.constant_schedule(section.lr)
    )
    if warmup_steps == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0, section.lr, warmup_steps), decay], [warmup_steps])


def make_optimizer(
    section: OptimizerSection, schedule: optax.Schedule, params: Mapping[str, jax.ShapeDtypeStruct]
) -> optax.GradientTransformation:
    """The update rule over flat parameters.

    Args:
      section: of the recipe.
      schedule: step to rate.
      params: path to shape, for the rules that go by path or dimension.

    Raises:
      UserError: a rule of `lr_scale` that matches no parameter or is no regular expression.
    """
    parts = [optax.clip_by_global_norm(section.clip_norm)] if section.clip_norm else []
    match section.name:
        case "adam" | "adamw":
            parts.append(optax.scale_by_adam())
        case "sgd":
            parts.append(optax.trace(section.momentum, nesterov=True))
    if section.weight_decay:
        parts.append(optax.add_decayed_weights(section.weight_decay, {path: p.ndim > 1 for path, p in params.items()}))
    if section.lr_scale:
        parts.append(_scale_by_path(lr_scales(section.lr_scale, params)))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def lr_scales(rules: Sequence[LrScale], paths: Mapping[str, object]) -> dict[str, float]:
    """The factor on every parameter's rate: the first rule that matches its path, else 1."""
    patterns = [(_pattern(rule.match), rule.scale) for rule in rules]
    for pattern, _ in patterns:
        if not any(pattern.search(path) for path in paths):
            raise UserError(
                f"optimizer.lr_scale: {pattern.pattern!r} matches no parameter; paths look like {', '.join(paths)}"[
                    :300
                ]
            )
    return {path: next((scale for pattern, scale in patterns if pattern.search(path)), 1.0) for path in paths}


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"optimizer.lr_scale: {text!r} is no regular expression ({error})") from error


def _scale_by_path(factors: Mapping[str, float]) -> optax.GradientTransformation:
    def update(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        return {path: update * jnp.float32(factors[path]) for path, update in updates.items()}

    return optax.stateless(update)
