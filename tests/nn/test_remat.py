"""What the backward pass keeps changes memory and work, and no number."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcls.nn.conv import Conv
from pcls.nn.dropout import Dropout
from pcls.nn.module import ModelDef
from pcls.nn.norm import BatchNorm
from pcls.nn.remat import run_block
from pcls.nn.training import TrainingPass

BATCH, SIZE, CHANNELS, BLOCKS = 8, 16, 8, 4
POLICIES = ["none", "products", "inputs"]
X = jax.random.normal(jax.random.key(1), (BATCH, SIZE, SIZE, CHANNELS))
KEYS = jax.random.split(jax.random.key(2), BATCH)


class Block(nnx.Module):
    """Two convolutions, each normalised, with activations and stochastic depth."""

    def __init__(self, place, *, rngs):
        layers = range(2)
        self.convs = nnx.List([Conv(CHANNELS, CHANNELS, 3, dtype=jnp.float32, rngs=rngs) for _ in layers])
        self.norms = nnx.List([BatchNorm(CHANNELS, rngs=rngs) for _ in layers])
        self.drop = Dropout(0.5, place, whole=True)

    def __call__(self, x, training=None):
        y = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = jnp.tanh(norm(conv(y), training))
        return x + self.drop(y, training)


class Net(nnx.Module):
    def __init__(self, remat, rngs):
        self.blocks = nnx.List([Block(place, rngs=rngs) for place in range(BLOCKS)])
        self.remat = remat

    def __call__(self, x, training=None):
        for block in self.blocks:
            x = run_block(block, x, training, self.remat)
        return x


def defined(remat):
    """The model, and its training pass."""
    model = ModelDef.of(lambda rngs: Net(remat, rngs))

    def training_pass(params, x, keys):
        unread = {path: jnp.zeros(stat.shape) for path, stat in model.stats.items()}
        return model.apply(params, unread, x, TrainingPass(keys, 4))

    return model, training_pass


@cache
def compiled(remat):
    """Parameters, and the program of a loss and its gradients."""
    model, training_pass = defined(remat)

    def loss(params, x, keys):
        y, stats = training_pass(params, x, keys)
        return jnp.mean(y**2), (y, stats)

    params, _ = model.init(jax.random.key(0))
    return params, jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).lower(params, X, KEYS).compile()


@pytest.mark.parametrize("remat", POLICIES[1:])
def test_values_statistics_and_gradients_are_those_of_keeping_all(remat):
    params, keeping = compiled("none")
    _, recomputing = compiled(remat)
    (expected, (y, stats)), grads = keeping(params, X, KEYS)
    (found, (y_found, stats_found)), grads_found = recomputing(params, X, KEYS)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(y_found, y, rtol=1e-5, atol=1e-5)
    assert len(stats_found) == 4 * BLOCKS
    for path, stat in stats.items():
        # Not zero, which is what went in.
        assert float(jnp.abs(stat).max()) > 1e-3
        np.testing.assert_allclose(stats_found[path], stat, rtol=1e-5, atol=1e-6, err_msg=path)
    for other, grad in zip(jax.tree.leaves(grads_found), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(other, grad, rtol=1e-4, atol=1e-5 * np.abs(grad).max())


def kept_feature_maps(remat):
    """How many numbers the backward pass is given, in feature maps; parameters and channels are a third of one."""
    model, training_pass = defined(remat)

    def saved(params, x):
        return jax.vjp(lambda *primals: training_pass(*primals, KEYS)[0], params, x)[1]

    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(saved, model.params, X))) / X.size


def test_each_policy_keeps_what_it_is_called_after():
    # Of each block its input, of each convolution its output.
    assert BLOCKS <= kept_feature_maps("inputs") < BLOCKS + 0.5
    assert BLOCKS + 2 * BLOCKS <= kept_feature_maps("products") < BLOCKS + 2 * BLOCKS + 0.5
    assert kept_feature_maps("none") > 8 * BLOCKS


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="jax 0.10 shares what is computed again, on CPU")
def test_the_less_is_kept_the_less_memory_and_the_more_work():
    programs = [compiled(remat)[1] for remat in POLICIES]
    memory = np.array([program.memory_analysis().temp_size_in_bytes for program in programs])
    flops = np.array([program.cost_analysis()["flops"] for program in programs])
    convolutions = 2 * BLOCKS * (2 * 9 * CHANNELS**2 * BATCH * SIZE**2)
    # Measured in arrays of the input's size: 25, 16 and 10.
    assert memory[1] < 0.75 * memory[0]
    assert memory[2] < 0.75 * memory[1]
    # Normalisation and activation are cheap to compute again; with `inputs` every convolution runs once more.
    assert flops[0] < flops[1] < flops[0] + 0.1 * convolutions
    assert flops[0] + 0.8 * convolutions < flops[2] < flops[0] + 1.2 * convolutions


def test_prediction_recomputes_nothing():
    def trace(remat):
        model, _ = defined(remat)
        params, stats = model.init(jax.random.key(0))
        return str(jax.make_jaxpr(lambda params, stats: model.apply(params, stats, X)[0])(params, stats))

    assert trace("inputs") == trace("none")
