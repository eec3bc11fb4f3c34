"""Both forms of the linear recurrence against a loop in float64."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.errors import UserError
from pcls.nn.platform import compiling_for
from pcls.nn.recurrent.linear import fastest_form, linear_scan

STEPS, BATCH, N = 5, 2, 3
# A chunk that does not divide the steps.
CHUNK = 2
# Sums of a few products of numbers near 1.
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def numbers(*shape):
    """Complex, in the unit disc for a decay."""
    rng = np.random.default_rng(shape)
    return rng.uniform(-0.7, 0.7, shape) + 1j * rng.uniform(-0.7, 0.7, shape)


DECAYS = {"varying": numbers(STEPS, BATCH, N), "constant": numbers(N)}
INPUTS, START, WEIGHTS = numbers(STEPS, BATCH, N) * 2, numbers(BATCH, N), numbers(STEPS, BATCH, N)[::-1] * 3


def reference(decay, inputs, start, reverse):
    """A loop, in numpy's float64 or traced."""
    h, found = start, [None] * len(inputs)
    decay = decay if decay.ndim == 3 else [decay] * len(inputs)
    for t in range(len(inputs))[:: -1 if reverse else 1]:
        h = decay[t] * h + inputs[t]
        found[t] = h
    return found


def held(array, kind):
    """As linear_scan takes it."""
    parts = jnp.asarray(array.real, jnp.float32), jnp.asarray(array.imag, jnp.float32)
    return parts if kind == "complex" else parts[0]


def plain(value):
    return np.asarray(value[0]) + 1j * np.asarray(value[1]) if isinstance(value, tuple) else np.asarray(value)


@cache
def computed(kind, decay, reverse, form):
    """Outputs, and gradients of a weighted sum of them; compiled once for all tests."""
    arrays = [held(array, kind) for array in (DECAYS[decay], INPUTS, START)]

    @jax.jit
    def both(*arrays):
        run = partial(linear_scan, reverse=reverse, form=form, chunk=CHUNK)
        outputs, gradient = jax.vjp(run, *arrays)
        return outputs, gradient(held(WEIGHTS, kind))

    return both(*arrays)


CASES = [
    (kind, decay, reverse, form)
    for kind in ("real", "complex")
    for decay in ("varying", "constant")
    for reverse in (False, True)
    for form in ("sequential", "parallel")
]


@pytest.mark.parametrize(("kind", "decay", "reverse", "form"), CASES)
def test_outputs_are_those_of_a_loop_in_float64(kind, decay, reverse, form):
    arrays = [array if kind == "complex" else array.real for array in (DECAYS[decay], INPUTS, START)]
    expected = np.stack(reference(*arrays, reverse))
    np.testing.assert_allclose(plain(computed(kind, decay, reverse, form)[0]), expected, **CLOSE)


@cache
def loop_gradients(kind, decay, reverse):
    """Of jax's own differentiation of the loop: for a complex number, by its real and by its imaginary part."""

    def number(value):
        return value[0] + 1j * value[1] if isinstance(value, tuple) else value

    def score(decay, inputs, start):
        outputs = jnp.stack(reference(number(decay), number(inputs), number(start), reverse))
        return jnp.real(outputs * number(held(WEIGHTS.conj(), kind))).sum()

    return jax.grad(score, (0, 1, 2))(*(held(array, kind) for array in (DECAYS[decay], INPUTS, START)))


@pytest.mark.parametrize(("kind", "decay", "reverse", "form"), CASES)
def test_gradients_are_those_of_the_loop(kind, decay, reverse, form):
    found = computed(kind, decay, reverse, form)[1]
    expected = loop_gradients(kind, decay, reverse)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(plain(one), plain(other), **CLOSE)


def test_a_chunk_of_more_than_all_steps_is_one_scan():
    decay, inputs = held(DECAYS["varying"], "real"), held(INPUTS, "real")
    found = linear_scan(decay, inputs, form="parallel", chunk=8)
    np.testing.assert_allclose(found, linear_scan(decay, inputs, form="sequential"), **CLOSE)


@pytest.mark.parametrize("form", ["sequential", "parallel"])
def test_without_a_start_the_first_state_is_the_first_input(form):
    found = linear_scan(held(DECAYS["varying"], "real"), held(INPUTS, "real"), form=form)
    np.testing.assert_array_equal(found[0], np.float32(INPUTS[0].real))


@pytest.mark.parametrize("form", ["sequential", "parallel"])
def test_bfloat16_inputs_are_summed_in_float32(form):
    # 1 + 1/512 is no bfloat16: with a state of that type, nothing would ever be added to 1.
    inputs = jnp.full((512, 1, 1), 1 / 512, jnp.bfloat16)
    found = linear_scan(jnp.ones(1), inputs, jnp.ones((1, 1)), form=form, chunk=64)
    assert found.dtype == jnp.bfloat16
    assert float(found[-1, 0, 0]) == 2.0


@pytest.mark.parametrize("form", ["sequential", "parallel"])
def test_gradients_have_the_types_of_what_they_are_of(form):
    arrays = jnp.ones((3, 1, 1)), jnp.ones((3, 1, 1), jnp.bfloat16), jnp.ones((1, 1), jnp.bfloat16)
    found = jax.grad(lambda *arrays: linear_scan(*arrays, form=form).astype(jnp.float32).sum(), (0, 1, 2))(*arrays)
    assert [grad.dtype for grad in found] == [jnp.float32, jnp.bfloat16, jnp.bfloat16]
    # h = 2, 3, 4 after a start of 1: 3 * 1 of the first decay, 2 * 2 of the second, 1 * 3 of the last.
    np.testing.assert_array_equal(found[0].ravel(), [3, 4, 3])


def saved_bytes(form):
    """Of what lies between forward and backward pass."""
    arrays = jnp.ones((64, 2, 4)), jnp.ones((64, 2, 4))
    _, gradient = jax.vjp(partial(linear_scan, form=form, chunk=8), *arrays)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("form", ["sequential", "parallel"])
def test_the_gradient_saves_decays_outputs_and_the_start(form):
    assert saved_bytes(form) == 4 * (2 * 64 * 2 * 4 + 2 * 4)


def test_the_form_follows_the_device_that_is_compiled_for():
    found = []
    for platform in ("cpu", "cuda", "tpu"):
        with compiling_for(platform):
            found.append(fastest_form())
    assert found == ["sequential", "parallel", "parallel"]


def test_a_form_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(UserError, match=r'^form of a linear recurrence is "fast"; write one of sequential, parallel$'):
        linear_scan(jnp.ones(1), jnp.ones((2, 1, 1)), form="fast")


def test_a_chunk_without_steps_is_an_error():
    with pytest.raises(UserError, match=r"^chunk of a linear recurrence is 0; a number of steps >= 1 is needed$"):
        linear_scan(jnp.ones(1), jnp.ones((2, 1, 1)), form="parallel", chunk=0)
