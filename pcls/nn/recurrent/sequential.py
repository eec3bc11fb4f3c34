"""The scan that runs recurrent cells step by step, with a gradient of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pcls.nn.recurrent.cells import Carry, Cell, Weights


class Stream(NamedTuple):
    """One sequence model among those that run side by side in a scan: a direction, or a layer of its own.

    Attributes:
      projected: [time, batch, gates * hidden], `x @ kernel + bias`.
      weights: of the recurrence.
      carry: before the first step; float32.
      mask: [time, batch] bool, steps that count; None: all do. At others the carry stays and the output is zero.
    """

    projected: Array
    weights: Weights
    carry: Carry
    mask: Array | None = None


@dataclass(frozen=True)
class Scan:
    """How a scan runs.

    Attributes:
      cell: its arithmetic.
      reverse: of each stream, whether it runs from the last step to the first.
      unroll: steps in one turn of the loop.
      truncate: gradients do not flow back over the start of a block of so many steps; 0: they flow to the start.
    """

    cell: Cell
    reverse: tuple[bool, ...]
    unroll: int = 1
    truncate: int = 0


def zero_carry(cell: Cell, batch: int, hidden: int) -> Carry:
    """The carry before the first step."""
    return (jnp.zeros((batch, hidden), jnp.float32),) * cell.states


def sequential_scan(scan: Scan, streams: Sequence[Stream]) -> list[tuple[Array, Carry]]:
    """Runs streams of equally many steps side by side in one loop.

    Returns:
      Of each stream the outputs [time, batch, hidden] in the type of its projections, and the carry after its last
      step.
    """
    return _scan(scan, tuple(streams))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(scan: Scan, streams: tuple[Stream, ...]) -> list[tuple[Array, Carry]]:
    return _forward(scan, streams)[0]


class Saved(NamedTuple):
    """What the gradient needs of a stream; arrays over time in the order in which the steps ran.

    Attributes:
      stream: itself.
      steps: what the cell saved of each step.
      after: the carry after each step.
    """

    stream: Stream
    steps: Any
    after: Carry


def _forward(scan: Scan, streams: tuple[Stream, ...]) -> tuple[list[tuple[Array, Carry]], list[Saved]]:
    def step(carries: list[Carry], inputs: list[Any]) -> tuple[list[Carry], list[Any]]:
        """A step of every stream."""
        found = [_step(scan.cell, *parts) for parts in zip(streams, carries, inputs, strict=True)]
        return [carry for carry, _ in found], [kept for _, kept in found]

    inputs = [
        _running((stream.projected, stream.mask), reverse)
        for stream, reverse in zip(streams, scan.reverse, strict=True)
    ]
    last, kept = jax.lax.scan(step, [stream.carry for stream in streams], inputs, unroll=scan.unroll)
    results, saved = [], []
    for stream, reverse, carry, (steps, after) in zip(streams, scan.reverse, last, kept, strict=True):
        outputs = after[0] if stream.mask is None else jnp.where(inputs_mask(stream, reverse), after[0], 0)
        results.append((_running(outputs, reverse).astype(stream.projected.dtype), carry))
        saved.append(Saved(stream, steps, after))
    return results, saved


def inputs_mask(stream: Stream, reverse: bool) -> Array:
    """[time, batch, 1] in running order."""
    assert stream.mask is not None
    return _running(stream.mask, reverse)[..., None]


def _step(cell: Cell, stream: Stream, carry: Carry, inputs: tuple[Array, Array | None]) -> tuple[Carry, Any]:
    projected, mask = inputs
    new, saved = cell.step(projected.astype(jnp.float32), stream.weights, carry)
    if mask is not None:
        new = jax.tree.map(lambda after, before: jnp.where(mask[:, None], after, before), new, carry)
    return new, _stored((saved, new), stream.projected.dtype)


def _stored(arrays: Any, dtype: Any) -> Any:
    """As they are kept over all steps: in the compute type."""
    return jax.tree.map(lambda array: array.astype(dtype), arrays)


def _running(arrays: Any, reverse: bool) -> Any:
    """Arrays over time in the order in which steps run, and back."""
    return jax.tree.map(lambda array: array[::-1], arrays) if reverse else arrays


def _backward(scan: Scan, saved: list[Saved], grads: list[tuple[Array, Carry]]) -> tuple[tuple[Stream, ...]]:
    befores = [_before(one) for one in saved]
    steps = len(saved[0].stream.projected)
    flows = (jnp.arange(steps) % scan.truncate != 0) if scan.truncate else None

    def step(carries: list[Carry], inputs: tuple[Any, Any]) -> tuple[list[Carry], list[Array]]:
        """Back over a step of every stream."""
        found = [
            _step_gradient(scan.cell, one.stream.weights, carry, part, inputs[1])
            for one, carry, part in zip(saved, carries, inputs[0], strict=True)
        ]
        return [carry for carry, _ in found], [grad for _, grad in found]

    inputs = [
        (_running(grad, reverse), one.steps, before, one.after, _running(one.stream.mask, reverse))
        for one, before, (grad, _), reverse in zip(saved, befores, grads, scan.reverse, strict=True)
    ]
    first, projected = jax.lax.scan(
        step, [carry for _, carry in grads], (inputs, flows), reverse=True, unroll=scan.unroll
    )
    found = []
    for one, before, carry, grad, reverse in zip(saved, befores, first, projected, scan.reverse, strict=True):
        weights = scan.cell.weight_gradients(one.steps, before[0], grad)
        weights = jax.tree.map(lambda new, old: new.astype(old.dtype), weights, one.stream.weights)
        found.append(Stream(_running(grad, reverse), weights, carry, None))
    return (tuple(found),)


def _before(saved: Saved) -> Carry:
    """The carry before each step."""
    return jax.tree.map(
        lambda start, after: jnp.concatenate([start[None].astype(after.dtype), after[:-1]]),
        saved.stream.carry,
        saved.after,
    )


def _step_gradient(
    cell: Cell, weights: Weights, carry: Carry, inputs: tuple[Any, ...], flows: Array | None
) -> tuple[Carry, Array]:
    output, steps, before, after, mask = inputs
    dtype = output.dtype
    before, after, output = jax.tree.map(lambda array: array.astype(jnp.float32), (before, after, output))
    grads = carry
    if mask is not None:
        # A step that does not count neither moves the carry nor gives an output.
        output, grads = jax.tree.map(lambda grad: jnp.where(mask[:, None], grad, 0), (output, carry))
    grad, new = cell.step_gradient(steps, weights, before, after, (grads[0] + output, *grads[1:]))
    if mask is not None:
        new = jax.tree.map(lambda moved, kept: jnp.where(mask[:, None], moved, kept), new, carry)
        grad = jnp.where(mask[:, None], grad, 0)
    if flows is not None:
        new = jax.tree.map(lambda array: jnp.where(flows, array, 0), new)
    return new, grad.astype(dtype)


_scan.defvjp(_forward, _backward)
