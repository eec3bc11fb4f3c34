"""A module split into a definition and flat dicts of arrays by path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcls.nn.module import ModelDef
from pcls.nn.norm import BatchNorm
from pcls.nn.training import TrainingPass


class Net(nnx.Module):
    """Two layers in a list and a normalisation."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.bn = BatchNorm(4, rngs=rngs)

    def __call__(self, x, training=None):
        for layer in self.layers:
            x = layer(x)
        return self.bn(x, training)


@pytest.fixture(scope="module")
def definition():
    return ModelDef.of(Net)


def test_paths_name_the_place_of_each_array(definition):
    assert {path: leaf.shape for path, leaf in definition.params.items()} == {
        "bn/bias": (4,),
        "bn/scale": (4,),
        "layers/0/bias": (4,),
        "layers/0/kernel": (3, 4),
        "layers/1/bias": (4,),
        "layers/1/kernel": (4, 4),
    }
    assert set(definition.stats) == {"bn/mean", "bn/var"}
    assert definition.parameter_count == 4 + 4 + 4 + 12 + 4 + 16


def test_defining_makes_no_array(definition):
    assert {type(leaf) for leaf in definition.params.values()} == {jax.ShapeDtypeStruct}


def test_the_key_decides_the_start(definition):
    some, same, other = (definition.init(jax.random.key(seed))[0]["layers/0/kernel"] for seed in (1, 1, 2))
    assert np.array_equal(some, same)
    assert not np.array_equal(some, other)


def test_applying_is_pure(definition):
    params, stats = definition.init(jax.random.key(0))
    before = {path: np.asarray(array) for path, array in (params | stats).items()}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
    _, found = definition.apply(params, stats, x, TrainingPass())
    assert set(found) == set(stats)
    assert not np.array_equal(found["bn/mean"], stats["bn/mean"])
    assert all(np.array_equal((params | stats)[path], array) for path, array in before.items())


def test_the_statistics_after_training_are_the_batchs_own_and_after_predicting_the_given_ones(definition):
    params, stats = definition.init(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
    _, some = definition.apply(params, stats, x, TrainingPass())
    _, same = definition.apply(params, {path: stat + 7 for path, stat in stats.items()}, x, TrainingPass())
    _, kept = definition.apply(params, stats, x)
    for path in stats:
        # But for rounding: the sums are taken around the running mean.
        np.testing.assert_allclose(some[path], same[path], rtol=1e-3, atol=1e-5)
    assert all(np.array_equal(kept[path], stats[path]) for path in stats)


def test_the_output_is_that_of_the_module_itself(definition):
    params, stats = definition.init(jax.random.key(5))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
    found, _ = definition.apply(params, stats, x)
    np.testing.assert_allclose(found, Net(nnx.Rngs(jax.random.key(5)))(x), rtol=1e-6)
