"""Each optimizer beside its formula in numpy, on a convolution, a dense layer and their biases."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pcls.config.optimizer import OptimizerSection, ScaleRule
from pcls.errors import UserError
from pcls.models.registry import customary_model
from pcls.training.freezing import NEVER
from pcls.training.optimizers import MUON_RMS, ParameterRow, make_optimizer, parameter_table

LR = 0.25
SHAPES = {
    "stages/0/conv/kernel": (3, 3, 4, 8),
    "stages/0/conv/bias": (8,),
    "head/kernel": (8, 5),
    "head/bias": (5,),
}
KERNELS = [path for path in SHAPES if path.endswith("kernel")]


def some_params(shapes=SHAPES):
    rng = np.random.default_rng(1)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def some_grads(step, shapes=SHAPES):
    rng = np.random.default_rng(100 + step)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def section_of(name, **settings):
    return OptimizerSection(name=name, lr=LR, **settings)


def falling(step):
    """A rate that tells apart what stands before and after momentum."""
    return LR * 0.5**step


def after_steps(section, count=3, *, schedule=falling, shapes=SHAPES, grads=some_grads):
    """Parameters after some compiled steps."""
    params = jax.tree.map(jnp.asarray, some_params(shapes))
    optimizer = make_optimizer(section, schedule, params)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(count):
        updates, state = update(grads(step, shapes), state, params, step=step)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        # 1 - 0.999**step has few digits in float32.
        np.testing.assert_allclose(found[path], value, rtol=2e-5, atol=1e-5, err_msg=path)


def by_formula(formula, count=3, decay=0.0):
    """Parameters in float64 after `p += formula(p, g, memory, lr, decay, step)` on each; biases do not decay."""
    params = {path: p.astype(np.float64) for path, p in some_params().items()}
    memory = {path: {} for path in params}
    for step in range(count):
        for path, grad in some_grads(step).items():
            wd = decay if params[path].ndim > 1 else 0.0
            params[path] = params[path] + formula(
                params[path], grad.astype(np.float64), memory[path], falling(step), wd, step
            )
    return params


def trust(p, update, eps=0.0):
    return np.linalg.norm(p) / (np.linalg.norm(update) + eps) if p.ndim > 1 else 1.0


def adam_direction(g, memory, step, b1=0.9, b2=0.999, eps=1e-8):
    memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
    memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
    return memory["m"] / (1 - b1 ** (step + 1)) / (np.sqrt(memory["v"] / (1 - b2 ** (step + 1))) + eps)


def adamw(p, g, memory, lr, wd, step, **arguments):
    return -lr * (adam_direction(g, memory, step, **arguments) + wd * p)


def sgd(p, g, memory, lr, wd, step, momentum=0.9, nesterov=True):
    g = g + wd * p
    memory["v"] = momentum * memory.get("v", 0) + g
    return -lr * (g + momentum * memory["v"] if nesterov else memory["v"])


def lamb(p, g, memory, lr, wd, step):
    update = adam_direction(g, memory, step, eps=1e-6) + wd * p
    return -lr * trust(p, update) * update


def lars(p, g, memory, lr, wd, step):
    g = g + wd * p
    ratio = 0.001 * trust(p, g, 1e-8) if p.ndim > 1 else 1.0
    memory["v"] = 0.9 * memory.get("v", 0) + lr * ratio * g
    return -memory["v"]


def lion(p, g, memory, lr, wd, step):
    m = memory.get("m", 0)
    memory["m"] = 0.99 * m + 0.01 * g
    return -lr * (np.sign(0.9 * m + 0.1 * g) + wd * p)


def rmsprop(p, g, memory, lr, wd, step):
    g = g + wd * p
    memory["s"] = 0.9 * memory.get("s", 1.0) + 0.1 * g**2
    memory["v"] = 0.9 * memory.get("v", 0) + lr * g / np.sqrt(memory["s"] + 1e-3)
    return -memory["v"]


def adafactor(p, g, memory, lr, wd, step):
    keep = 1 - (step + 1.0) ** -0.8
    memory["s"] = keep * memory.get("s", 0) + (1 - keep) * g**2
    update = g / np.sqrt(memory["s"])
    update = update / max(1, np.sqrt(np.mean(update**2)))
    return -lr * (update * max(1e-3, np.sqrt(np.mean(p**2))) + wd * p)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("sgd", sgd),
        ("adamw", adamw),
        ("lamb", lamb),
        ("lars", lars),
        ("lion", lion),
        ("rmsprop", rmsprop),
        ("adafactor", adafactor),
    ],
)
def test_an_optimizer_takes_the_steps_of_its_formula(name, formula):
    assert_close(after_steps(section_of(name, weight_decay=0.1)), by_formula(formula, decay=0.1))
    assert_close(after_steps(section_of(name)), by_formula(formula))


def test_adam_takes_the_steps_of_adamw_without_decay():
    assert_close(after_steps(section_of("adam")), by_formula(adamw))


@pytest.mark.parametrize(
    ("section", "formula"),
    [
        (section_of("sgd", momentum=0.8, nesterov=False), lambda *a: sgd(*a, momentum=0.8, nesterov=False)),
        (section_of("sgd", momentum=0.0), lambda *a: sgd(*a, momentum=0.0, nesterov=False)),
        (section_of("adamw", b1=0.8, b2=0.9, eps=0.1), lambda *a: adamw(*a, b1=0.8, b2=0.9, eps=0.1)),
        (section_of("adafactor", parameter_scale=False), lambda p, *a: adafactor(np.ones_like(p), *a)),
    ],
    ids=["momentum", "no momentum", "adam's three", "parameter scale"],
)
def test_arguments_reach_the_optimizer(section, formula):
    assert_close(after_steps(section), by_formula(formula))


def test_without_momentum_there_is_no_memory_of_it():
    params = some_params()
    state = make_optimizer(section_of("sgd", momentum=0.0), falling, params).init(params)
    assert jax.tree.leaves(state) == []


def test_adafactor_keeps_a_large_kernel_as_rows_and_columns():
    params = {"dense/kernel": jax.ShapeDtypeStruct((256, 128), jnp.float32)}
    state = jax.eval_shape(make_optimizer(section_of("adafactor"), falling, params).init, params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 500


# Muon

MUON_SHAPES = {
    "conv1/kernel": (3, 3, 3, 16),
    "stages/0/conv/kernel": (3, 3, 4, 24),
    "stages/0/conv/bias": (24,),
    "stages/0/depthwise/kernel": (3, 3, 1, 24),
    "stages/0/dense/kernel": (24, 48),
    "recurrent": (6, 6),
    "head/kernel": (8, 5),
}
BY_MUON = ["stages/0/conv/kernel", "stages/0/dense/kernel", "recurrent"]


def muon_step(**settings):
    before = some_params(MUON_SHAPES)
    after = after_steps(section_of("muon", **settings), 1, shapes=MUON_SHAPES)
    return {path: (np.asarray(after[path]) - before[path]) / -LR for path in before}


@pytest.mark.parametrize("path", BY_MUON)
def test_a_step_of_muon_is_nearly_orthogonal_and_as_large_as_adamws(path):
    matrix = muon_step()[path].reshape(-1, MUON_SHAPES[path][-1])
    values = np.linalg.svd(matrix, compute_uv=False) / (MUON_RMS * np.sqrt(max(matrix.shape)))
    # Five Newton-Schulz steps leave the singular values between 0.7 and 1.2 (Jordan et al. 2024).
    assert 0.6 < values.min() <= values.max() < 1.25
    assert 0.15 < np.sqrt(np.mean(matrix**2)) < 0.22


def test_muon_reads_a_convolution_as_the_matrix_of_its_window_and_inputs():
    """The orthogonal factor of U S V' is U V', so the step must lie along it in just that flattening."""
    path = "stages/0/conv/kernel"
    u, _, vt = np.linalg.svd(some_grads(0, MUON_SHAPES)[path].reshape(36, 24), full_matrices=False)
    step = muon_step()[path].reshape(36, 24)
    assert np.sum(step * (u @ vt)) / np.linalg.norm(step) / np.sqrt(24) > 0.97


def test_muon_leaves_the_first_and_last_layer_vectors_and_depthwise_kernels_to_adamw():
    found = muon_step(weight_decay=0.1)
    before, grads = some_params(MUON_SHAPES), some_grads(0, MUON_SHAPES)
    for path in MUON_SHAPES.keys() - set(BY_MUON):
        decayed = 0.1 * before[path] if before[path].ndim > 1 else 0.0
        np.testing.assert_allclose(found[path], np.sign(grads[path]) + decayed, atol=3e-5, err_msg=path)


def test_muon_decays_its_kernels_decoupled():
    gap = muon_step(weight_decay=0.1)["recurrent"] - muon_step()["recurrent"]
    np.testing.assert_allclose(gap, 0.1 * some_params(MUON_SHAPES)["recurrent"], atol=1e-6)


def test_the_memory_of_muon_is_one_array_a_kernel():
    params = some_params(MUON_SHAPES)
    state = make_optimizer(section_of("muon"), falling, params).init(params)
    ours = sum(params[path].size for path in BY_MUON)
    rest = sum(p.size for p in params.values()) - ours
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.size > 3) == ours + 2 * rest


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny", "cnn28", "rnn28"])
def test_muon_takes_what_lies_between_the_first_and_the_last_layer(name):
    table = parameter_table(section_of("muon"), customary_model(name).params)
    rest = {row.path for row in table if row.rule == "adamw" and len(row.shape) > 1}
    assert {path for path in rest if not path.startswith("stages/")} == {
        "resnet50": {"conv1/kernel", "head/kernel"},
        "convnext_tiny": {"stem/kernel", "head/kernel"},
        "cnn28": {"conv1/kernel", "head/kernel"},
        "rnn28": {"inputs/kernel", "head/kernel"},
    }[name]
    depthwise = {row.path for row in table if row.shape[:3] == (7, 7, 1)}
    assert {path for path in rest if path.startswith("stages/")} == depthwise
    assert len(depthwise) == (18 if name == "convnext_tiny" else 0)


# Clipping


def test_a_gradient_above_the_limit_is_clipped_by_its_global_norm():
    grads = some_grads(0)
    norm = np.sqrt(sum((grad.astype(np.float64) ** 2).sum() for grad in grads.values()))
    found = after_steps(section_of("sgd", momentum=0.0, clip_norm=0.5), count=1)
    assert norm > 0.5
    assert_close(found, {path: p - LR * grads[path] * (0.5 / norm) for path, p in some_params().items()})


def test_adaptive_clipping_limits_each_output_by_the_norm_of_its_weights():
    """Brock et al. 2021: over the fan-in of each output, vectors as a whole, all but the last linear layer."""
    shapes = SHAPES | {"neck/kernel": (8, 6)}
    before, grads = some_params(shapes), some_grads(0, shapes)
    # One small and one large gradient: only the second is clipped.
    grads["neck/kernel"][:, 0] *= 1e-4
    before_norms = {path: np.sqrt((p**2).sum(tuple(range(max(1, p.ndim - 1))))) for path, p in before.items()}
    found = after_steps(
        section_of("sgd", momentum=0.0, adaptive_clip=0.02), 1, shapes=shapes, grads=lambda step, shapes: grads
    )
    for path, p in before.items():
        norm = np.sqrt((grads[path] ** 2).sum(tuple(range(max(1, p.ndim - 1)))))
        factor = 1.0 if path.startswith("head/") else np.minimum(1, 0.02 * before_norms[path] / norm)
        np.testing.assert_allclose(found[path], p - LR * grads[path] * factor, atol=1e-6, err_msg=path)
    assert np.allclose(found["neck/kernel"][:, 0], before["neck/kernel"][:, 0] - LR * grads["neck/kernel"][:, 0])


def test_adaptive_clipping_lets_parameters_that_are_zero_move():
    params = {"bias": np.zeros(4, np.float32)}
    optimizer = make_optimizer(section_of("sgd", momentum=0.0, adaptive_clip=0.02), falling, params)
    updates, _ = optimizer.update({"bias": np.full(4, 3.0, np.float32)}, optimizer.init(params), params, step=0)
    np.testing.assert_allclose(np.linalg.norm(updates["bias"]), LR * 0.02 * 1e-3, rtol=1e-5)


# Rules over paths


def test_the_table_says_what_happens_to_each_parameter():
    section = section_of(
        "lars",
        weight_decay=0.1,
        lr_scale=(ScaleRule(match="^head/", scale=2.0),),
        decay_scale=(ScaleRule(match="^head/", scale=0.5),),
    )
    assert parameter_table(section, some_params(), {"stages/0/conv/bias": NEVER, "head/kernel": 7}) == [
        ParameterRow("stages/0/conv/kernel", (3, 3, 4, 8), 288, "lars", 0.1, 1.0),
        ParameterRow("stages/0/conv/bias", (8,), 8, "frozen", 0.0, 1.0, NEVER),
        ParameterRow("head/kernel", (8, 5), 40, "lars", 0.05, 2.0, 7),
        ParameterRow("head/bias", (5,), 5, "sgd", 0.05, 2.0),
    ]


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lars", "lion", "adafactor", "rmsprop", "muon"])
def test_only_kernels_decay_unless_a_rule_says_otherwise(name):
    table = parameter_table(section_of(name, weight_decay=0.1), some_params())
    assert {row.path: row.decay for row in table} == {path: 0.1 if path in KERNELS else 0.0 for path in SHAPES}


def test_a_rule_of_the_decay_goes_before_the_number_of_dimensions():
    rules = (ScaleRule(match="^head/bias", scale=2.0), ScaleRule(match="^head/", scale=0.0))
    plain = after_steps(section_of("adamw"), 1)
    found = after_steps(section_of("adamw", weight_decay=0.1, decay_scale=rules), 1)
    gap = {path: np.asarray(found[path] - plain[path]) for path in SHAPES}
    np.testing.assert_allclose(gap["head/bias"], -LR * 0.2 * some_params()["head/bias"], atol=1e-6)
    np.testing.assert_array_equal(gap["head/kernel"], 0)
    path = "stages/0/conv/kernel"
    np.testing.assert_allclose(gap[path], -LR * 0.1 * some_params()[path], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lr_scale": (ScaleRule(match="^haed/", scale=0.5),)},
            "optimizer.lr_scale: '^haed/' matches no parameter; paths look like "
            "stages/0/conv/kernel, stages/0/conv/bias, head/kernel, head/bias",
        ),
        (
            {"weight_decay": 0.1, "decay_scale": (ScaleRule(match="gamma", scale=0.5),)},
            "optimizer.decay_scale: 'gamma' matches no parameter; paths look like "
            "stages/0/conv/kernel, stages/0/conv/bias, head/kernel, head/bias",
        ),
        (
            {"lr_scale": (ScaleRule(match="bias", scale=0.5), ScaleRule(match="^head/bias", scale=2.0))},
            "optimizer.lr_scale: '^head/bias' matches no parameter that no earlier rule matches; paths look like "
            "stages/0/conv/kernel, stages/0/conv/bias, head/kernel, head/bias",
        ),
    ],
    ids=["rate", "decay", "covered by an earlier one"],
)
def test_a_rule_that_does_nothing_is_refused(settings, message):
    with pytest.raises(UserError) as raised:
        make_optimizer(section_of("adamw", **settings), falling, some_params())
    assert str(raised.value) == message


EVERY_NAME = ["sgd", "adam", "adamw", "lamb", "lars", "lion", "adafactor", "rmsprop", "muon"]


@pytest.mark.parametrize("name", EVERY_NAME)
def test_what_learns_late_begins_as_if_the_run_began_there_but_at_the_rate_of_the_step(name):
    decay = 0.0 if name == "adam" else 0.1
    section = section_of(name, weight_decay=decay, adaptive_clip=0.5)
    starts = {path: 2 if path.startswith("stages/") else 0 for path in SHAPES}
    optimizer = make_optimizer(section, falling, some_params(), starts)
    params, state = some_params(), optimizer.init(some_params())
    for step in range(4):
        learning = {path: params[path] for path in params if starts[path] <= step}
        grads = {path: some_grads(step)[path] for path in learning}
        updates, state = jax.jit(optimizer.update)(grads, state, learning, step=step)
        params = params | optax.apply_updates(learning, updates)
    late = make_optimizer(section, falling, some_params())
    expected, own = some_params(), late.init(some_params())
    for step in (2, 3):
        updates, own = jax.jit(late.update)(some_grads(step), own, expected, step=step)
        expected = optax.apply_updates(expected, updates)
    whole = after_steps(section, 4)
    for path in SHAPES:
        np.testing.assert_array_equal(params[path], (expected if path.startswith("stages/") else whole)[path])


@pytest.mark.parametrize("name", EVERY_NAME)
def test_what_never_learns_has_no_state(name):
    starts = {path: NEVER for path in SHAPES if path.startswith("stages/")}
    state = make_optimizer(section_of(name), falling, some_params(), starts).init(some_params())
    leaves = jax.tree_util.tree_leaves_with_path(state)
    assert not [keys for keys, _ in leaves if "stages/" in jax.tree_util.keystr(keys)]
    assert [keys for keys, _ in leaves if "head/" in jax.tree_util.keystr(keys)]


@pytest.mark.parametrize("name", ["sgd", "lars", "muon"])
def test_a_scale_multiplies_the_whole_step(name):
    rules = (ScaleRule(match="^stages/", scale=0.25),)
    found = after_steps(section_of(name, weight_decay=0.1, lr_scale=rules), 1)
    plain = after_steps(section_of(name, weight_decay=0.1), 1)
    for path, before in some_params().items():
        factor = 0.25 if path.startswith("stages/") else 1.0
        np.testing.assert_allclose(found[path] - before, factor * (plain[path] - before), rtol=1e-4, atol=1e-6)


# Placement


@pytest.mark.parametrize("name", EVERY_NAME)
def test_a_split_state_takes_the_same_steps(name):
    section = section_of(name, clip_norm=1.0, adaptive_clip=0.5)
    params = some_params()
    optimizer = make_optimizer(section, falling, params)
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])

    def split(leaf):
        axis = next((axis for axis, size in enumerate(leaf.shape) if size % 4 == 0), None)
        return NamedSharding(mesh, P(*("fsdp" if axis == place else None for place in range(len(leaf.shape)))))

    params = jax.tree.map(lambda leaf: jax.device_put(leaf, split(leaf)), params)
    shapes = jax.eval_shape(optimizer.init, params)
    state = jax.jit(optimizer.init, out_shardings=jax.tree.map(split, shapes))(params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    for step in range(2):
        updates, state = jax.jit(optimizer.update)(some_grads(step), state, params, step=step)
        params = optax.apply_updates(params, updates)
    expected = after_steps(section, 2)
    for path in params:
        # Sums in another order; the Newton-Schulz steps of muon multiply what differs.
        np.testing.assert_allclose(params[path], expected[path], rtol=1e-4, atol=1e-4 if name == "muon" else 1e-5)


@pytest.mark.parametrize("name", EVERY_NAME)
def test_steps_and_state_stay_float32(name):
    params = some_params()
    optimizer = make_optimizer(section_of(name), falling, params)
    state = jax.eval_shape(optimizer.init, params)
    updates, state = jax.eval_shape(partial(optimizer.update, step=0), params, state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} <= {jnp.dtype("float32"), jnp.dtype("int32")}


@pytest.mark.parametrize("grows", [False, True])
def test_the_rate_is_that_of_the_step_and_of_so_many_batches(grows):
    section = section_of("sgd", momentum=0.0, nesterov=False, lr_per_256=grows)
    params, grads = some_params(), some_grads(0)
    optimizer = make_optimizer(section, falling, params)
    state = optimizer.init(params)
    rates = []
    for step, batches in ((0, 3), (3, 2), (5, 1)):
        updates, state = optimizer.update(grads, state, params, step=step, batches=batches)
        rates.append(float(np.mean(-updates["head/bias"] / grads["head/bias"])))
    factors = (3, 2, 1) if grows else (1, 1, 1)
    assert rates == pytest.approx([factor * falling(step) for factor, step in zip(factors, (0, 3, 5), strict=True)])
