"""Gradients in micro-batches and where the loss is sharpest, of a model that numpy can follow."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.nn.platform import compiling_for
from pcls.parallel.mesh import batch_sharding, make_mesh, replicated
from pcls.training.gradients import accumulated, sharpness_aware, split_batch

EXAMPLES, FEATURES, HIDDEN = 32, 6, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
# Undecodable records count for nothing; whole micro-batches of them too.
WEIGHT = (RNG.random(EXAMPLES) > 0.3).astype(np.float32)
WEIGHT[::4] = 0
SHARE = WEIGHT / WEIGHT.sum()
PARAMS = {
    "first": jnp.asarray(RNG.normal(size=(FEATURES, HIDDEN)), jnp.float32),
    "second": jnp.asarray(RNG.normal(size=HIDDEN), jnp.float32),
}


def loss_fn(params, batch, group_size=None):
    """A share of a mean, with the hidden layer normalised over groups of examples, and two sums beside it."""
    x, share = batch
    hidden = jnp.tanh(x @ params["first"])
    if group_size:
        groups = hidden.reshape(-1, group_size, HIDDEN)
        hidden = ((groups - groups.mean(1, keepdims=True)) / (groups.std(1, keepdims=True) + 0.1)).reshape(-1, HIDDEN)
    losses = (hidden @ params["second"]) ** 2
    return jnp.sum(losses * share), {"count": jnp.sum(share > 0), "squares": (hidden**2).sum(0)}


def assert_close(found, expected, rtol=1e-5):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for some, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert some.dtype == other.dtype
        np.testing.assert_allclose(some, other, rtol=rtol, atol=rtol * np.abs(other).max())


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_gradients_loss_and_sums_of_micro_batches_are_those_of_the_whole_batch(count, group_size, platform):
    of_loss = partial(loss_fn, group_size=group_size)
    with compiling_for(platform):
        found = jax.jit(accumulated(of_loss, count, group_size or 1))(PARAMS, (X, SHARE))
    expected = jax.jit(jax.value_and_grad(of_loss, has_aux=True))(PARAMS, (X, SHARE))
    assert int(found[0][1]["count"]) == (WEIGHT > 0).sum()
    assert_close(found, expected)


def test_an_accelerator_loops_and_a_cpu_does_not():
    def loops(platform):
        with compiling_for(platform):
            return " scan" in str(jax.make_jaxpr(accumulated(loss_fn, 4, 1))(PARAMS, (X, SHARE)))

    assert loops("tpu")
    assert loops("gpu")
    assert not loops("cpu")


@pytest.mark.parametrize(("count", "block"), [(2, 1), (2, 4), (4, 2), (1, 8)])
def test_blocks_stay_together_and_each_micro_batch_has_the_same_share_of_every_part(count, block):
    rows = np.arange(EXAMPLES)
    parts = np.asarray(split_batch(jnp.asarray(rows), count, block))
    assert parts.shape == (count, EXAMPLES // count)
    assert sorted(parts.ravel()) == rows.tolist()
    blocks = parts.reshape(count, -1, block)
    assert (blocks == blocks[:, :, :1] + np.arange(block)).all()
    assert (blocks[:, :, 0] % block == 0).all()
    # Of each of four devices with eight rows.
    for part in parts:
        assert np.bincount(part // 8, minlength=4).tolist() == [8 // count] * 4


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_rows_stay_on_their_device(platform):
    mesh = make_mesh(8)
    rows = batch_sharding(mesh)
    batch = jax.eval_shape(lambda: (jnp.zeros(X.shape), jnp.zeros(EXAMPLES)))

    def placed(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    with compiling_for(platform):
        gradients = jax.jit(accumulated(partial(loss_fn, group_size=2), 2, 2), out_shardings=replicated(mesh))
        params = jax.tree.map(lambda leaf: placed(leaf, replicated(mesh)), PARAMS)
        text = gradients.lower(params, jax.tree.map(lambda leaf: placed(leaf, rows), batch)).compile().as_text()
    assert "all-reduce" in text
    for name in ("all-to-all", "collective-permute", "all-gather"):
        assert name not in text


@pytest.mark.parametrize("count", [1, 2])
def test_sharpness_aware_gradients_are_those_a_step_of_length_rho_uphill(count):
    rho = 0.3
    found = jax.jit(sharpness_aware(accumulated(loss_fn, count, 1), rho))(PARAMS, (X, SHARE))

    def numpy_gradients(first, second):
        hidden = np.tanh(X @ first)
        out = hidden @ second
        of_out = 2 * out * SHARE
        return X.T @ (of_out[:, None] * second * (1 - hidden**2)), hidden.T @ of_out, np.sum(out**2 * SHARE)

    first, second = (np.asarray(PARAMS[name], np.float64) for name in ("first", "second"))
    of_first, of_second, loss = numpy_gradients(first, second)
    scale = rho / np.sqrt((of_first**2).sum() + (of_second**2).sum())
    ahead = numpy_gradients(first + scale * of_first, second + scale * of_second)
    (found_loss, sums), grads = found
    np.testing.assert_allclose(found_loss, loss, rtol=1e-5)
    assert int(sums["count"]) == (WEIGHT > 0).sum()
    np.testing.assert_allclose(grads["first"], ahead[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grads["second"], ahead[1], rtol=1e-4, atol=1e-5)
    assert np.abs(ahead[0] / of_first - 1).max() > 0.1


def test_a_gradient_of_zero_looks_ahead_at_itself():
    grads = jax.jit(sharpness_aware(accumulated(loss_fn, 1, 1), 0.3))(PARAMS, (X, 0 * SHARE))[1]
    assert all(not np.asarray(leaf).any() for leaf in grads.values())
