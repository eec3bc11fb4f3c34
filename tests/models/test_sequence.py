"""Classifiers of sequences, and of pictures that are read as such."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcls.models.crnn import Crnn
from pcls.models.registry import MODELS, define_model
from pcls.models.sequence import mean_over_steps
from pcls.nn.dropout import Dropout
from pcls.nn.module import ModelDef
from pcls.nn.training import TrainingPass

NAMES = [name for name, entry in MODELS.items() if entry.lengths]
LINEAR = ("lru", "mingru", "minlstm", "rglru")
LENGTHS = np.int32([3, 2, 1, 2])
FEATURES = 3
SEQUENCES = np.random.default_rng(0).normal(size=(4, 3, FEATURES, 1)).astype(np.float32)


@cache
def twin(name):
    """A small one, for sequences of up to 3 steps."""
    shape = {"height": 3, "width": FEATURES, "channels": 1, "classes": 3}
    if name == "crnn":
        small = {"hidden": 4, "layers": 1, "widths": (4, 6), "dtype": jnp.float32}
        return ModelDef.of(lambda rngs: Crnn(**shape, **small, rngs=rngs), takes_lengths=True)
    both_ways = name in ("gru", "lru")
    return define_model(name, **shape, hidden=4, layers=2 if name == "gru" else 1, bidirectional=both_ways)


@cache
def weights(name):
    """Of the usual size, without compiling a start."""
    rng = np.random.default_rng(1)

    def drawn(leaf):
        return (rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0] if len(leaf.shape) > 1 else 4)).astype(np.float32)

    return jax.tree.map(drawn, twin(name).params), jax.tree.map(lambda leaf: jnp.ones(leaf.shape), twin(name).stats)


@cache
def gradient(name):
    """A compiled function of weights, sequences and lengths: logits, statistics, and the gradients of the weights."""

    def loss(params, stats, sequences, lengths):
        logits, found = twin(name).apply(params, stats, sequences, TrainingPass(), lengths)
        return jnp.sum(logits * jnp.array([1.0, -2.0, 3.0])), (logits, found)

    return jax.jit(jax.grad(loss, has_aux=True))


def padded(sequences, steps, rubbish):
    """The sequences with other steps after their own."""
    longer = np.full((len(sequences), steps, *sequences.shape[2:]), rubbish, np.float32)
    for target, source, length in zip(longer, sequences, LENGTHS, strict=True):
        target[:length] = source[:length]
    return longer


@pytest.mark.parametrize("name", NAMES)
def test_padded_steps_change_neither_logits_nor_gradients_nor_statistics(name):
    cases = padded(SEQUENCES, 3, 0.0), padded(SEQUENCES, 3, 9.0), padded(SEQUENCES, 4, -7.0)
    expected, *others = (gradient(name)(*weights(name), case, LENGTHS) for case in cases)
    grads, (logits, _) = expected
    assert np.asarray(logits).std(0).min() > 1e-3
    for path, grad in grads.items():
        assert np.isfinite(grad).all(), path
        assert np.any(grad), path
    for found in others:
        for some, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(some, other, rtol=1e-4, atol=1e-5 * max(1, np.abs(other).max()))


@pytest.mark.parametrize("name", NAMES)
def test_a_sequence_that_fills_the_batch_up_has_finite_logits_and_gradients(name):
    found = gradient(name)(*weights(name), padded(SEQUENCES, 3, 0.0), np.int32([3, 2, 1, 0]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_the_mean_is_over_the_steps_that_count():
    x = jnp.asarray(np.arange(12).reshape(2, 3, 2), jnp.bfloat16)
    assert mean_over_steps(x, None).tolist() == [[2, 3], [8, 9]]
    assert mean_over_steps(x, jnp.array([2, 0])).tolist() == [[1, 2], [0, 0]]
    assert mean_over_steps(x, jnp.array([2, 1])).dtype == jnp.bfloat16


@pytest.mark.parametrize(("read", "axes"), [("rows", "hwc"), ("columns", "whc")])
def test_rnn_is_a_loop_over_rows_or_columns_and_a_head_on_its_last_state(read, axes):
    model = define_model("rnn", height=3, width=4, channels=2, classes=5, read=read, hidden=6)
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=leaf.shape).astype(np.float32) / 2 for path, leaf in model.params.items()}
    image = rng.normal(size=(3, 4, 2)).astype(np.float32)
    layer = "recurrent/layers/0/forward"
    h = np.zeros(6)
    for step in np.einsum(f"hwc->{axes}", image).astype(np.float64):
        h = np.tanh(
            step.ravel() @ params[f"{layer}/kernel"] + params[f"{layer}/bias"] + h @ params[f"{layer}/recurrent"]
        )
    found, _ = model.apply(params, {}, image[None])
    np.testing.assert_allclose(found[0], h @ params["head/kernel"] + params["head/bias"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "steps", "features"),
    [
        ({}, 8, 6),
        ({"read": "columns"}, 6, 8),
        ({"read": "pixels"}, 48, 1),
        ({"read": "hilbert"}, 48, 1),
        ({"read": "patches", "patch": 2}, 12, 4),
    ],
)
@pytest.mark.parametrize("name", ["lstm", "lru"])
def test_the_first_kernel_is_as_large_as_a_step_of_the_reading(name, options, steps, features):
    model = define_model(name, height=8, width=6, channels=1, classes=3, hidden=4, **options)
    kernel = "recurrent/layers/0/forward/kernel" if name == "lstm" else "encoder/kernel"
    assert model.params[kernel].shape[0] == features
    lowered = jax.make_jaxpr(lambda p, x: model.apply(p, {}, x)[0])(model.params, jnp.zeros((2, 8, 6, 1)))
    assert lowered.out_avals[0].shape == (2, 3)
    assert f"[{steps},2," in str(lowered)


def test_sizes_of_layers_are_those_of_the_recipe():
    model = define_model("gru", height=8, width=6, channels=1, classes=3, hidden=5, layers=3, bidirectional=True)
    recurrent = {path: leaf.shape for path, leaf in model.params.items() if path.endswith("recurrent")}
    assert len(recurrent) == 6
    assert set(recurrent.values()) == {(5, 15)}
    assert model.params["head/kernel"].shape == (10, 3)


def test_customary_sizes_may_be_said_aloud():
    said = define_model(
        "lstm", height=28, width=28, channels=1, classes=10, read="rows", hidden=128, layers=1, bidirectional=False
    )
    assert said.params == define_model("lstm", height=28, width=28, channels=1, classes=10).params


def test_truncated_gradients_end_at_the_start_of_a_block():
    options = {"height": 4, "width": 3, "channels": 1, "classes": 2, "hidden": 4}
    reach = {}
    for truncate in (0, 2):
        model = define_model("rnn", **options, truncate=truncate)
        rng = np.random.default_rng(0)
        params = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in model.params.items()}
        image = jnp.asarray(rng.normal(size=(1, 4, 3, 1)), jnp.float32)
        grads = jax.jit(jax.grad(lambda x, m=model, p=params: m.apply(p, {}, x)[0].sum()))(image)
        reach[truncate] = np.any(grads[0, :, :, 0], 1).tolist()
    assert reach == {0: [True] * 4, 2: [False] * 2 + [True] * 2}


@pytest.mark.parametrize(
    ("name", "option"), [("lstm", {"chunk": 3}), ("lru", {"form": "parallel"}), ("rglru", {"form": "parallel"})]
)
def test_how_a_recurrence_runs_changes_no_logits(name, option):
    size = {"height": 7, "width": 3, "channels": 1, "classes": 2, "hidden": 4}
    model = define_model(name, **size)
    params, stats = model.init(jax.random.key(0))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 3, 1)), jnp.float32)
    logits = [defined.apply(params, stats, images)[0] for defined in (model, define_model(name, **size, **option))]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_no_two_dropping_layers_drop_alike(name):
    model = define_model(name, height=8, width=8, channels=1, classes=3, hidden=4, layers=3, dropout=0.25)
    module = nnx.eval_shape(lambda: model.build(jax.random.key(0)))
    drops = [node for _, node in nnx.iter_graph(module) if isinstance(node, Dropout)]
    assert {drop.rate for drop in drops} == {0.25}
    assert len({drop.place for drop in drops}) == len(drops) == (4 if name in LINEAR else 3)


def test_crnn_reads_columns_as_it_reads_the_rows_of_the_turned_image():
    shape = {"channels": 1, "classes": 3, "hidden": 4, "layers": 1}
    rows = define_model("crnn", height=6, width=4, **shape)
    columns = define_model("crnn", height=4, width=6, read="columns", **shape)
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in rows.params.items()}
    stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), rows.stats)
    images = jnp.asarray(rng.normal(size=(2, 6, 4, 1)), jnp.float32)
    expected, found = jax.jit(
        lambda images: (rows.apply(params, stats, images)[0], columns.apply(params, stats, images.swapaxes(1, 2))[0])
    )(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


@pytest.mark.parametrize(("steps", "left"), [(8, 4), (7, 4), (1, 1)])
def test_crnn_halves_time_once_and_features_three_times(steps, left):
    model = define_model("crnn", height=steps, width=20, channels=1, classes=3)
    assert model.params["recurrent/layers/0/forward/kernel"].shape[0] == 3 * 128
    jaxpr = jax.make_jaxpr(lambda p, s, x: model.apply(p, s, x)[0])(
        model.params, model.stats, jnp.zeros((2, steps, 20, 1))
    )
    assert f"[{left},2,384]" in str(jaxpr)
