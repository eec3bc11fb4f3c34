"""Ordered rules over parameter paths, and how they split an array."""

import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from pcls.errors import UserError
from pcls.parallel.mesh import AXES, make_mesh
from pcls.parallel.rules import PRESETS, Rule, matched_rules, sharding, spec

SIZES = {"data": 4, "fsdp": 2, "model": 2}
PATHS = ["stem/kernel", "stages/0/conv/kernel", "stages/1/conv/kernel", "head/kernel", "head/bias"]


@pytest.mark.parametrize(
    ("shape", "over", "expected"),
    [
        # Nothing to split over.
        ((64, 64), (), P(None, None)),
        ((), ("fsdp", "model"), P()),
        # The largest dimension that divides, of equal ones the first.
        ((3, 3, 64, 128), ("fsdp",), P(None, None, None, "fsdp")),
        ((3, 3, 128, 64), ("fsdp",), P(None, None, "fsdp", None)),
        ((64, 64), ("fsdp",), P("fsdp", None)),
        ((512, 1001), ("fsdp",), P("fsdp", None)),
        ((3, 5, 7), ("fsdp",), P(None, None, None)),
        # Vectors stay whole, but for their channels.
        ((64,), ("data", "fsdp"), P(None)),
        # Channels are the last dimension, and only that.
        ((3, 3, 64, 128), ("model",), P(None, None, None, "model")),
        ((512, 1001), ("model",), P(None, None)),
        ((10,), ("model",), P("model")),
        # What model has taken the others leave.
        ((3, 3, 64, 128), ("fsdp", "model"), P(None, None, "fsdp", "model")),
        ((64, 1001), ("fsdp", "model"), P("fsdp", None)),
        ((10,), ("fsdp", "model"), P("model")),
        ((1001,), ("fsdp", "model"), P(None)),
        # All axes together, else the larger one, else the smaller.
        ((3, 3, 64, 128), ("data", "fsdp"), P(None, None, None, ("data", "fsdp"))),
        ((64, 12), ("data", "fsdp"), P(("data", "fsdp"), None)),
        ((12, 6), ("data", "fsdp"), P("data", None)),
        ((6, 6), ("data", "fsdp"), P("fsdp", None)),
        ((3, 3, 64, 128), ("model", "data", "fsdp"), P(None, None, ("data", "fsdp"), "model")),
    ],
)
def test_an_array_is_split_along_dimensions_that_divide(shape, over, expected):
    assert spec(shape, over, SIZES) == expected


@pytest.mark.parametrize("over", [("fsdp",), ("model",), ("data", "fsdp", "model")])
def test_axes_of_one_device_split_nothing(over):
    assert spec((64, 64), over, dict.fromkeys(AXES, 1)) == P(None, None)


@given(
    shape=st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 10, 12, 16, 64, 96, 1000]), max_size=4),
    over=st.lists(st.sampled_from(AXES), unique=True),
    sizes=st.fixed_dictionaries({axis: st.sampled_from([1, 2, 3, 4, 8]) for axis in AXES}),
)
def test_every_split_divides_uses_an_axis_once_and_takes_the_largest_dimension(shape, over, sizes):
    parts = [axes if isinstance(axes, tuple) else (axes,) * (axes is not None) for axes in spec(shape, over, sizes)]
    used = [axis for axes in parts for axis in axes]
    assert len(parts) == len(shape)
    assert len(used) == len(set(used))
    assert all(axis in over and sizes[axis] > 1 for axis in used)
    assert all(size % math.prod(sizes[axis] for axis in axes) == 0 for size, axes in zip(shape, parts, strict=True))
    by_channel = "model" in over and sizes["model"] > 1 and bool(shape) and shape[-1] % sizes["model"] == 0
    assert ("model" in used) == by_channel
    assert not by_channel or parts[-1] == ("model",)
    rest = [size for size, axes in zip(shape, parts, strict=True) if axes != ("model",)]
    split = [(size, axes) for size, axes in zip(shape, parts, strict=True) if axes and axes != ("model",)]
    assert len(split) <= 1
    for size, axes in split:
        assert size == max(other for other in rest if other % math.prod(sizes[axis] for axis in axes) == 0)
    if len(shape) == 1:
        assert not split
    elif not split:
        # No axis alone would have divided anything.
        others = [sizes[axis] for axis in over if axis != "model" and sizes[axis] > 1]
        assert not any(size % count == 0 for size in rest for count in others)


def test_a_sharding_is_that_split_on_a_mesh():
    mesh = make_mesh(2, 2, 2)
    kernel = jnp.zeros((3, 3, 16, 32))
    placed = jax.device_put(kernel, sharding(mesh, kernel.shape, ("data", "fsdp", "model")))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(3, 3, 4, 16)}
    assert len({str(shard.index) for shard in placed.addressable_shards}) == 8


@pytest.mark.parametrize(
    ("name", "parameters", "optimizer"),
    [
        ("replicated", P(None, None, None, "model"), P(None, None, None, "model")),
        ("fsdp", P(None, None, "fsdp", "model"), P(None, None, "fsdp", "model")),
        ("zero1", P(None, None, None, "model"), P(None, None, ("data", "fsdp"), "model")),
    ],
)
def test_a_preset_splits_a_kernel_and_what_the_optimizer_keeps_of_it(name, parameters, optimizer):
    layout = PRESETS[name]
    rule = matched_rules(layout.rules, PATHS)["stages/0/conv/kernel"]
    shape = (3, 3, 64, 128)
    assert spec(shape, rule.over, SIZES) == parameters
    assert spec(shape, (*rule.over, *layout.optimizer_over), SIZES) == optimizer
    assert set(matched_rules(layout.rules, PATHS)) == set(PATHS)


def test_the_first_rule_that_matches_decides():
    head, kernels, rest = Rule("^head/", ()), Rule("kernel$", ("fsdp",)), Rule(".*", ("model",))
    assert matched_rules((head, kernels, rest), PATHS) == {
        "stem/kernel": kernels,
        "stages/0/conv/kernel": kernels,
        "stages/1/conv/kernel": kernels,
        "head/kernel": head,
        "head/bias": head,
    }
    # The last rule matches something, though another always comes before it.
    assert matched_rules((rest, kernels), PATHS) == dict.fromkeys(PATHS, rest)


@pytest.mark.parametrize("match", ["^stage/", "Kernel", "conv1"])
def test_a_rule_that_matches_nothing_is_refused_with_the_paths_there_are(match):
    with pytest.raises(UserError) as raised:
        matched_rules((Rule(".*", ()), Rule(match, ("fsdp",))), PATHS)
    assert str(raised.value) == (
        f"mesh.rules: {match!r} matches no parameter; paths look like stem/kernel, stages/0/conv/kernel, "
        "stages/1/conv/kernel, head/kernel; see all by: pcls plan"
    )


def test_a_parameter_that_no_rule_matches_is_refused_by_name():
    with pytest.raises(UserError) as raised:
        matched_rules((Rule("kernel$", ("fsdp",)),), PATHS)
    assert str(raised.value) == (
        "mesh.rules: no rule matches head/bias; add a last rule for the rest, as in match: '.*'"
    )
