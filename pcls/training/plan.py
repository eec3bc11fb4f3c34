"""The length of a training in steps, and the order of its records, by the recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pcls.config.schema import Recipe
from pcls.data.buckets import Bucket
from pcls.data.order import BucketedOrder, Order, SampledOrder
from pcls.errors import UserError
from pcls.training.loop import Plan

# A run leaves at most about this many training rows in its metric files, each a mean over this many steps or more.
LOG_ROWS, MIN_LOG_STEPS = 500, 10
# What the host stacks for one dispatch of several steps.
DISPATCH_BYTES = 64 * 2**20


def training_order(
    recipe: Recipe, records: int, buckets: Sequence[Bucket] = (), labels: np.ndarray | None = None
) -> Order | BucketedOrder:
    """The order in which a recipe trains on so many records.

    Args:
      recipe: resolved.
      records: of the training set.
      buckets: its sequences by padded length; empty: all records are alike.
      labels: [records] of it; None: unknown, the order is one that takes as many steps.

    Raises:
      UserError: a step would take more than there are, and the tail is dropped; or the run is too short for its
        sampling to move.
    """
    data, batch_size = recipe.data, recipe.train.batch_size
    if buckets:
        return _bucketed_order(recipe, buckets)
    order = Order(records, batch_size, recipe.train.seed, data.tail, data.repeats)
    if not order.pass_steps:
        raise UserError(
            f"data.tail=drop leaves no step: one takes {order.records_a_step:,} records and there are {records:,}; "
            "lower train.batch_size, or write data.tail=carry"
        )
    passes = math.ceil(recipe.train.duration.steps(order.epoch_steps) / order.pass_steps)
    if data.sampling == "progressive" and passes < 2:
        raise UserError(
            "data.sampling=progressive moves with each pass over the records, and the run has only one; "
            "write a longer train.duration, or data.sampling=balanced"
        )
    if data.sampling == "natural" or labels is None:
        return order
    return SampledOrder(**vars(order), labels=labels, sampling=data.sampling, passes=passes)


def _bucketed_order(recipe: Recipe, buckets: Sequence[Bucket]) -> BucketedOrder:
    order = BucketedOrder(
        tuple(buckets), recipe.train.batch_size, recipe.train.seed, recipe.data.tail, recipe.data.repeats
    )
    for bucket, own in zip(buckets, order.orders, strict=True):
        if not own.pass_steps:
            raise UserError(
                f"data.tail=drop would leave out all {own.size:,} sequences that are padded to {bucket.steps:,} steps: "
                f"a batch takes {own.records_a_step:,} of one length; lower train.batch_size or data.buckets, or "
                "write data.tail=carry"
            )
    return order


def make_plan(recipe: Recipe, order: Order | BucketedOrder, *, image_bytes: int, platform: str) -> Plan:
    """The recipe's durations in steps.

    Args:
      recipe: resolved.
      order: of its records.
      image_bytes: of one image.
      platform: of the devices.
    """
    epoch_steps = order.epoch_steps
    steps = recipe.train.duration.steps(epoch_steps)
    plan = Plan(
        steps=steps,
        epoch_steps=epoch_steps,
        batch_size=recipe.train.batch_size,
        evaluate_every=max(1.0, recipe.evaluate.every.exact_steps(epoch_steps)),
        save_every=max(1.0, recipe.checkpoint.every.exact_steps(epoch_steps)),
        log_every=max(MIN_LOG_STEPS, steps // LOG_ROWS),
        verify_every=recipe.guard.verify.exact_steps(epoch_steps),
        not_finite=recipe.guard.not_finite,
        spike=recipe.guard.spike,
    )
    batch_bytes = 8 * plan.batch_size if recipe.data.on_device else image_bytes * plan.batch_size
    # Batches of several sizes cannot be stacked.
    single = platform == "cpu" or recipe.data.progressive or recipe.data.buckets > 1
    at_once = recipe.train.steps_per_dispatch or (1 if single else steps_that_fit(plan, batch_bytes))
    return replace(plan, at_once=at_once)


def steps_that_fit(plan: Plan, batch_bytes: int) -> int:
    """How many steps to dispatch at once: as memory and what is due allow.

    Args:
      plan: of the run.
      batch_bytes: that the host sends for one step.
    """
    between = math.floor(min(plan.steps, plan.epoch_steps, plan.evaluate_every, plan.save_every))
    return max(1, min(between, DISPATCH_BYTES // batch_bytes))
