"""BatchNorm against numpy in double precision, on any number of devices, in loops and under remat."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcls.nn.module import ModelDef
from pcls.nn.norm import BatchNorm
from pcls.nn.training import TrainingPass
from pcls.parallel.mesh import batch_sharding, make_mesh, replicated

EXAMPLES, CHANNELS = 16, 5
SHAPE = (EXAMPLES, 3, 2, CHANNELS)
X = (np.random.default_rng(0).normal(size=SHAPE) * [1, 2, 3, 0.1, 5] + [0, 1, -2, 1, 3]).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
DEFINITION = ModelDef.of(lambda rngs: BatchNorm(CHANNELS, rngs=rngs))
PARAMS = {"scale": jnp.array([1.0, 2.0, 0.5, 1.0, -1.0]), "bias": jnp.array([0.0, 1.0, 2.0, 3.0, 4.0])}
STATS = {"mean": jnp.array([0.0, 1.0, 0.0, 0.9, 0.0]), "var": jnp.array([1.0, 2.0, 3.0, 0.1, 1.0])}
GROUPS = [None, 1, 2, 4, 16]


def train(params, x, group_size, running_mean=STATS["mean"]):
    """The output and the batch's statistics; of the running ones only the mean is read, for its place."""
    running = {"mean": running_mean, "var": jnp.full_like(STATS["var"], jnp.nan)}
    return DEFINITION.apply(params, running, x, TrainingPass(group_size=group_size))


@partial(jax.jit, static_argnames="group_size")
def all_of(params, x, group_size=None):
    """Output, statistics, and the gradients of parameters and input of a weighted sum of the output."""

    def loss(params, x):
        y, stats = train(params, x, group_size)
        return jnp.sum(y * WEIGHTS), (y, stats)

    grads, (y, stats) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return {"y": y, "stats": stats, "grads": grads}


def numpy_batch_norm(x, mean, var):
    return (x - mean) / np.sqrt(var + 1e-5) * np.asarray(PARAMS["scale"]) + np.asarray(PARAMS["bias"])


def assert_close(found, expected, rtol):
    """Equal up to a share of the largest number of each array."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for some, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(some, other, rtol=rtol, atol=rtol * np.abs(other).max())


def test_it_starts_as_the_identity_of_normalised_data():
    params, stats = DEFINITION.init(jax.random.key(0))
    assert {path: array.tolist() for path, array in (params | stats).items()} == {
        "scale": [1.0] * 5,
        "bias": [0.0] * 5,
        "mean": [0.0] * 5,
        "var": [1.0] * 5,
    }


@pytest.mark.parametrize("group_size", GROUPS)
def test_training_normalises_every_group_with_statistics_of_its_own(group_size):
    groups = X.astype(np.float64).reshape(-1, group_size or EXAMPLES, *SHAPE[1:])
    mean, var = (f(groups, (1, 2, 3), keepdims=True) for f in (np.mean, np.var))
    found = all_of(PARAMS, X, group_size)["y"]
    np.testing.assert_allclose(found, numpy_batch_norm(groups, mean, var).reshape(SHAPE), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group_size", GROUPS)
def test_training_leaves_the_mean_of_the_groups_means_and_unbiased_variances(group_size):
    groups = X.astype(np.float64).reshape(-1, group_size or EXAMPLES, *SHAPE[1:])
    stats = all_of(PARAMS, X, group_size)["stats"]
    np.testing.assert_allclose(stats["mean"], groups.mean((1, 2, 3)).mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["var"], groups.var((1, 2, 3), ddof=1).mean(0), rtol=1e-5)


def test_a_group_of_the_whole_batch_is_the_whole_batch():
    assert_close(all_of(PARAMS, X, EXAMPLES), all_of(PARAMS, X), 1e-6)


def test_prediction_uses_the_running_statistics_and_leaves_them():
    found, stats = jax.jit(DEFINITION.apply)(PARAMS, STATS, X)
    expected = numpy_batch_norm(X.astype(np.float64), np.asarray(STATS["mean"]), np.asarray(STATS["var"]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert all(np.array_equal(stats[name], STATS[name]) for name in STATS)


def test_one_example_at_one_position_has_no_deviation_and_stays_finite():
    found, stats = jax.jit(partial(train, group_size=None))(PARAMS, X[:1, :1, :1])
    np.testing.assert_allclose(found[0, 0, 0], PARAMS["bias"], atol=1e-4)
    assert np.isfinite(stats["var"]).all()


@pytest.mark.parametrize("running_mean", [999.0, 1000.0, 1001.0])
def test_a_small_deviation_from_a_large_mean_is_not_rounded_away_once_the_running_mean_is_near(running_mean):
    # In float32 the mean of the squares less the square of the mean would be off by six times the variance.
    x = (1000 + 0.1 * np.random.default_rng(2).normal(size=SHAPE)).astype(np.float32)
    _, stats = jax.jit(train, static_argnums=2)(PARAMS, x, None, jnp.full(CHANNELS, running_mean))
    np.testing.assert_allclose(stats["var"], x.astype(np.float64).var((0, 1, 2), ddof=1), rtol=1e-3)


@pytest.mark.parametrize("group_size", [None, 4])
def test_statistics_are_float32_and_exact_under_bfloat16(group_size):
    # Rounded first, so that both see the same numbers.
    x = jnp.asarray(X, jnp.bfloat16)
    found, stats = jax.jit(train, static_argnums=2)(PARAMS, x, group_size)
    assert found.dtype == jnp.bfloat16
    assert {array.dtype.name for array in stats.values()} == {"float32"}
    expected = all_of(PARAMS, np.asarray(x, np.float32), group_size)
    assert_close(stats, expected["stats"], 1e-6)
    # One rounding to eight bits, at the very end.
    np.testing.assert_allclose(np.asarray(found, np.float32), expected["y"], rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("group_size", [None, 4])
def test_the_gradient_is_that_of_a_plain_formula(group_size):
    def plain(params, x):
        groups = x.reshape(-1, group_size or EXAMPLES, *SHAPE[1:])
        mean, var = (f(groups, (1, 2, 3), keepdims=True) for f in (jnp.mean, jnp.var))
        y = (groups - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]
        return jnp.sum(y.reshape(SHAPE) * WEIGHTS)

    assert_close(all_of(PARAMS, X, group_size)["grads"], jax.jit(jax.grad(plain, (0, 1)))(PARAMS, X), 1e-4)


# Over a 1 x 1 convolution

INPUTS = 3
Z = np.random.default_rng(3).normal(size=(EXAMPLES, 3, 2, INPUTS)).astype(np.float32) + 1
KERNEL = np.random.default_rng(4).normal(size=(INPUTS, CHANNELS)).astype(np.float32)


@partial(jax.jit, static_argnames=("group_size", "fused"))
def pointwise(params, kernel, z, group_size, *, fused):
    """Output, statistics and gradients, of one operation or of the two layers."""
    training = TrainingPass(group_size=group_size)

    def loss(params, kernel, z):
        layer = nnx.merge(DEFINITION.graph, params, STATS)
        if fused:
            y = layer.of_pointwise(z, kernel, training)
        else:
            product = jnp.einsum("bhwi,io->bhwo", z, kernel.astype(z.dtype), preferred_element_type=jnp.float32)
            y = layer(product, training).astype(z.dtype)
        return jnp.sum(y.astype(jnp.float32) * WEIGHTS), (y, layer.mean[...], layer.var[...])

    grads, (y, mean, var) = jax.grad(loss, (0, 1, 2), has_aux=True)(params, kernel, z)
    return {"y": y, "mean": mean, "var": var, "grads": grads}


@pytest.mark.parametrize("group_size", [None, 4])
def test_over_a_pointwise_convolution_it_is_that_of_its_output(group_size):
    found, expected = (pointwise(PARAMS, KERNEL, Z, group_size, fused=fused) for fused in (True, False))
    assert_close(found, expected, 2e-5)


@pytest.mark.parametrize("group_size", [None, 4])
def test_over_a_pointwise_convolution_in_bfloat16_it_differs_by_rounding_only(group_size):
    z = jnp.asarray(Z, jnp.bfloat16)
    found, expected = (pointwise(PARAMS, KERNEL, z, group_size, fused=fused) for fused in (True, False))
    assert found["y"].dtype == jnp.bfloat16
    assert_close(
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), found),
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), expected),
        2**-6,
    )


# Devices


def on(devices, group_size):
    """Everything, computed by some devices."""
    mesh = make_mesh(devices, devices=jax.devices()[:devices])
    x, params = jax.device_put(X, batch_sharding(mesh)), jax.device_put(PARAMS, replicated(mesh))
    return all_of(params, x, group_size)


@pytest.mark.parametrize("devices", [2, 4, 8])
# A device of 8 holds two examples: groups of 2 fit it, groups of 4 reach over two devices, one of 16 over all.
@pytest.mark.parametrize("group_size", [None, 2, 4, 16])
def test_outputs_gradients_and_statistics_are_those_of_one_device(devices, group_size):
    found = on(devices, group_size)
    assert len(found["y"].sharding.device_set) == devices
    assert_close(jax.device_get(found), all_of(PARAMS, X, group_size), 1e-5)


def collectives(group_size):
    """Of the layer's output and its input's gradient alone, and of all, on eight devices."""
    mesh = make_mesh(8)
    x = jax.ShapeDtypeStruct(SHAPE, jnp.float32, sharding=batch_sharding(mesh))
    params = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)) for path, leaf in PARAMS.items()
    }

    def layer(params, x):
        found = all_of(params, x, group_size)
        return found["y"], found["grads"][1]

    rows = (batch_sharding(mesh),) * 2
    alone = jax.jit(layer, out_shardings=rows).lower(params, x).compile().as_text()
    both = all_of.lower(params, x, group_size).compile().as_text()
    return [collective_names(text) for text in (alone, both)]


def collective_names(text):
    names = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    return [name for line in text.splitlines() for name in names if f" {name}(" in line or f" {name}-start(" in line]


def test_groups_within_a_device_need_no_collective_but_those_of_statistics_and_parameter_gradients():
    alone, both = collectives(2)
    assert alone == []
    assert set(both) == {"all-reduce"}
    assert 1 <= len(both) <= 4  # mean, variance, and the gradients of scale and bias


def test_the_whole_batch_needs_all_reduces_for_the_layer_itself():
    alone, _ = collectives(None)
    assert set(alone) == {"all-reduce"}
    assert len(alone) >= 1  # mean and mean square, together


# Loops


@pytest.mark.parametrize("group_size", [None, 2])
def test_within_a_scan_every_turn_has_its_own_statistics(group_size):
    turns = jnp.stack([X, 2 * X + 1, X[::-1]])

    def step(total, x):
        found = all_of(PARAMS, x, group_size)
        return total + found["grads"][0]["scale"], (found["y"], found["stats"])

    total, (y, stats) = jax.jit(lambda turns: jax.lax.scan(step, jnp.zeros(CHANNELS), turns))(turns)
    expected = [all_of(PARAMS, turn, group_size) for turn in turns]
    assert_close(y, jnp.stack([one["y"] for one in expected]), 1e-5)
    for name, found in stats.items():
        assert_close(found, jnp.stack([one["stats"][name] for one in expected]), 1e-5)
    assert_close(total, sum(one["grads"][0]["scale"] for one in expected), 1e-4)


# Positions that count

MASK = np.random.default_rng(2).random(SHAPE[:3]) < 0.6
MASK[0, 0], MASK[5] = True, False


@partial(jax.jit, static_argnames="group_size")
def masked(params, x, group_size=None):
    """Statistics, and the gradient of the input of a weighted sum of the output where the mask is set."""

    def loss(x):
        training = TrainingPass(group_size=group_size)
        norm = nnx.merge(DEFINITION.graph, params, STATS)
        y = norm(x, training, MASK)
        return jnp.sum(jnp.where(MASK[..., None], y * WEIGHTS, 0)), (y, norm.mean[...], norm.var[...])

    grads, found = jax.grad(loss, has_aux=True)(x)
    return grads, found


@pytest.mark.parametrize("group_size", [None, 4])
def test_positions_that_do_not_count_change_neither_statistics_nor_what_counts_nor_gradients(group_size):
    rubbish = np.where(MASK[..., None], X, 100 * WEIGHTS + 7)
    grads, (y, mean, var) = masked(PARAMS, rubbish, group_size)
    expected = []
    for x, mask in zip(*(a.reshape(-1, group_size or EXAMPLES, *a.shape[1:]) for a in (X, MASK)), strict=True):
        counted = x[mask].astype(np.float64)
        expected.append((counted.mean(0), counted.var(0), counted.var(0, ddof=1)))
    means, variances, unbiased = (np.stack(each) for each in zip(*expected, strict=True))
    np.testing.assert_allclose(mean, means.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(var, unbiased.mean(0), rtol=1e-4)
    of_example = np.repeat(np.stack([means, variances], 1), group_size or EXAMPLES, 0)[:, :, None, None]
    normal = numpy_batch_norm(X, of_example[:, 0], of_example[:, 1])
    np.testing.assert_allclose(np.asarray(y)[MASK], normal[MASK], rtol=1e-3, atol=1e-3)
    assert not np.any(np.asarray(grads)[~MASK])
    np.testing.assert_allclose(grads, masked(PARAMS, X, group_size)[0], rtol=1e-3, atol=1e-4)


def test_a_mask_of_all_positions_changes_no_number_and_one_of_no_position_gives_finite_ones():
    @jax.jit
    def both(mask):
        norm, plain = (nnx.merge(DEFINITION.graph, PARAMS, STATS) for _ in range(2))
        training = TrainingPass(group_size=4)
        return [(n(X, training, m), n.mean[...], n.var[...]) for n, m in ((norm, mask), (plain, None))]

    found, expected = both(np.ones((EXAMPLES, 1, 1), bool))
    assert_close(found, expected, 1e-5)
    found, _ = both(np.arange(EXAMPLES)[:, None, None] >= 4)
    assert all(np.isfinite(array).all() for array in found)
