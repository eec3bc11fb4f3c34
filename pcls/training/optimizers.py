"""The optimizer that a recipe names, and the table of what it does to each parameter.

All work on parameters in a flat dict by path. `kernel` means two dimensions or more; its last one is the output.

- sgd: torch's; L2 enters the gradient before momentum, and the rate scales the momentum's output.
- adam, adamw: Kingma & Ba 2014; Loshchilov & Hutter 2017.
- lamb: You et al. 2019; what is no kernel takes AdamW's steps, without the trust ratio.
- lars: You et al. 2017, L2 within the trust ratio and the rate within momentum; what is no kernel takes plain momentum.
- lion: Chen et al. 2023.
- adafactor: Shazeer & Stern 2018, without their schedule; decay is multiplied by the rate, unlike optax's alias.
- rmsprop: TensorFlow's, on which EfficientNet and MobileNet rely: eps within the root, mean squares that start from 1,
  the rate within momentum.
- muon: Jordan et al. 2024 for kernels between the first and the last layer, each as a matrix [inputs, outputs] with the
  window's places among the inputs; scaled so that one rate and one decay serve AdamW too, which takes the rest: what is
  no kernel, the first and last layer, and depthwise convolutions, whose matrix would mix channels that never meet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from pcls.config.optimizer import OptimizerSection, ScaleRule
from pcls.errors import UserError
from pcls.nn.module import HEAD
from pcls.training.lookahead import lookahead

# What reads pixels or gives logits: Muon is for what lies between.
FIRST_OR_LAST = re.compile(r"^(stem|conv1|inputs|head)/")
# The root mean square of AdamW's usual update. Source: Liu et al. 2025 (arXiv 2502.16982).
MUON_RMS = 0.2
FROZEN = "frozen"


@dataclass(frozen=True)
class ParameterRow:
    """What the optimizer does to one parameter.

    Attributes:
      path: of the parameter.
      shape: its dimensions.
      count: its numbers.
      rule: the update rule: an optimizer's name, which may be another than the recipe's (see above), or `frozen`.
      decay: weight decay.
      lr_scale: factor on the rate.
      start: the first step that moves it; infinite: none does.
    """

    path: str
    shape: tuple[int, ...]
    count: int
    rule: str
    decay: float
    lr_scale: float
    start: float = 0


def parameter_table(
    section: OptimizerSection,
    params: Mapping[str, jax.ShapeDtypeStruct],
    starts: Mapping[str, float] = MappingProxyType({}),
) -> list[ParameterRow]:
    """A row for every parameter; `make_optimizer` is made from these rows.

    Args:
      section: of the recipe.
      params: path to array or shape.
      starts: path to the first step that moves it; those that are not named learn from the first.

    Raises:
      UserError: a rule of `lr_scale` or `decay_scale` that matches nothing.
    """
    lr_scales = _first_match("optimizer.lr_scale", section.lr_scale, params)
    decay_scales = _first_match("optimizer.decay_scale", section.decay_scale, params)
    rows = []
    for path, leaf in params.items():
        shape, lr_scale = tuple(leaf.shape), lr_scales.get(path, 1.0)
        start = starts.get(path, 0)
        decay = section.weight_decay * decay_scales.get(path, float(len(shape) > 1))
        rule = FROZEN if start == math.inf else _rule(section.name, path, shape)
        rows.append(ParameterRow(path, shape, math.prod(shape), rule, decay, lr_scale, start))
    return rows


def make_optimizer(
    section: OptimizerSection,
    schedule: optax.Schedule,
    params: Mapping[str, jax.ShapeDtypeStruct],
    starts: Mapping[str, float] = MappingProxyType({}),
    steps: int = 0,
) -> optax.GradientTransformation:
    """The update rule over flat parameters.

    It is given the gradients of those alone that learn at a step. What never learns has no state and no share in the
    clipped norm; what learns later has the state of a first step until then.

    Args:
      section: of the recipe.
      schedule: step to rate.
      params: path to array or shape, for the rules that go by path or dimension.
      starts: path to the first step that moves it; those that are not named learn from the first.
      steps: of the run, which `lookahead` needs.

    Raises:
      UserError: as `parameter_table`.
    """
    rows = {row.path: row for row in parameter_table(section, params, starts)}

    def rule() -> optax.GradientTransformation:
        rate = _by_rate(schedule, grows=section.lr_per_256)
        return optax.chain(*_update_rule(section, rate, rows), _by_factor(lambda path: rows[path].lr_scale))

    groups = {start: rule() for start in sorted({int(r.start) for r in rows.values() if r.rule != FROZEN})}
    optimizer = optax.chain(*_clipping(section), _by_start(groups, lambda path: rows[path].start))
    if not section.lookahead.every:
        return optimizer
    return lookahead(optimizer, section.lookahead, steps, lambda path: rows[path].rule != FROZEN)


def _by_start(
    groups: Mapping[int, optax.GradientTransformation], start_of: Callable[[str], float]
) -> optax.GradientTransformationExtraArgs:
    """An optimizer for each group of parameters that begin to learn together.

    With one for all, the moments of those that begin late would be taken for well averaged, and their first steps be
    three times too long.

    Args:
      groups: first step to optimizer.
      start_of: path to first step.
    """

    def own(start: int, tree: Mapping[str, Any]) -> dict[str, Any]:
        return {path: leaf for path, leaf in tree.items() if start_of(path) == start}

    def init(params: optax.Params) -> optax.OptState:
        return {str(start): group.init(own(start, params)) for start, group in groups.items()}

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **others: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        """Groups of which no gradient is given keep their state."""
        done: dict[str, Any] = {}
        kept = dict(state)
        for start, group in groups.items():
            if grads := own(start, updates):
                of_group = optax.with_extra_args_support(group).update
                steps, kept[str(start)] = of_group(grads, state[str(start)], own(start, params or {}), **others)
                done |= steps
        return done, kept

    return optax.GradientTransformationExtraArgs(init, update)


def _by_rate(schedule: optax.Schedule, *, grows: bool) -> optax.GradientTransformationExtraArgs:
    """Multiplies by the rate and turns downhill.

    The rate is that of the step which `update` is told, whatever happened to those before it. Where it grows with the
    batch, that of an update of several batches is so many times as high.
    """

    def init(params: optax.Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        *,
        step: ArrayLike,
        batches: int = 1,
        **others: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        """`others` are for other parts of a chain."""
        del params, others
        rate = -schedule(step) * (batches if grows else 1)
        return jax.tree.map(lambda u: jnp.asarray(rate, u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _first_match(key: str, rules: Sequence[ScaleRule], paths: Iterable[str]) -> dict[str, float]:
    """The scale of the first rule that matches, for each path that one matches."""
    found: dict[str, float] = {}
    paths = list(paths)
    for rule in rules:
        matched = [path for path in paths if path not in found and re.search(rule.match, path)]
        if not matched:
            earlier = " that no earlier rule matches" if found else ""
            raise UserError(
                f"{key}: {rule.match!r} matches no parameter{earlier}; paths look like {', '.join(paths[:4])}"
            )
        found |= dict.fromkeys(matched, rule.scale)
    return found


def _rule(name: str, path: str, shape: tuple[int, ...]) -> str:
    kernel = len(shape) > 1
    depthwise = len(shape) > 2 and shape[-2] == 1
    match name:
        case "lars":
            return "lars" if kernel else "sgd"
        case "lamb":
            return "lamb" if kernel else "adamw"
        case "muon":
            return "muon" if kernel and not depthwise and not FIRST_OR_LAST.search(path) else "adamw"
    return name


def _clipping(section: OptimizerSection) -> list[optax.GradientTransformation]:
    parts = []
    if section.adaptive_clip:
        # Units are outputs, vectors as a whole, and the last linear layer is left alone. Source: Brock et al. 2021.
        clip = optax.adaptive_grad_clip(section.adaptive_clip)
        parts.append(optax.masked(clip, _by_path(lambda path: not path.startswith(HEAD))))
    if section.clip_norm:
        parts.append(optax.clip_by_global_norm(section.clip_norm))
    return parts


def _update_rule(
    section: OptimizerSection, rate: optax.GradientTransformation, rows: Mapping[str, ParameterRow]
) -> list[optax.GradientTransformation]:
    """The parts of an optimizer, in order: from gradients to steps, but for `lr_scale`."""
    told = section.arguments
    decay = _decay(lambda path: rows[path].decay)
    of_the_name = _by_path(lambda path: rows[path].rule == section.name)
    match section.name:
        case "sgd":
            return [decay, *_momentum(told), rate]
        case "rmsprop":
            mean_square = optax.scale_by_rms(told["rms_decay"], told["eps"], initial_scale=1.0)
            return [decay, mean_square, rate, *_momentum(told)]
        case "lars":
            ratio = optax.scale_by_trust_ratio(trust_coefficient=told["trust_coefficient"], eps=told["eps"])
            return [decay, optax.masked(ratio, of_the_name), rate, *_momentum(told)]
        case "lamb":
            ratio = optax.scale_by_trust_ratio()
            return [optax.scale_by_adam(**told), decay, optax.masked(ratio, of_the_name), rate]
        case "lion":
            return [optax.scale_by_lion(**told), decay, rate]
        case "adafactor":
            return [*_adafactor(told), decay, rate]
        case "muon":
            groups = {"muon": _muon(told), "adamw": optax.scale_by_adam(told["b1"], told["b2"], told["eps"])}
            return [optax.partition(groups, _by_path(lambda path: rows[path].rule)), decay, rate]
        case _:
            return [optax.scale_by_adam(**told), decay, rate]


def _momentum(told: Mapping[str, Any]) -> list[optax.GradientTransformation]:
    return [optax.trace(told["momentum"], told.get("nesterov", False))] if told["momentum"] else []


def _adafactor(told: Mapping[str, Any]) -> list[optax.GradientTransformation]:
    parts = [
        optax.scale_by_factored_rms(decay_rate=told["decay_exponent"]),
        optax.clip_by_block_rms(told["clipping_threshold"]),
    ]
    if told["parameter_scale"]:
        parts.append(optax.scale_by_param_block_rms())
    return [*parts, optax.ema(told["momentum"], debias=False)] if told["momentum"] else parts


def _muon(told: Mapping[str, Any]) -> optax.GradientTransformation:
    def axes(tree: optax.Updates) -> Any:
        return jax.tree.map(lambda leaf: _matrix_axes(leaf.ndim), tree)

    def even_size(update: jax.Array, _: jax.Array | None) -> jax.Array:
        # An orthogonal matrix [m, n] has the root mean square 1 / sqrt(max(m, n)).
        return update * (MUON_RMS * math.sqrt(_longer_side(update.shape)))

    orthogonal = optax.contrib.scale_by_muon(
        beta=told["momentum"], nesterov=told["nesterov"], weight_dimension_numbers=axes
    )
    return optax.chain(orthogonal, optax.stateless_with_tree_map(even_size))


def _matrix_axes(ndim: int) -> Any:
    return optax.contrib.MuonDimensionNumbers(reduction_axis=tuple(range(ndim - 1)), output_axis=ndim - 1)


def _longer_side(shape: tuple[int, ...]) -> int:
    """Of a kernel as a matrix."""
    return max(math.prod(shape[:-1]), shape[-1])


def _decay(decay: Callable[[str], float]) -> optax.GradientTransformation:
    def update(updates: optax.Updates, params: optax.Params) -> optax.Updates:
        return jax.tree.map(lambda u, p, d: u + d * p if d else u, updates, params, _by_path(decay)(updates))

    return optax.stateless(update)


def _by_factor(factor: Callable[[str], float]) -> optax.GradientTransformation:
    def update(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        return jax.tree.map(lambda u, f: u if f == 1 else f * u, updates, _by_path(factor)(updates))

    return optax.stateless(update)


def _by_path(value: Callable[[str], Any]) -> Callable[[optax.Updates], Any]:
    """A tree of values by path in place of leaves; it lets pass what optax has masked, which is no leaf."""
    return lambda tree: jax.tree_util.tree_map_with_path(lambda keys, _: value(keys[0].key), tree)
