"""The linear recurrence h_t = a_t h_{t-1} + b_t, which can run step by step or over many steps at once."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp
from jax import Array

from pcls.errors import UserError
from pcls.nn.platform import target_platform

Form = Literal["sequential", "parallel"]

# A complex array is held as its real and its imaginary part: with decays of their own for 128 states, 784 steps and a
# batch of 128, forward and back take 78 ms on two CPU cores, as complex64 they take 364.
Complex = tuple[Array, Array]
Values = TypeVar("Values", Array, Complex)

# Steps that the parallel form scans at once. On CPU few, that stay in its caches: 64 rows of 128, 2048 steps, forward
# and back on two cores, take 206 ms in chunks of 8, 226 of 16, 271 of 64, 300 of 128. Elsewhere many, since each chunk
# waits for the one before it; not measured.
CHUNK_ON_CPU = 8
CHUNK = 256

# An array, or real and imaginary part.
_Number = tuple[Array, ...]


def linear_scan(
    decay: Values,
    inputs: Values,
    start: Values | None = None,
    *,
    reverse: bool = False,
    form: Form | None = None,
    chunk: int | None = None,
) -> Values:
    """Runs h_t = decay_t * h_{t-1} + inputs_t over time, elementwise; state and arithmetic are float32.

    The gradient of a linear recurrence is the same recurrence in the other direction, so that it saves no more than
    the decays and the outputs.

    Args:
      decay: [time, batch, n], or [n] when it is the same at all steps; float32 even where inputs are bfloat16, which
        has no number between 0.996 and 1.
      inputs: [time, batch, n].
      start: h before the first step, [batch, n]; None: zeros.
      reverse: run from the last step to the first.
      form: `sequential`, one multiply-add a step; `parallel`, associative scans of chunks of steps, with a sequential
        carry between them; None: `fastest_form()`.
      chunk: steps that the parallel form scans at once at most; it need not divide the time. None: by device.
      All arrays are real, or all are pairs of real and imaginary part.

    Returns:
      h of every step, [time, batch, n] in the type of the inputs.

    Raises:
      UserError: there is no such form, or a chunk has no step.

    Source: Martin & Cundy 2018 (the associative form), Orvieto et al. 2023.
    """
    if form not in (None, *get_args(Form)):
        raise UserError(f'form of a linear recurrence is "{form}"; write one of {", ".join(get_args(Form))}')
    if chunk is None:
        chunk = CHUNK_ON_CPU if target_platform() == "cpu" else CHUNK
    if chunk < 1:
        raise UserError(f"chunk of a linear recurrence is {chunk}; a number of steps >= 1 is needed")
    scan = _Scan(reverse, form or fastest_form(), chunk)
    parts = _parts(inputs)
    begin = tuple(jnp.zeros(part.shape[1:], jnp.float32) for part in parts) if start is None else _parts(start)
    outputs: Any = _scan(scan, _parts(decay), parts, begin)
    return outputs if isinstance(inputs, tuple) else outputs[0]


def fastest_form() -> Form:
    """The form for the device that is compiled for, whatever the number of steps.

    On CPU there is no number of steps from which on the parallel form is faster: for 64 rows of 128, forward and back
    on two cores, the sequential one takes 0.3 to 0.8 of its time at 8 to 8192 steps. GPUs and TPUs, where each step is
    a kernel of its own, get the parallel one; not measured.
    """
    return "sequential" if target_platform() == "cpu" else "parallel"


class _Scan(NamedTuple):
    reverse: bool
    form: Form
    chunk: int


def _parts(value: Array | Complex) -> _Number:
    return value if isinstance(value, tuple) else (value,)


def _times(a: _Number, b: _Number) -> _Number:
    if len(a) == 1:
        return (a[0] * b[0],)
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def _plus(a: _Number, b: _Number) -> _Number:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _conjugate(a: _Number) -> _Number:
    return (a[0], *(-part for part in a[1:]))


def _as(a: _Number, like: _Number) -> _Number:
    return tuple(part.astype(other.dtype) for part, other in zip(a, like, strict=True))


def _float32(a: _Number) -> _Number:
    return tuple(part.astype(jnp.float32) for part in a)


def _constant(decay: _Number) -> bool:
    return decay[0].ndim == 1


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(scan: _Scan, decay: _Number, inputs: _Number, start: _Number) -> _Number:
    run = _sequential if scan.form == "sequential" else _parallel
    return run(scan, decay, inputs, _float32(start))


def _sequential(scan: _Scan, decay: _Number, inputs: _Number, start: _Number) -> _Number:
    def step(before: _Number, now: tuple[_Number | None, _Number]) -> tuple[_Number, _Number]:
        a, b = now
        after = _plus(_times(_float32(decay if a is None else a), before), _float32(b))
        return after, _as(after, b)

    return jax.lax.scan(step, start, (None if _constant(decay) else decay, inputs), reverse=scan.reverse)[1]


def _parallel(scan: _Scan, decay: _Number, inputs: _Number, start: _Number) -> _Number:
    steps = len(inputs[0])
    if steps == 0:
        return inputs
    chunks = -(-steps // scan.chunk)
    # Chunks of nearly equal lengths: less than a step of padding each.
    length = -(-steps // chunks)
    missing = chunks * length - steps
    # Padding lies where the scan comes last, so that it changes no step that counts.
    padding = (missing, 0) if scan.reverse else (0, missing)

    def chunked(values: _Number) -> _Number:
        return tuple(
            jnp.pad(part, (padding, (0, 0), (0, 0))).reshape(chunks, length, *part.shape[1:]) for part in values
        )

    def scan_chunk(before: _Number, now: tuple[_Number | None, _Number]) -> tuple[_Number, _Number]:
        a, b = now
        a = tuple(jnp.broadcast_to(part, (length, 1, len(part))) for part in decay) if a is None else a
        powers, local = jax.lax.associative_scan(_compose, (_float32(a), _float32(b)), reverse=scan.reverse)
        after = _plus(_times(powers, before), local)
        return tuple(part[0 if scan.reverse else -1] for part in after), _as(after, b)

    over = (None if _constant(decay) else chunked(decay), chunked(inputs))
    found = jax.lax.scan(scan_chunk, start, over, reverse=scan.reverse)[1]
    first = padding[0]
    return tuple(part.reshape(chunks * length, *part.shape[2:])[first : first + steps] for part in found)


def _compose(first: tuple[_Number, _Number], then: tuple[_Number, _Number]) -> tuple[_Number, _Number]:
    """Of two maps h -> a h + b the map that does both."""
    return _times(then[0], first[0]), _plus(_times(then[0], first[1]), then[1])


class _Saved(NamedTuple):
    decay: _Number
    start: _Number
    outputs: _Number


def _forward(scan: _Scan, decay: _Number, inputs: _Number, start: _Number) -> tuple[_Number, _Saved]:
    outputs = _scan(scan, decay, inputs, start)
    return outputs, _Saved(decay, start, outputs)


def _backward(scan: _Scan, saved: _Saved, grads: _Number) -> tuple[_Number, _Number, _Number]:
    decay, start, outputs = saved
    if scan.form == "parallel":
        flowing = _parallel_gradient(scan, decay, grads)
    elif _constant(decay):
        return _sequential_constant_gradient(scan, saved, grads)
    else:
        flowing = _sequential_gradient(scan, decay, grads)
    first = -1 if scan.reverse else 0
    before = _shifted(scan.reverse, outputs, start)
    of_decay = _times(_float32(flowing), _conjugate(_float32(before)))
    if _constant(decay):
        of_decay, leading = tuple(part.sum((0, 1)) for part in of_decay), decay
    else:
        leading = tuple(part[first] for part in decay)
    of_start = _times(_conjugate(_float32(leading)), _float32(tuple(part[first] for part in flowing)))
    return _as(of_decay, decay), flowing, _as(of_start, start)


def _shifted(reverse: bool, values: _Number, start: _Number) -> _Number:
    """The values one step later in running order, `start` [batch, n] at the first."""
    begin = tuple(part[None] for part in _as(start, values))
    if reverse:
        return tuple(jnp.concatenate([part[1:], one]) for part, one in zip(values, begin, strict=True))
    return tuple(jnp.concatenate([one, part[:-1]]) for part, one in zip(values, begin, strict=True))


def _sequential_gradient(scan: _Scan, decay: _Number, grads: _Number) -> _Number:
    """Of the inputs: g_t = grad_t + conj(decay_{t+1}) g_{t+1}."""

    def step(later: _Number, now: tuple[_Number, _Number]) -> tuple[_Number, _Number]:
        a, grad = now
        total = _plus(_float32(grad), later)
        return _times(_conjugate(_float32(a)), total), _as(total, grad)

    zero = tuple(jnp.zeros(part.shape[1:], jnp.float32) for part in grads)
    return jax.lax.scan(step, zero, (decay, grads), reverse=not scan.reverse)[1]


def _sequential_constant_gradient(scan: _Scan, saved: _Saved, grads: _Number) -> tuple[_Number, _Number, _Number]:
    """Sums the decay's gradient in the loop: afterwards, outputs and gradients would be read once more."""
    decay, start, outputs = saved
    turned = _conjugate(_float32(decay))

    def step(carry: tuple[_Number, _Number], now: tuple[_Number, _Number]) -> tuple[tuple[_Number, _Number], _Number]:
        later, of_decay = carry
        grad, output = now
        total = _plus(_float32(grad), _times(turned, later))
        return (total, _plus(of_decay, _times(later, _conjugate(_float32(output))))), _as(total, grad)

    zero = tuple(jnp.zeros(part.shape[1:], jnp.float32) for part in grads)
    (first, of_decay), flowing = jax.lax.scan(step, (zero, zero), (grads, outputs), reverse=not scan.reverse)
    of_decay = _plus(of_decay, _times(first, _conjugate(_float32(start))))
    return _as(tuple(part.sum(0) for part in of_decay), decay), flowing, _as(_times(turned, first), start)


def _parallel_gradient(scan: _Scan, decay: _Number, grads: _Number) -> _Number:
    """As `_sequential_gradient`."""
    zero = tuple(jnp.zeros(part.shape[1:], jnp.float32) for part in grads)
    back = scan._replace(reverse=not scan.reverse)
    # Which decay goes with the first step back is of no account: nothing comes before it.
    turned = _conjugate(decay if _constant(decay) else _shifted(back.reverse, decay, zero))
    return _parallel(back, turned, grads, zero)


_scan.defvjp(_forward, _backward)
