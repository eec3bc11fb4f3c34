"""Runs that differ in their seed alone, in one program: its step is mapped over their stacked states and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pcls.errors import Diverged
from pcls.parallel.mesh import BATCH_AXES, replicated
from pcls.training.loop import Hooks, Meter, Plan
from pcls.training.program import Program
from pcls.training.resident import resident_step
from pcls.training.state import TrainState
from pcls.training.step import Metrics

# Takes the stacked states and the stacked batches (or places, and the images that all share).
SeedsStep = Callable[..., tuple[TrainState, tuple[Metrics, ...]]]


class SeedHooks(Hooks):
    """What the loop calls out to, for one seed; `place`, `verified` and `roll_back` are not: batches are stacked."""

    def inspect(self, batch: Any) -> None:
        """Looks at a host batch."""


def seeds_steps(program: Program, count: int, *, resident: bool) -> tuple[SeedsStep, SeedsStep]:
    """The compiled steps of all seeds: for a batch each, and for several.

    Every device holds the states whole; each seed's batch is split over the devices as that of one run is.

    Args:
      program: of any of the seeds; its state must not be split.
      count: of seeds.
      resident: whether the images live on the devices.

    Returns:
      `(states, batches) -> (states, metrics)`, states donated, batches [seeds, batch, ...] and [steps, seeds, batch,
      ...]; with `resident` places instead of batches, and the images for a third argument.
    """
    step: Callable[..., Any] = resident_step(program.step) if resident else program.step
    mapped = jax.vmap(step, in_axes=(0, 0, None) if resident else (0, 0))

    def own(metrics: Metrics) -> tuple[Metrics, ...]:
        return tuple({name: values[..., seed] for name, values in metrics.items()} for seed in range(count))

    def one(states: TrainState, batches: Any, *images: Any) -> tuple[TrainState, tuple[Metrics, ...]]:
        states, metrics = mapped(states, batches, *images)
        return states, own(metrics)

    def several(states: TrainState, batches: Any, *images: Any) -> tuple[TrainState, tuple[Metrics, ...]]:
        states, metrics = jax.lax.scan(lambda states, batches: mapped(states, batches, *images), states, batches)
        return states, own(metrics)

    def compiled(step: SeedsStep, *axes: None) -> SeedsStep:
        whole, batches = replicated(program.mesh), NamedSharding(program.mesh, P(*axes, BATCH_AXES))
        inputs = (whole, batches, whole) if resident else (whole, batches)
        return jax.jit(step, in_shardings=inputs, out_shardings=whole, donate_argnums=0)

    return compiled(one, None), compiled(several, None, None)


def stacked(states: Sequence[TrainState]) -> TrainState:
    """States of several seeds as one, each leaf [seeds, ...]."""
    return jax.jit(lambda *states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))(*states)


@partial(jax.jit, static_argnums=1)
def unstacked(states: TrainState, count: int) -> list[TrainState]:
    """The state of each seed."""
    return [jax.tree.map(itemgetter(seed), states) for seed in range(count)]


def seeds_loop(
    states: TrainState,
    train_step: SeedsStep,
    train_steps: SeedsStep,
    batches: Sequence[Iterator[Any]],
    plan: Plan,
    hooks: Sequence[SeedHooks],
    *,
    stop_requested: Callable[[int], bool],
    evaluated: Callable[[int, Sequence[float]], None],
) -> tuple[dict[int, TrainState], dict[int, Diverged]]:
    """Trains all seeds to the plan's last step, as `train_loop` does one.

    A seed that diverges is left aside; the others go on.

    Args:
      states: stacked, before their first step; given up to it.
      train_step, train_steps: as `seeds_steps` makes them, given the images where there are any.
      batches: of each seed.
      plan: of all; each update takes one batch.
      hooks: of each seed.
      stop_requested: whether to end early, in good order.
      evaluated: hears the top-1 of the seeds at a step.

    Returns:
      The states of the seeds that did not diverge, by number, all saved; and what became of the others.
    """
    step, count = 0, len(hooks)
    meters = [Meter(plan) for _ in hooks]
    failed: dict[int, Diverged] = {}
    going = list(range(count))
    own = dict(enumerate(unstacked(states, count)))
    while step < plan.steps:
        first, at_once = step, plan.together(step)
        states, metrics = (train_step if at_once == 1 else train_steps)(states, _next(batches, hooks, at_once))
        step += at_once
        for seed in going:
            try:
                _note(meters[seed], hooks[seed], plan, first, step, metrics[seed])
            except Diverged as error:
                failed[seed] = error
        going = [seed for seed in going if seed not in failed]
        stopping = not going or (step < plan.steps and stop_requested(step))
        evaluating, saving = (plan.due(first, step, every) for every in (plan.evaluate_every, plan.save_every))
        if not (stopping or evaluating or saving):
            continue
        own = dict(enumerate(unstacked(states, count)))
        if step == plan.steps:
            own |= {seed: hooks[seed].finish(own[seed]) for seed in going}
        if evaluating:
            with ExitStack() as pauses:
                for meter in meters:
                    pauses.enter_context(meter.paused())
                top1 = {seed: hooks[seed].evaluate(own[seed], step) for seed in going}
            evaluated(step, list(top1.values()))
            own |= {seed: own[seed].with_best(top1[seed]) for seed in going}
            states = replace(states, best_top1=jnp.stack([own[seed].best_top1 for seed in range(count)]))
        if saving or stopping:
            for seed in going:
                hooks[seed].save(own[seed], step)
        if stopping:
            break
    return {seed: own[seed] for seed in going}, failed


def _next(batches: Sequence[Iterator[Any]], hooks: Sequence[SeedHooks], at_once: int) -> Any:
    """The next batch of each seed, stacked; several of each: [steps, seeds, ...]."""
    steps = []
    for _ in range(at_once):
        own = [next(of_seed) for of_seed in batches]
        for hook, batch in zip(hooks, own, strict=True):
            hook.inspect(batch)
        steps.append(stacked_batches(own))
    return steps[0] if at_once == 1 else stacked_batches(steps)


def stacked_batches(batches: Sequence[Any]) -> Any:
    """Host batches as one, each array [batches, ...]."""
    return jax.tree.map(lambda *parts: np.stack(parts), *batches)


def _note(meter: Meter, hooks: SeedHooks, plan: Plan, first: int, step: int, metrics: Metrics) -> None:
    """Counts the metrics of one seed; Diverged where they are in trouble: seeds that share a program cannot go back."""
    if skipped := meter.count(step, step - first, metrics):
        hooks.skipped(skipped)
    if meter.trouble:
        raise Diverged(meter.trouble.reason)
    hooks.progress(meter, step)
    if plan.due(first, step, plan.log_every) and meter.has_numbers:
        hooks.log(meter.row(step))
