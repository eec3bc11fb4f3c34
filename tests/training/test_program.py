"""What is compiled for a recipe: what it refuses, where its state lies, what its program asks of the network."""

import math
import re
from collections import Counter

import jax
import numpy as np
import pytest

from pcls.config import Recipe, with_overrides
from pcls.config.schema import MeshSection
from pcls.errors import UserError
from pcls.parallel.mesh import BATCH_AXES
from pcls.parallel.rules import PRESETS, Layout, Rule
from pcls.training.loop import Plan
from pcls.training.plan import DISPATCH_BYTES, make_plan, steps_that_fit, training_order
from pcls.training.program import chosen_layout

# Averages, and layers that drop: all that a step does in the tiny network.
ALL = {"train.ema_decay": 0.9, "model.dropout": 0.25}
GROUPS_OF_2 = {"batch_norm.over": "groups", "batch_norm.group_size": 2}
SPLIT = {
    "replicated": {"mesh.sharding": "replicated"},
    "zero1": {"mesh.sharding": "zero1"},
    "fsdp": {"mesh.fsdp": 2},
    "model": {"mesh.model": 2},
}


# What does not fit


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"train.batch_size": 36},
            "train.batch_size is 36 and does not divide by the 8 devices; write 32 or 40",
        ),
        (
            {"evaluate.batch_size": 30},
            "evaluate.batch_size is 30 and does not divide by the 8 devices; write 24 or 32",
        ),
        (
            {"train.accumulate": 8},
            "train.accumulate is 8 and does not divide the 4 records of each of 8 devices; "
            "choose a divisor of 4, or another train.batch_size",
        ),
        (
            {"augment.cutmix": 1.0, "train.batch_size": 24},
            "augment.cutmix mixes pairs of images, and a device has 3 at once (train.batch_size 24 / 8 devices / "
            "train.accumulate 1); choose numbers that leave an even one",
        ),
        (
            {"augment.mixup": 0.2, "train.accumulate": 4},
            "augment.mixup mixes pairs of images, and a device has 1 at once (train.batch_size 32 / 8 devices / "
            "train.accumulate 4); choose numbers that leave an even one",
        ),
        (
            {"augment.hue": 0.1},
            "augment.hue has no effect on images of one channel; leave it out, or write data.channels=3",
        ),
        (
            {"batch_norm.over": "groups", "batch_norm.group_size": 3},
            "batch_norm.group_size is 3 and does not divide the 4 records of a device at a time "
            "(train.batch_size 32 / 8 devices / train.accumulate 1); choose a divisor of 4",
        ),
        (
            GROUPS_OF_2 | {"train.accumulate": 4},
            "batch_norm.group_size is 2 and does not divide the 1 records of a device at a time "
            "(train.batch_size 32 / 8 devices / train.accumulate 4); choose a divisor of 1",
        ),
        (
            {"mesh.rules": [{"match": "conv3", "over": ["fsdp"]}]},
            "mesh.rules: 'conv3' matches no parameter; paths look like bn1/bias, bn1/scale, bn2/bias, bn2/scale; "
            "see all by: pcls plan",
        ),
        (
            {"mesh.rules": [{"match": "kernel$", "over": ["fsdp"]}]},
            "mesh.rules: no rule matches bn1/bias; add a last rule for the rest, as in match: '.*'",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(program, overrides, message):
    with pytest.raises(UserError) as raised:
        program(8, **overrides)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    "overrides",
    [{"batch_norm.over": "per_shard"}, {"batch_norm.over": "groups", "batch_norm.group_size": 1}],
)
def test_batch_norm_over_something_has_no_effect_on_a_model_without_it(program, overrides):
    with pytest.raises(UserError) as raised:
        program(8, **overrides, **{"model.name": "rnn28"})
    assert str(raised.value) == "batch_norm.over has no effect: rnn28 has no BatchNorm; leave it out"


@pytest.mark.parametrize(
    ("devices", "overrides", "group_size"),
    [
        (8, {}, None),
        (8, {"train.accumulate": 2}, None),
        (8, GROUPS_OF_2 | {"train.accumulate": 2}, 2),
        (8, {"batch_norm.over": "per_shard"}, 4),
        (2, {"batch_norm.over": "per_shard"}, 16),
        (8, {"batch_norm.over": "per_shard", "train.accumulate": 2}, 2),
        (8, {"batch_norm.over": "per_shard", "mesh.model": 4}, 16),
    ],
)
def test_batch_norm_normalises_over_what_the_recipe_says(program, devices, overrides, group_size):
    assert program(devices, **overrides).training.group_size == group_size


@pytest.mark.parametrize(
    ("devices", "overrides", "whole_groups"),
    [
        (8, {}, True),
        (8, {"batch_norm.over": "per_shard"}, True),
        (8, {"batch_norm.over": "groups", "batch_norm.group_size": 4}, True),
        (4, {"batch_norm.over": "groups", "batch_norm.group_size": 4}, False),
        (4, {"batch_norm.over": "groups", "batch_norm.group_size": 4, "train.accumulate": 2}, True),
    ],
)
def test_the_network_hears_whether_a_device_holds_one_group(program, devices, overrides, whole_groups):
    assert program(devices, **overrides).training.group_a_device is whole_groups


@pytest.mark.parametrize(
    ("section", "layout"),
    [
        ({}, PRESETS["zero1"]),
        ({"fsdp": 2}, PRESETS["fsdp"]),
        ({"sharding": "replicated"}, PRESETS["replicated"]),
        ({"rules": [{"match": ".*", "over": ["fsdp"]}]}, Layout((Rule(".*", ("fsdp",)),))),
        (
            {"rules": [{"match": "^head/"}, {"match": ".*", "over": ["model"]}], "sharding": "zero1"},
            Layout((Rule("^head/", ()), Rule(".*", ("model",))), BATCH_AXES),
        ),
    ],
)
def test_the_layout_is_the_presets_or_that_of_the_rules(section, layout):
    assert chosen_layout(MeshSection.model_validate(section)) == layout


# The plan


def plan_of(**overrides):
    recipe = with_overrides(Recipe(), {"train.batch_size": 32} | overrides)
    return make_plan(recipe, training_order(recipe, 100), image_bytes=2**20, platform="tpu")


def test_durations_become_steps():
    plan = plan_of(**{"train.duration": "4 epochs", "evaluate.every": "0.5 epochs", "checkpoint.every": "7 steps"})
    # 100 records are 3.125 steps of 32.
    assert (plan.steps, plan.epoch_steps, plan.batch_size) == (13, 3.125, 32)
    assert (plan.evaluate_every, plan.save_every, plan.log_every) == (1.5625, 7, 10)
    assert plan_of(**{"train.duration": "50000 steps"}).log_every == 100


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 16),
        ({"steps": 5}, 5),
        ({"epoch_steps": 3.9}, 3),
        ({"evaluate_every": 7.5}, 7),
        ({"save_every": 1.0}, 1),
        ({"epoch_steps": 0.5}, 1),
    ],
)
def test_as_many_steps_go_together_as_memory_and_what_is_due_allow(limits, expected):
    common = {"steps": 1000, "epoch_steps": 100.0, "evaluate_every": 100.0, "save_every": 100.0}
    plan = Plan(batch_size=32, log_every=10, **(common | limits))
    assert steps_that_fit(plan, DISPATCH_BYTES // 16) == expected
    assert steps_that_fit(plan, 2 * DISPATCH_BYTES) == 1


def test_steps_go_together_on_accelerators_by_themselves_and_on_cpu_on_request_only():
    lengths = {"train.duration": "100 epochs", "evaluate.every": "10 epochs", "checkpoint.every": "20 epochs"}
    # 32 images of a MiB: two such batches are 64 MiB. Record numbers and epochs: an epoch of them.
    assert plan_of(**lengths).at_once == 2
    assert plan_of(**lengths, **{"data.on_device": True}).at_once == 3
    assert plan_of(**lengths, **{"train.steps_per_dispatch": 8}).at_once == 8
    recipe = with_overrides(Recipe(), lengths | {"train.batch_size": 32})
    assert make_plan(recipe, training_order(recipe, 100), image_bytes=2**20, platform="cpu").at_once == 1


# Where the state lies


def bytes_on_a_device(tree):
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def whole(tree):
    return {leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree)} == {True}


def kept_by_the_optimizer(state):
    """Path and leaf of what the optimizer keeps of each parameter."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state.opt_state)
    return [(path[-1].key, leaf) for path, leaf in leaves if leaf.shape]


def test_zero1_splits_averages_and_optimizer_over_all_devices_and_leaves_parameters_whole(program):
    state = program(8, **SPLIT["zero1"], **ALL, **{"optimizer.name": "adam"}).state_shapes
    assert whole((state.params, state.stats, state.ema[1], state.key, state.step))
    assert len(kept_by_the_optimizer(state)) == 2 * len(state.params)
    for path, leaf in (*state.ema[0].items(), *kept_by_the_optimizer(state)):
        share = math.prod(leaf.sharding.shard_shape(leaf.shape)) / leaf.size
        assert share == (1 if leaf.ndim == 1 else 1 / 8), path


def test_zero1_splits_on_two_devices_what_divides_and_no_key(program):
    # The key has two words.
    assert whole(program(2, **SPLIT["zero1"]).state_shapes.key)


def test_fsdp_splits_parameters_averages_and_optimizer_alike(program):
    state = program(8, **SPLIT["fsdp"], **ALL).state_shapes
    assert len(kept_by_the_optimizer(state)) == len(state.params)
    for path, leaf in (*state.params.items(), *state.ema[0].items(), *kept_by_the_optimizer(state)):
        share = math.prod(leaf.sharding.shard_shape(leaf.shape)) / leaf.size
        assert share == (1 if leaf.ndim == 1 else 1 / 2), path
    assert tuple(state.params["conv2/kernel"].sharding.spec) == (None, None, None, "fsdp")


def test_model_splits_output_channels(program):
    state = program(8, **SPLIT["model"]).state_shapes
    for leaf in state.params.values():
        assert leaf.sharding.shard_shape(leaf.shape) == (*leaf.shape[:-1], leaf.shape[-1] // 2)
    # The momentum over the four devices along the data axis too, where another dimension divides.
    momentum = dict(kept_by_the_optimizer(state))["conv2/kernel"]
    assert momentum.sharding.shard_shape((3, 3, 8, 16)) == (3, 3, 2, 8)


def test_rules_lay_each_parameter_where_they_say(program):
    rules = [{"match": "^head/"}, {"match": "kernel$", "over": ["fsdp"]}, {"match": ".*", "over": ["model"]}]
    state = program(8, **{"mesh.fsdp": 2, "mesh.model": 2, "mesh.rules": rules}).state_shapes
    specs = {path: tuple(leaf.sharding.spec) for path, leaf in state.params.items()}
    assert specs == {
        "bn1/bias": ("model",),
        "bn1/scale": ("model",),
        "bn2/bias": ("model",),
        "bn2/scale": ("model",),
        "conv1/kernel": (None, None, None, "fsdp"),
        "conv2/kernel": (None, None, None, "fsdp"),
        "head/bias": (None,),
        "head/kernel": (None, None),
    }
    assert {path: tuple(leaf.sharding.spec) for path, leaf in kept_by_the_optimizer(state)} == specs


# The compiled program


def compiled(program):
    return program.train_step().lower(program.state_shapes, program.batch_shapes).compile()


COLLECTIVE = re.compile(
    r" = (?P<shape>.*?) (?P<name>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)


def collectives(executable):
    """Name and bytes of every collective."""
    return [
        (match["name"], sum(4 * math.prod(map(int, sizes.split(","))) if sizes else 4 for sizes in shapes))
        for match in COLLECTIVE.finditer(executable.as_text())
        for shapes in [re.findall(r"[fsu]32\[([\d,]*)\]", match["shape"])]
    ]


@pytest.fixture(scope="module")
def executables(program):
    """A function from a number of devices and overrides to the program of all and its executable, compiled once."""
    made = {}

    def make(devices=8, **overrides):
        key = (devices, *overrides.items())
        if key not in made:
            some = program(devices, **ALL, **overrides)
            made[key] = some, compiled(some)
        return made[key]

    return make


@pytest.mark.parametrize("name", SPLIT)
def test_every_buffer_of_the_state_is_donated(executables, name):
    some, executable = executables(**SPLIT[name])
    assert executable.memory_analysis().alias_size_in_bytes == bytes_on_a_device(some.state_shapes)


def kernel_bytes(program):
    return [4 * leaf.size for leaf in program.model.params.values() if leaf.ndim > 1]


def test_zero1_takes_an_eighth_of_the_replicated_optimizer_and_averages(executables):
    (whole, _), (split, _) = (executables(**SPLIT[name]) for name in ("replicated", "zero1"))
    saved = bytes_on_a_device(whole.state_shapes) - bytes_on_a_device(split.state_shapes)
    # Momentum and average.
    assert saved == 2 * sum(kernel_bytes(whole)) * 7 / 8


def test_zero1_gathers_each_updated_kernel_once_and_nothing_else(executables):
    some, executable = executables(**SPLIT["zero1"])
    gathers = [size for name, size in collectives(executable) if name == "all-gather"]
    assert sorted(gathers) == sorted(kernel_bytes(some))
    assert {name for name, _ in collectives(executable)} == {"all-reduce", "all-gather"}


def test_replicated_reduces_and_gathers_nothing(executables):
    assert {name for name, _ in collectives(executables(**SPLIT["replicated"])[1])} == {"all-reduce"}


def test_groups_need_one_all_reduce_and_accumulation_moves_no_rows(program):
    for accumulate in (1, 2):
        some = program(8, **SPLIT["replicated"], **GROUPS_OF_2, **{"train.accumulate": accumulate})
        assert Counter(name for name, _ in collectives(compiled(some))) == {"all-reduce": 1}


# The same training


STEPS = 50


@pytest.fixture(scope="module")
def trained(executables, batch_at, host_copy):
    """A function from devices and overrides to the losses and the last state."""

    def train(devices, **overrides):
        some, step = executables(devices, **overrides)
        state, losses = some.initial_state(), []
        for number in range(STEPS):
            state, metrics = step(state, batch_at(number))
            losses.append(metrics["loss"])
        return np.array(jax.device_get(losses)), host_copy(state)

    return train


@pytest.fixture(scope="module")
def one_device(trained):
    return trained(1)


def assert_same_training(found, expected):
    losses, state = found
    np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
    for some, other in zip(jax.tree.leaves(state), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(some, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


def test_the_loss_falls(one_device):
    losses, _ = one_device
    assert losses[:5].mean() - losses[-5:].mean() > 0.3


@pytest.mark.parametrize(
    ("devices", "name"),
    [(2, "zero1"), (4, "zero1"), (8, "replicated"), (8, "zero1"), (8, "fsdp"), (8, "model")],
)
def test_fifty_steps_are_those_of_one_device(trained, one_device, devices, name):
    assert_same_training(trained(devices, **SPLIT[name]), one_device)


def test_fifty_steps_with_groups_are_those_of_one_device(trained, one_device):
    groups = {"batch_norm.over": "groups", "batch_norm.group_size": 4}
    alone = trained(1, **groups)
    assert np.abs(alone[0] / one_device[0] - 1).max() > 1e-3
    assert_same_training(trained(8, **groups, **SPLIT["zero1"]), alone)


def test_per_shard_depends_on_the_number_of_devices(trained, one_device):
    found, _ = trained(8, **{"batch_norm.over": "per_shard"})
    assert np.abs(found / one_device[0] - 1).max() > 1e-3


# Several steps in one program


def test_four_steps_in_one_dispatch_are_four_steps(executables, batch_at, host_copy):
    some, step = executables(**SPLIT["zero1"])
    state, one_by_one = some.initial_state(), []
    for number in range(8):
        state, metrics = step(state, batch_at(number))
        one_by_one.append(host_copy(metrics))
    steps, together, stacked = some.train_steps(), some.initial_state(), []
    for number in (0, 4):
        batches = jax.tree.map(lambda *parts: np.stack(parts), *map(batch_at, range(number, number + 4)))
        together, metrics = steps(together, batches)
        stacked.append(host_copy(metrics))
    for name in ("loss", "correct", "weight", "finite"):
        found = np.concatenate([metrics[name] for metrics in stacked])
        np.testing.assert_allclose(found, [metrics[name] for metrics in one_by_one], rtol=1e-6)
    assert int(together.step) == int(state.step) == 8
    for found, expected in zip(jax.tree.leaves(host_copy(together)), jax.tree.leaves(host_copy(state)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_given_weights_are_where_a_state_starts(program):
    some = program(8, **SPLIT["fsdp"], **{"train.ema_decay": 0.9})
    weights = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), (some.model.params, some.model.stats))
    state = some.initial_state(weights)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == some.state_shardings
    for leaf in jax.tree.leaves((state.params, state.stats, state.ema)):
        assert np.unique(leaf) == [0.5]
