"""The layers with a linear recurrence against their publications' equations, step by step in float64."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcls.errors import UserError
from pcls.nn.recurrent.linear_layers import LRU, RGLRU, LinearLayer, MinGRU, MinLSTM

CELLS = {"lru": LRU, "mingru": MinGRU, "minlstm": MinLSTM, "rglru": RGLRU}
STEPS, INPUTS, HIDDEN = 5, 2, 3
LENGTHS = np.array([3, 5, 0], np.int32)
BATCH = len(LENGTHS)
COUNTS = np.arange(STEPS)[:, None] < LENGTHS
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS, BATCH, INPUTS)).astype(np.float32)
WEIGHTS = RNG.normal(size=(STEPS, BATCH, 2 * HIDDEN)).astype(np.float32)
LAST_WEIGHTS = RNG.normal(size=(BATCH, 2 * HIDDEN)).astype(np.float32)


def built(name, *, bidirectional=True, dtype=jnp.float32, **options):
    return LinearLayer(
        CELLS[name], INPUTS, HIDDEN, bidirectional=bidirectional, dtype=dtype, rngs=nnx.Rngs(0), **options
    )


@cache
def layer(name):
    """Of both directions, every parameter away from zero."""
    made = built(name)
    state = nnx.state(made, nnx.Param)
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(1)
    moved = [leaf + jnp.asarray(rng.normal(size=leaf.shape) / 3, jnp.float32) for leaf in leaves]
    nnx.update(made, jax.tree.unflatten(tree, moved))
    return made


@cache
def step(name):
    """Compiled once: outputs, last, and the gradients of a weighted sum of both."""
    graph, params = nnx.split(layer(name))

    def score(params, x, lengths):
        outputs, last = nnx.merge(graph, params)(x, lengths)
        return (outputs * WEIGHTS[: len(x)]).sum() + (last * LAST_WEIGHTS).sum(), (outputs, last)

    compiled = jax.jit(jax.value_and_grad(score, (0, 1), has_aux=True))
    return lambda x, lengths: compiled(params, x, lengths)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lru(p, x):
    decay = np.exp(-np.exp(p["nu_log"]) + 1j * np.exp(p["theta_log"]))
    b, c = p["b_re"] + 1j * p["b_im"], p["c_re"] + 1j * p["c_im"]
    h = np.zeros(HIDDEN, complex)
    for now in x:
        h = decay * h + np.exp(p["gamma_log"]) * (now @ b)
        yield (h @ c).real + now @ p["d"]


def mingru(p, x):
    h = np.zeros(HIDDEN)
    for now in x:
        z, new = np.split(now @ p["kernel"] + p["bias"], 2)
        h = (1 - sigmoid(z)) * h + sigmoid(z) * new
        yield h


def minlstm(p, x):
    h = np.zeros(HIDDEN)
    for now in x:
        f, i, new = np.split(now @ p["kernel"] + p["bias"], 3)
        f, i = sigmoid(f), sigmoid(i)
        h = f / (f + i) * h + i / (f + i) * new
        yield h


def rglru(p, x):
    h = np.zeros(HIDDEN)
    for now in x:
        u = now @ p["kernel"] + p["bias"]
        r, i = sigmoid(u * p["gates"] + p["gate_bias"])
        a = sigmoid(-p["decay"]) ** (8 * r)
        h = a * h + np.sqrt(1 - a**2) * (i * u)
        yield h


EQUATIONS = {"lru": lru, "mingru": mingru, "minlstm": minlstm, "rglru": rglru}


def expected(name, lengths):
    """Outputs and last of one sequence after another, without any padding."""
    outputs, last = np.zeros((STEPS, BATCH, 2 * HIDDEN)), np.zeros((BATCH, 2 * HIDDEN))
    params = nnx.to_pure_dict(nnx.state(layer(name), nnx.Param))
    forward, backward = (
        {key: np.asarray(value, np.float64) for key, value in params[way].items()} for way in ("forward", "backward")
    )
    for index, length in enumerate(lengths):
        if length:
            x = X[:length, index].astype(np.float64)
            there = np.stack(list(EQUATIONS[name](forward, x)))
            back = np.stack(list(EQUATIONS[name](backward, x[::-1])))[::-1]
            outputs[:length, index] = np.concatenate([there, back], 1)
            last[index] = np.concatenate([there[-1], back[0]])
    return outputs, last


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("lengths", [np.full(BATCH, STEPS, np.int32), LENGTHS], ids=["full", "padded"])
def test_outputs_and_final_states_are_those_of_the_publication(name, lengths):
    (_, found), _ = step(name)(X, lengths)
    for one, other in zip(found, expected(name, lengths), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)


def test_without_lengths_all_steps_count():
    for one, other in zip(jax.jit(layer("minlstm"))(X), expected("minlstm", [STEPS] * BATCH), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", CELLS)
def test_padding_changes_neither_outputs_nor_gradients_even_as_nan(name):
    zeros = step(name)(np.where(COUNTS[..., None], X, 0), LENGTHS)
    nans = step(name)(np.where(COUNTS[..., None], X, np.nan), LENGTHS)
    jax.tree.map(np.testing.assert_array_equal, zeros, nans)
    (_, (outputs, last)), (_, of_x) = nans
    assert not np.asarray(outputs)[~COUNTS].any() and not np.asarray(of_x)[~COUNTS].any()
    assert not np.asarray(last)[2].any()


@pytest.mark.parametrize("name", ["lru", "rglru"])
def test_a_longer_padding_gives_the_same_numbers(name):
    """Of the layer with a constant decay and of one with its own at each step."""
    lengths = np.array([3, 2, 1], np.int32)
    (_, (outputs, last)), (of_params, of_x) = step(name)(X, lengths)
    (_, (short, short_last)), (of_params_short, of_x_short) = step(name)(X[:3], lengths)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(outputs[:3], short)
    close(last, short_last)
    close(of_x[:3], of_x_short)
    jax.tree.map(close, of_params, of_params_short)


@pytest.mark.parametrize("name", CELLS)
def test_every_parameter_has_a_gradient(name):
    _, (of_params, _) = step(name)(X, LENGTHS)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(of_params))


@pytest.mark.parametrize("name", CELLS)
def test_bfloat16_comes_out_as_bfloat16_near_the_float32_numbers(name):
    narrow = built(name, dtype=jnp.bfloat16)
    nnx.update(narrow, nnx.state(layer(name), nnx.Param))
    for one, other in zip(jax.jit(narrow)(X, LENGTHS), expected(name, LENGTHS), strict=True):
        assert one.dtype == jnp.bfloat16
        # Products of some ten numbers near 1, each with 8 bits.
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=0.05)


def test_the_form_reaches_the_scan():
    with pytest.raises(UserError, match=re.escape('form of a linear recurrence is "fast"')):
        built("mingru", form="fast")(jnp.asarray(X))


def test_one_direction_has_no_weights_of_the_other():
    made = built("minlstm", bidirectional=False)
    assert nnx.to_pure_dict(nnx.state(made, nnx.Param)).keys() == {"forward"}
    outputs, last = made(jnp.asarray(X))
    assert outputs.shape == (STEPS, BATCH, HIDDEN) and last.shape == (BATCH, HIDDEN)


def test_an_lru_starts_in_its_ring():
    made = LRU(1, 1000, r_min=0.5, r_max=0.9, max_phase=0.3, rngs=nnx.Rngs(0))
    re_part, im_part = made.decay()
    size, phase = np.hypot(re_part, im_part), np.arctan2(im_part, re_part)
    assert 0.5 <= size.min() < 0.52 and 0.895 < size.max() <= 0.9001
    # Uniform over the area: the median of the squares lies in the middle.
    assert np.median(size**2) == pytest.approx((0.25 + 0.81) / 2, abs=0.02)
    assert 0 < phase.min() < 0.01 and 0.29 < phase.max() <= 0.3001
    np.testing.assert_allclose(np.exp(made.gamma_log[...]), np.sqrt(1 - size**2), rtol=1e-4)


@pytest.mark.parametrize(
    ("cell", "odds"),
    [
        (MinGRU, lambda z, new: sigmoid(-z) / sigmoid(z)),
        (MinLSTM, lambda f, i, new: sigmoid(f) / sigmoid(i)),
    ],
)
def test_a_memory_sets_how_long_units_remember_at_first(cell, odds):
    bias = np.asarray(cell(1, 1000, memory=100, rngs=nnx.Rngs(0)).bias[...])
    steps = 1 + odds(*bias.reshape(-1, 1000))
    assert 2 <= steps.min() < 2.1 and 95 < steps.max() <= 100.1
    assert np.median(steps - 1) == pytest.approx(np.sqrt(99), rel=0.2)


def test_by_default_gates_start_half_open():
    assert not MinGRU(1, 4, rngs=nnx.Rngs(0)).bias[...].any()


def test_an_rglru_forgets_slowly_at_first():
    made = RGLRU(1, 1000, rngs=nnx.Rngs(0))
    slowest = sigmoid(-np.asarray(made.decay[...], np.float64)) ** 8
    assert 0.899 < slowest.min() < 0.902 and 0.998 < slowest.max() < 0.9991


def test_gates_far_from_their_middle_give_finite_gradients():
    """sqrt(1 - a^2) has no slope at a = 1, and both gates of a minLSTM can vanish."""
    x = jnp.full((2, 1, 1), 1.0)
    for cell in (RGLRU, MinLSTM):
        made = LinearLayer(cell, 1, 1, dtype=jnp.float32, rngs=nnx.Rngs(0))
        bias = made.forward.gate_bias if cell is RGLRU else made.forward.bias
        bias[...] = jnp.full_like(bias[...], -300.0)
        grads = nnx.grad(lambda made: made(x)[0].sum())(made)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(LRU, r_min=0.9, r_max=0.5), "r_min 0.9 and r_max 0.5 of an LRU must be 0 <= r_min < r_max < 1"),
        (partial(LRU, max_phase=0.0), "max_phase 0.0 of an LRU must be > 0 (radians)"),
        (partial(MinGRU, memory=1), "memory of a linear recurrence is 1; a number of steps >= 2 is needed"),
    ],
)
def test_an_option_outside_its_range_is_told(make, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        make(1, 2, rngs=nnx.Rngs(0))
