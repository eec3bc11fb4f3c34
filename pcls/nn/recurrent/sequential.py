"""The scan that runs recurrent cells step by step, with a gradient of its own.

Inside the loop stays only what needs the state: the input projection of all steps is one matrix product before it, and
the gradients of all weights are one each after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from pcls.nn.platform import target_platform
from pcls.nn.recurrent.cells import Carry, Cell, Saved, Weights
from pcls.nn.recurrent.products import batch_major_rows, outer

# On CPU a turn of a loop costs about 5 microseconds: for small states that is more than the step itself.
UNROLLED_ON_CPU, UNROLLED_HIDDEN = 32, 64

# Of each stream what `_flows` says.
Flows = list[Array | None]


class Stream(NamedTuple):
    """One sequence model among those that run side by side in a scan: a direction, or a layer of its own.

    Attributes:
      x: [time, batch, inputs].
      kernel, bias: of the input projection, [inputs, gates * hidden] and [gates * hidden], in the type of `x`.
      weights: of the recurrence, in the same type.
      carry: before the first step, each [batch, hidden] float32.
      mask: [time, batch] bool, steps that count; None: all do. At others the carry stays and the output is zero.
    """

    x: Array
    kernel: Array
    bias: Array
    weights: Weights
    carry: Carry
    mask: Array | None = None


@dataclass(frozen=True)
class Scan:
    """How streams run.

    Attributes:
      cell: their arithmetic.
      reverse: of each stream, whether it runs from the last step to the first.
      truncate: gradients do not flow back out of a block of so many steps, counted from step 0 in both directions; 0:
        they flow through all.
      chunk: the backward pass keeps the carries at the starts of blocks of so many steps and runs each block again;
        0: it keeps every step. Source: Chen et al. 2016.
      unroll: steps in one turn of the loop; 0: as the device likes it.
    """

    cell: Cell
    reverse: tuple[bool, ...]
    truncate: int = 0
    chunk: int = 0
    unroll: int = 0


def zero_carry(cell: Cell, batch: int, hidden: int) -> Carry:
    """The carry before the first step."""
    return (jnp.zeros((batch, hidden), jnp.float32),) * cell.states


def sequential_scan(scan: Scan, streams: Sequence[Stream]) -> list[tuple[Array, Carry]]:
    """Runs streams of equally many steps side by side in one loop.

    Returns:
      Of each stream the outputs [time, batch, hidden] in the type of `x`, and the carry after its last step.
    """
    ordered = [_running(stream, reverse) for stream, reverse in zip(streams, scan.reverse, strict=True)]
    steps = len(ordered[0].x)
    flows = [_flows(steps, scan.truncate, reverse) for reverse in scan.reverse]
    run = partial(_run, scan.cell, scan.unroll or chosen_unroll(steps, ordered[0].carry[0].shape[-1]))
    results = _in_chunks(run, ordered, flows, scan.chunk) if 0 < scan.chunk < steps else run(tuple(ordered), flows)
    return [
        (outputs[::-1] if reverse else outputs, carry)
        for (outputs, carry), reverse in zip(results, scan.reverse, strict=True)
    ]


def chosen_unroll(steps: int, hidden: int) -> int:
    """Steps in one turn of the loop."""
    small = target_platform() == "cpu" and steps <= UNROLLED_ON_CPU and hidden <= UNROLLED_HIDDEN
    return steps if small else 1


def _flows(steps: int, truncate: int, reverse: bool) -> Array | None:
    """[steps] bool in running order, where gradients flow back to the step that ran before; None: everywhere.

    The blocks of a reverse stream do not begin where it does: padding would move them.
    """
    if not truncate:
        return None
    flows = (jnp.arange(steps) + reverse) % truncate != 0
    return flows[::-1] if reverse else flows


def _running(stream: Stream, reverse: bool) -> Stream:
    """A stream in the order in which its steps run."""
    if not reverse:
        return stream
    return stream._replace(x=stream.x[::-1], mask=None if stream.mask is None else stream.mask[::-1])


def _in_chunks(run: Any, streams: Sequence[Stream], flows: Flows, chunk: int) -> list[tuple[Array, Carry]]:
    """Runs blocks of steps, each of them again in the backward pass; the last may be shorter."""
    steps = len(streams[0].x)
    whole = steps // chunk * chunk
    over_time = ([(stream.x, stream.mask) for stream in streams], flows)
    # So that the gradients of all blocks are added up in float32.
    wide = [_weights_as(stream, jnp.float32) for stream in streams]

    @jax.checkpoint
    def block(carries: list[Carry], inputs: Any) -> tuple[list[Carry], list[Array]]:
        """A block of steps of every stream."""
        parts, block_flows = inputs
        found = run(
            tuple(
                _weights_as(stream, x.dtype)._replace(x=x, mask=mask, carry=carry)
                for stream, (x, mask), carry in zip(wide, parts, carries, strict=True)
            ),
            block_flows,
        )
        return [carry for _, carry in found], [outputs for outputs, _ in found]

    blocks = jax.tree.map(lambda array: array[:whole].reshape(-1, chunk, *array.shape[1:]), over_time)
    carries, outputs = jax.lax.scan(block, [stream.carry for stream in streams], blocks)
    outputs = [array.reshape(whole, *array.shape[2:]) for array in outputs]
    if whole < steps:
        carries, rest = block(carries, jax.tree.map(lambda array: array[whole:], over_time))
        outputs = [jnp.concatenate(parts) for parts in zip(outputs, rest, strict=True)]
    return list(zip(outputs, carries, strict=True))


def _weights_as(stream: Stream, dtype: DTypeLike) -> Stream:
    weights = stream.kernel, stream.bias, stream.weights
    kernel, bias, recurrent = jax.tree.map(lambda array: array.astype(dtype), weights)
    return stream._replace(kernel=kernel, bias=bias, weights=recurrent)


class Run(NamedTuple):
    """What the gradient needs of a stream; arrays over time.

    Attributes:
      stream: itself.
      saved: what the cell saved of each step.
      hidden: the state after each step.
    """

    stream: Stream
    saved: Saved
    hidden: Array


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(cell: Cell, unroll: int, streams: tuple[Stream, ...], flows: Flows) -> list[tuple[Array, Carry]]:
    return _forward(cell, unroll, streams, flows)[0]


def _forward(
    cell: Cell, unroll: int, streams: tuple[Stream, ...], flows: Flows
) -> tuple[list[tuple[Array, Carry]], tuple[list[Run], Flows]]:
    def step(carries: list[Carry], inputs: list[Any]) -> tuple[list[Carry], list[Any]]:
        """A step of every stream."""
        found = [_step(cell, *parts) for parts in zip(streams, carries, inputs, strict=True)]
        return [carry for carry, _ in found], [kept for _, kept in found]

    inputs = [(jnp.einsum("tbi,ig->tbg", stream.x, stream.kernel) + stream.bias, stream.mask) for stream in streams]
    last, kept = jax.lax.scan(step, [stream.carry for stream in streams], inputs, unroll=unroll)
    runs = [Run(stream, *arrays) for stream, arrays in zip(streams, kept, strict=True)]
    return [(_outputs(run), carry) for run, carry in zip(runs, last, strict=True)], (runs, flows)


def _step(cell: Cell, stream: Stream, carry: Carry, inputs: tuple[Array, Array | None]) -> tuple[Carry, Any]:
    projected, mask = inputs
    new, saved = cell.step(projected.astype(jnp.float32), stream.weights, carry)
    if mask is not None:
        new = _where(mask, new, carry)
    # Kept over all steps in the compute type.
    return new, jax.tree.map(lambda array: array.astype(projected.dtype), (saved, new[0]))


def _outputs(run: Run) -> Array:
    mask = run.stream.mask
    return run.hidden if mask is None else jnp.where(mask[..., None], run.hidden, 0)


def _where(mask: Array, counted: Any, otherwise: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(mask[:, None], a, b), counted, otherwise)


def _backward(
    cell: Cell, unroll: int, saved: tuple[list[Run], Flows], grads: list[tuple[Array, Carry]]
) -> tuple[tuple[Stream, ...], None]:
    runs, flows = saved
    befores = [_hidden_before(run) for run in runs]

    def step(carries: list[Carry], inputs: list[Any]) -> tuple[list[Carry], list[Array]]:
        """Back over a step of every stream."""
        found = [
            _step_gradient(cell, run.stream, carry, part)
            for run, carry, part in zip(runs, carries, inputs, strict=True)
        ]
        return [carry for carry, _ in found], [grad for _, grad in found]

    inputs = [
        (grad, run.saved, before, run.stream.mask, flow)
        for run, before, flow, (grad, _) in zip(runs, befores, flows, grads, strict=True)
    ]
    first, projected = jax.lax.scan(step, [carry for _, carry in grads], inputs, reverse=True, unroll=unroll)
    return tuple(
        _stream_gradient(cell, run, before, grad, carry)
        for run, before, grad, carry in zip(runs, befores, projected, first, strict=True)
    ), None


def _hidden_before(run: Run) -> Array:
    """The hidden state before each step."""
    return jnp.concatenate([run.stream.carry[0][None].astype(run.hidden.dtype), run.hidden[:-1]])


def _step_gradient(cell: Cell, stream: Stream, carry: Carry, inputs: tuple[Any, ...]) -> tuple[Carry, Array]:
    grad_output, saved, hidden, mask, flow = inputs
    grad_output, saved, hidden = jax.tree.map(lambda array: array.astype(jnp.float32), (grad_output, saved, hidden))
    grad, new = cell.step_gradient(saved, stream.weights, hidden, (carry[0] + grad_output, *carry[1:]))
    if flow is not None:
        new = jax.tree.map(lambda array: jnp.where(flow, array, 0), new)
    if mask is not None:
        # A step that does not count neither moves the carry nor gives an output. Nor does it cut the gradient off: that
        # of the last state comes through the padding.
        grad, new = jnp.where(mask[:, None], grad, 0), _where(mask, new, carry)
    return new, grad.astype(stream.x.dtype)


def _stream_gradient(cell: Cell, run: Run, hidden: Array, grad: Array, carry: Carry) -> Stream:
    stream = run.stream
    x, saved, hidden, rows = jax.tree.map(batch_major_rows, (stream.x, run.saved, hidden, grad))
    weights = cell.weight_gradients(saved, hidden, rows)
    found = Stream(
        x=jnp.einsum("tbg,ig->tbi", grad, stream.kernel),
        kernel=outer(x, rows),
        bias=jnp.sum(rows, 0, dtype=jnp.float32),
        weights=weights,
        carry=carry,
    )
    return jax.tree.map(lambda new, old: new.astype(old.dtype), found, stream._replace(mask=None))


_run.defvjp(_forward, _backward)
