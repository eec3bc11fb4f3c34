"""The sequential scan against plain loops: values, gradients, masks, chunks, truncation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from pcls.nn.recurrent.cells import GRU, LSTM, SimpleRNN
from pcls.nn.recurrent.sequential import Scan, Stream, sequential_scan, zero_carry

STEPS, BATCH, INPUTS, HIDDEN = 5, 3, 4, 2
CELLS = (SimpleRNN("tanh"), SimpleRNN("relu"), LSTM(), GRU("after"), GRU("before"))
BOTH = (False, True)
LENGTHS = jnp.array([5, 1, 3])


def a_stream(cell, *, seed=0, mask=None):
    draw = np.random.default_rng(seed).normal
    gates = cell.gates * HIDDEN
    weights = [draw(size=(HIDDEN, gates)) / 2, *([draw(size=HIDDEN)] if cell == GRU("after") else [])]
    carry = [draw(size=(BATCH, HIDDEN)) for _ in range(cell.states)]
    arrays = (draw(size=(STEPS, BATCH, INPUTS)), draw(size=(INPUTS, gates)), draw(size=gates), weights, carry)
    x, kernel, bias, weights, carry = jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), arrays)
    return Stream(x, kernel, bias, tuple(weights), tuple(carry), mask)


def plain_step(cell, z, weights, carry):
    """A step as the publications write it."""
    h = carry[0]
    sigmoid = jax.nn.sigmoid
    match cell:
        case SimpleRNN():
            return ((jnp.tanh if cell.activation == "tanh" else jax.nn.relu)(z + h @ weights[0]),)
        case LSTM():
            i, f, g, o = jnp.split(z + h @ weights[0], 4, -1)
            c = sigmoid(f) * carry[1] + sigmoid(i) * jnp.tanh(g)
            return sigmoid(o) * jnp.tanh(c), c
    x, kernels = jnp.split(z, 3, -1), jnp.split(weights[0], 3, -1)
    r, u = (sigmoid(x[n] + h @ kernels[n]) for n in range(2))
    after = cell.reset == "after"
    n = jnp.tanh(x[2] + (r * (h @ kernels[2] + weights[1]) if after else (r * h) @ kernels[2]))
    return ((1 - u) * n + u * h,)


def plain(cell, stream: Stream, *, reverse: bool, truncate: int) -> tuple[Array, tuple[Array, ...]]:
    """Outputs and last carry of a scan that jax differentiates."""

    def step(carry, inputs):
        number, x, counts = inputs
        if truncate:
            cut = ((number + reverse) % truncate == 0) & counts[:, None]
            carry = jax.tree.map(lambda state: jnp.where(cut, jax.lax.stop_gradient(state), state), carry)
        new = plain_step(cell, x @ stream.kernel + stream.bias, stream.weights, carry)
        new = jax.tree.map(lambda a, b: jnp.where(counts[:, None], a, b), new, carry)
        return new, jnp.where(counts[:, None], new[0], 0)

    mask = jnp.ones((STEPS, BATCH), bool) if stream.mask is None else stream.mask
    over_time = jnp.arange(STEPS), stream.x, mask
    carry, outputs = jax.lax.scan(step, stream.carry, over_time, reverse=reverse)
    return outputs, carry


def weighted(result):
    """A number that depends on every output and carry."""
    outputs, carry = result
    weights = jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape)
    return jnp.sum(outputs * weights) + sum(jnp.sum(jnp.sin(3 * state)) for state in carry)


@partial(jax.jit, static_argnums=0)
def ours(scan, streams, mask):
    def total(streams):
        results = sequential_scan(scan, [stream._replace(mask=mask) for stream in streams])
        return sum(map(weighted, results)), results

    return jax.value_and_grad(total, has_aux=True)(streams)


@partial(jax.jit, static_argnums=0)
def expected(scan, streams, mask):
    def total(streams):
        results = [
            plain(scan.cell, stream._replace(mask=mask), reverse=reverse, truncate=scan.truncate)
            for stream, reverse in zip(streams, scan.reverse, strict=True)
        ]
        return sum(map(weighted, results)), results

    return jax.value_and_grad(total, has_aux=True)(streams)


def assert_close(found, wanted):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), found, wanted)


@pytest.mark.parametrize(
    "scan",
    [
        *(Scan(cell, BOTH, unroll=1) for cell in CELLS),
        Scan(LSTM(), BOTH, unroll=STEPS),
        Scan(LSTM(), BOTH, chunk=2, truncate=3, unroll=1),
    ],
    ids=str,
)
def test_both_directions_and_their_gradients_are_those_of_a_plain_loop(scan):
    streams = [a_stream(scan.cell, seed=seed) for seed in range(2)]
    # Some cases count all steps, so that a mask is not needed for a right result.
    mask = jnp.arange(STEPS)[:, None] < LENGTHS if scan.unroll == 1 else None
    assert_close(ours(scan, streams, mask), expected(scan, streams, mask))


def test_a_chunk_longer_than_the_sequence_changes_nothing():
    stream = a_stream(LSTM())
    assert_close(
        sequential_scan(Scan(LSTM(), (False,), chunk=100), [stream]), sequential_scan(Scan(LSTM(), (False,)), [stream])
    )


def test_chunks_under_bfloat16_lose_no_gradient():
    draw = np.random.default_rng(0).normal
    x, kernel, recurrent = (jnp.asarray(draw(size=size), jnp.float32) for size in ((1024, 1, 2), (2, 2), (2, 2)))

    def gradient(dtype, chunk):
        def total(kernel):
            weights = (kernel.astype(dtype), jnp.zeros(2, dtype), (recurrent.astype(dtype) / 4,))
            stream = Stream((x + 1).astype(dtype), *weights, zero_carry(SimpleRNN(), 1, 2))
            return sequential_scan(Scan(SimpleRNN(), (False,), chunk=chunk), [stream])[0][0].sum(dtype=jnp.float32)

        return jax.grad(total)(kernel)

    wanted = gradient(jnp.float32, 0)
    assert jnp.linalg.norm(gradient(jnp.bfloat16, 4) - wanted) < 0.01 * jnp.linalg.norm(wanted)


def test_a_long_lstm_in_chunks_takes_an_eighth_of_the_memory():
    def temp_bytes(chunk):
        def loss(weights, x):
            kernel, recurrent = weights
            carry = zero_carry(LSTM(), 4, 32)
            stream = Stream(x, kernel, jnp.zeros(128), (recurrent,), carry)
            _, (hidden, _) = sequential_scan(Scan(LSTM(), (False,), chunk=chunk), [stream])[0]
            return jnp.sum(hidden**2)

        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 128), (32, 128), (4096, 4, 1))]
        compiled = jax.jit(jax.grad(loss)).lower(tuple(shapes[:2]), shapes[2]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temp_bytes(64) <= temp_bytes(0) / 8


def test_the_carry_is_float32_under_bfloat16():
    cell = SimpleRNN("relu")
    steps, kernel = 400, jnp.ones((1, 1), jnp.bfloat16)
    # A sum of ones: in bfloat16 it would stop at 256.
    stream = Stream(
        jnp.ones((steps, 1, 1), jnp.bfloat16), kernel, jnp.zeros(1, jnp.bfloat16), (kernel,), zero_carry(cell, 1, 1)
    )
    outputs, (hidden,) = sequential_scan(Scan(cell, (False,)), [stream])[0]
    assert outputs.dtype == jnp.bfloat16
    assert hidden.dtype == jnp.float32
    # The product is taken of the rounded state, so it rounds once a step, but does not stop.
    assert float(hidden[0, 0]) > 256


def test_truncated_gradients_do_not_depend_on_the_padding():
    def gradients(padding):
        streams = [a_stream(SimpleRNN("tanh"), seed=seed) for seed in range(2)]

        def total(recurrent):
            padded = [
                stream._replace(
                    x=jnp.pad(stream.x, ((0, padding), (0, 0), (0, 0))),
                    mask=jnp.arange(STEPS + padding)[:, None] < LENGTHS,
                    weights=(recurrent,),
                )
                for stream in streams
            ]
            return sum(jnp.sum(carry[0]) for _, carry in sequential_scan(Scan(SimpleRNN(), BOTH, 3, unroll=1), padded))

        return jax.grad(total)(streams[0].weights[0])

    np.testing.assert_allclose(gradients(4), gradients(0), rtol=1e-6, atol=1e-6)
