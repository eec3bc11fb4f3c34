"""Networks that scan both axes of a picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcls.models import rglru2d, sequencer
from pcls.models.rglru2d import GatedScans
from pcls.models.sequencer import BiLSTM2D, Sequencer2D, branch_drops
from pcls.nn.dropout import Dropout
from pcls.nn.module import ModelDef
from pcls.nn.training import TrainingPass

WIDTH, HIDDEN = 3, 2
SHAPES = [(2, 2), (2, 3)]


def drawn(module, seed=0):
    """The module with weights of the usual size."""
    rng = np.random.default_rng(seed)
    graph, params = nnx.split(module, nnx.Param)
    return nnx.merge(graph, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2, leaf.dtype), params))


def pictures(height, width, batch=2):
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, height, width, WIDTH)), jnp.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(direction, steps):
    """Outputs of a numpy loop over steps [time, inputs]."""
    p = {name: np.asarray(getattr(direction, name)[...], np.float64) for name in ("kernel", "recurrent", "bias")}
    bias = p["bias"] + np.asarray(direction.recurrent_bias[...])
    h = c = np.zeros(HIDDEN)
    outputs = []
    for x in np.asarray(steps, np.float64):
        i, f, g, o = np.split(x @ p["kernel"] + bias + h @ p["recurrent"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.array(outputs)


@pytest.mark.parametrize(("height", "width"), SHAPES, ids=["square", "oblong"])
def test_bilstm2d_joins_what_four_loops_say_down_up_right_and_left(height, width):
    module = drawn(BiLSTM2D(WIDTH, HIDDEN, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    x = pictures(height, width)
    said = np.zeros((*x.shape[:3], 4 * HIDDEN))
    down, up = (slice(HIDDEN * part, HIDDEN * (part + 1)) for part in (0, 1))
    right, left = (slice(HIDDEN * part, HIDDEN * (part + 1)) for part in (2, 3))
    for image in range(2):
        for column in range(width):
            said[image, :, column, down] = lstm(module.vertical[0], x[image, :, column])
            said[image, :, column, up] = lstm(module.vertical[1], x[image, ::-1, column])[::-1]
        for row in range(height):
            said[image, row, :, right] = lstm(module.horizontal[0], x[image, row])
            said[image, row, :, left] = lstm(module.horizontal[1], x[image, row, ::-1])[::-1]
    expected = said @ np.asarray(module.union.kernel[...]) + np.asarray(module.union.bias[...])
    np.testing.assert_allclose(jax.jit(module)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "loops"), [((2, 2), 1), ((2, 3), 2)], ids=["square", "oblong"])
def test_in_a_square_all_four_directions_run_in_one_loop(monkeypatch, shape, loops):
    calls = []
    scan = sequencer.sequential_scan
    monkeypatch.setattr(sequencer, "sequential_scan", lambda s, streams: calls.append(len(streams)) or scan(s, streams))
    module = BiLSTM2D(WIDTH, HIDDEN, dtype=jnp.float32, rngs=nnx.Rngs(0))
    jax.eval_shape(module, pictures(*shape))
    assert calls == [4 // loops] * loops


@pytest.mark.parametrize("scans", [BiLSTM2D, GatedScans])
def test_a_position_hears_of_its_row_and_column_and_of_no_other_and_of_no_other_image(scans):
    module = drawn(scans(WIDTH, HIDDEN, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    run, x = jax.jit(module), pictures(3, 4)
    moved = np.abs(run(x.at[0, 1, 2].add(1.0)) - run(x)).max(-1) > 1e-6
    expected = np.zeros((2, 3, 4), bool)
    expected[0, 1], expected[0, :, 2] = True, True
    np.testing.assert_array_equal(moved, expected)


def test_scans_compute_in_the_type_that_is_asked_for():
    for scans in (BiLSTM2D, GatedScans):
        module = scans(WIDTH, HIDDEN, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        assert jax.eval_shape(module, pictures(2, 3).astype(jnp.bfloat16)).dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))} == {jnp.dtype("float32")}


def test_lstms_start_as_published():
    module = BiLSTM2D(32, 64, dtype=jnp.float32, rngs=nnx.Rngs(0))
    for name in ("kernel", "recurrent", "bias", "recurrent_bias"):
        values = np.stack([np.asarray(getattr(module.vertical[way], name)[...]) for way in (0, 1)])
        assert np.abs(values).max() <= 1 / 8
        assert values.std() == pytest.approx(1 / 8 / 3**0.5, rel=0.1)
        assert not np.array_equal(*values)


def test_the_two_branches_of_a_block_are_dropped_apart_at_rates_that_rise_linearly():
    drops = branch_drops(0.3, 4)
    assert [(a.rate, b.rate) for a, b in drops] == [pytest.approx((rate, rate)) for rate in (0, 0.1, 0.2, 0.3)]
    module = nnx.eval_shape(lambda: thin(sequencer.Block, dropout=0.25, drop_path=0.3).build(jax.random.key(0)))
    found = [node for _, node in nnx.iter_graph(module) if isinstance(node, Dropout)]
    assert sorted(drop.place for drop in found) == list(range(5))
    assert [drop.rate for drop in found if not drop.whole] == [0.25]
    assert sorted(drop.rate for drop in found if drop.whole) == [0, 0, 0.3, 0.3]


BLOCKS = pytest.mark.parametrize("block", [sequencer.Block, rglru2d.Block], ids=["lstm", "rglru"])
TRAINING = TrainingPass(jax.random.split(jax.random.key(1), 4))


def thin(block, **options):
    """Two blocks of 8 channels, over positions of 4 x 4 pixels."""
    options = {"channels": WIDTH, "classes": 5, "remat": ("none",), "dtype": jnp.float32} | options
    return ModelDef.of(lambda rngs: Sequencer2D((2,), (8,), (4,), block, **options, rngs=rngs))


def some_weights(model):
    rng = np.random.default_rng(0)
    return {path: (rng.normal(size=leaf.shape) / 2).astype(np.float32) for path, leaf in model.params.items()}


@BLOCKS
def test_remat_changes_no_number_and_every_weight_has_a_gradient(block):
    models = [thin(block, drop_path=0.5, remat=(remat,)) for remat in ("none", "products")]

    def gradient(model, params):
        def loss(params):
            logits, _ = model.apply(params, {}, pictures(4, 8, batch=4), TRAINING)
            return jnp.sum(logits**2), logits

        return jax.grad(loss, has_aux=True)(params)

    expected, found = jax.jit(lambda params: [gradient(model, params) for model in models])(some_weights(models[0]))
    without = {path for path, grad in expected[0].items() if not np.any(grad)}
    # No column has a second step.
    assert without == {path for path in without if "vertical" in path and "recurrent" in path and "bias" not in path}
    for some, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(some, other, rtol=1e-4, atol=1e-4 * max(1e-3, np.abs(other).max()))


@BLOCKS
def test_what_is_dropped_is_dropped_in_training_only(block):
    plain, dropout, drop_path = thin(block), thin(block, dropout=0.5), thin(block, drop_path=0.5)
    cases = (plain, None), (dropout, None), (drop_path, None), (dropout, TRAINING), (drop_path, TRAINING)
    logits = jax.jit(lambda params, x: [model.apply(params, {}, x, training)[0] for model, training in cases])(
        some_weights(plain), pictures(4, 4, batch=4)
    )
    expected, *predicted = logits[:3]
    for found in predicted:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert min(np.abs(found - expected).max() for found in logits[3:]) > 0.01
