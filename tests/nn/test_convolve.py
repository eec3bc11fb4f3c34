"""Every form of a convolution against `lax.conv_general_dilated`, forward and back."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pcls.nn.convolve import FORMS, FORMS_OF, Choice, chosen_form, convolve, fastest, kind_of, measured
from pcls.nn.platform import compiling_for

HALF = {size: ((size // 2, size // 2),) * 2 for size in (1, 2, 3, 5, 7)}
# x, kernel, stride, pads, groups, and the form that CPUs get.
CASES = {
    "1 x 1": ((3, 5, 4, 6), (1, 1, 6, 8), 1, HALF[1], 1, "pointwise"),
    "1 x 1, stride 2, odd": ((3, 5, 7, 6), (1, 1, 6, 8), 2, HALF[1], 1, "pointwise"),
    "depthwise 3 x 3": ((2, 6, 5, 4), (3, 3, 1, 4), 1, HALF[3], 4, "depthwise"),
    "depthwise 3 x 3, stride 2": ((2, 6, 6, 4), (3, 3, 1, 4), 2, HALF[3], 4, "depthwise"),
    "depthwise 3 x 3, stride 2, odd": ((2, 7, 5, 4), (3, 3, 1, 4), 2, HALF[3], 4, "depthwise"),
    "depthwise 5 x 5, stride 2, SAME": ((2, 8, 7, 4), (5, 5, 1, 4), 2, "SAME", 4, "depthwise"),
    "depthwise 7 x 7, larger than the map": ((2, 4, 3, 4), (7, 7, 1, 4), 1, HALF[7], 4, "depthwise"),
    "depthwise without padding": ((2, 6, 7, 4), (3, 3, 1, 4), 2, ((0, 0), (0, 0)), 4, "depthwise"),
    "groups": ((2, 7, 8, 6), (3, 3, 2, 9), 1, HALF[3], 3, "grouped"),
    "groups, stride 2": ((2, 7, 8, 6), (3, 3, 2, 9), 2, HALF[3], 3, "grouped"),
    "patches": ((2, 3, 4, 64), (3, 3, 64, 6), 1, HALF[3], 1, "patches"),
    "patches, stride 2, SAME": ((2, 9, 10, 96), (3, 3, 96, 6), 2, "SAME", 1, "patches"),
    "patches of one position": ((2, 1, 1, 6), (3, 3, 6, 6), 1, HALF[3], 1, "patches"),
    "few channels": ((2, 3, 4, 5), (3, 3, 5, 6), 1, HALF[3], 1, "native"),
    "large map": ((2, 9, 10, 5), (3, 3, 5, 6), 1, HALF[3], 1, "native"),
    "1 x 1 with a border": ((2, 9, 10, 5), (1, 1, 5, 6), 1, HALF[3], 1, "native"),
}


def as_pairs(pads, shape, kernel, stride):
    if pads != "SAME":
        return pads
    rows, columns = lax.padtype_to_pads(shape[1:3], kernel[:2], (stride, stride), "SAME")
    return tuple(rows), tuple(columns)


def native(x, kernel, stride, pads, groups):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=layout, feature_group_count=groups
    )


@pytest.mark.parametrize(("shape", "kernel", "stride", "pads", "groups", "form"), CASES.values(), ids=CASES)
def test_numbers_and_gradients_are_those_of_the_plain_convolution(shape, kernel, stride, pads, groups, form):
    assert chosen_form(shape, kernel, stride, as_pairs(pads, shape, kernel, stride), groups) == form
    draw = np.random.default_rng(0).normal
    x, weights = jnp.asarray(draw(size=shape), jnp.float32), jnp.asarray(draw(size=kernel), jnp.float32)
    expected, expected_back = jax.vjp(lambda x, weights: native(x, weights, stride, pads, groups), x, weights)
    found, found_back = jax.vjp(lambda x, w: convolve(x, w, stride=stride, pads=pads, groups=groups), x, weights)
    grads = jnp.asarray(draw(size=expected.shape), jnp.float32)
    for a, b in zip((found, *found_back(grads)), (expected, *expected_back(grads)), strict=True):
        assert a.shape == b.shape
        assert jnp.linalg.norm(a - b) <= 1e-5 * jnp.linalg.norm(b)


@pytest.mark.parametrize(("shape", "kernel", "stride", "pads", "groups", "form"), CASES.values(), ids=CASES)
def test_every_form_that_the_table_may_name_gives_the_same_numbers(shape, kernel, stride, pads, groups, form):
    pads = as_pairs(pads, shape, kernel, stride)
    draw = np.random.default_rng(0).normal
    x, weights = jnp.asarray(draw(size=shape), jnp.float32), jnp.asarray(draw(size=kernel), jnp.float32)
    expected = native(x, weights, stride, pads, groups)
    for other in FORMS_OF[kind_of(kernel, pads, groups)]:
        found = FORMS[other](x, weights, stride, pads, groups)
        assert jnp.linalg.norm(found - expected) <= 1e-5 * jnp.linalg.norm(expected)


def rule(shape, kernel, stride, pads, groups):
    """What was read by hand from measurements of 2026-11-30."""
    size, _, inputs, outputs = kernel
    positions = [(shape[1 + axis] + sum(pads[axis]) - size) // stride + 1 for axis in range(2)]
    if size == 1 and groups == 1 and pads == ((0, 0), (0, 0)):
        return "pointwise"
    if groups == shape[-1] == outputs:
        return "depthwise"
    if groups > 1:
        return "grouped"
    # Of strides that nobody measured the nearest, of two the smaller.
    return "patches" if positions[0] * positions[1] <= (49 / 256 if stride == 1 else 36 / 128) * inputs else "native"


def test_the_committed_table_chooses_as_the_measurements_say():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(2000):
        size, stride = int(rng.choice([1, 2, 3, 4, 5, 7, 9, 11])), int(rng.choice([1, 2, 4]))
        pads = ((size // 2, size // 2),) * 2 if rng.random() < 0.8 else ((1, 0), (0, 1))
        sides, groups = rng.integers(size, 40, 2), int(rng.choice([1, 1, 2, 8]))
        inputs, outputs = (int(groups * n) for n in rng.choice([1, 3, 200, 1000], 2))
        case = (
            (2, int(sides[0]), int(sides[1]), inputs),
            (size, size, inputs // groups, outputs),
            stride,
            pads,
            groups,
        )
        assert chosen_form(*case) == rule(*case)
        seen.add(rule(*case))
    assert seen == FORMS.keys()


def test_the_committed_table_names_forms_of_each_kind_and_ends_without_a_limit():
    assert {row.kind for row in measured()} == FORMS_OF.keys()
    for row in measured():
        assert row.form in ("native", *FORMS_OF[row.kind])
    groups = {(row.kind, row.size, row.stride): row for row in measured()}
    assert all(row.up_to == float("inf") for row in groups.values())


def test_what_nobody_measured_is_taken_for_the_nearest():
    table = (
        Choice("dense", 3, 1, 36, "patches"),
        Choice("dense", 3, 1, float("inf"), "native"),
        Choice("dense", 7, 2, float("inf"), "patches"),
        Choice("depthwise", 5, 1, float("inf"), "patches"),
    )
    assert [fastest(table, "dense", 3, 1, positions) for positions in (1, 36, 37)] == ["patches", "patches", "native"]
    # 5 is as far from 3 as from 7.
    assert [fastest(table, "dense", size, 2, 1000) for size in (1, 5, 6, 9)] == [
        "native",
        "native",
        "patches",
        "patches",
    ]
    # A form that would give other numbers is passed over, and so is a kind of which nothing is said.
    assert fastest(table, "depthwise", 5, 1, 9) == fastest(table, "grouped", 3, 1, 9) == "native"


def test_other_devices_have_their_own():
    with compiling_for("tpu"):
        forms = {
            chosen_form(shape, kernel, 1, HALF[kernel[0]], groups) for shape, kernel, _, _, groups, _ in CASES.values()
        }
    assert forms == {"native"}


def test_bfloat16_stays_so_and_sums_in_float32():
    x, kernel = jnp.ones((2, 16, 16, 4), jnp.bfloat16), jnp.ones((5, 5, 1, 4), jnp.bfloat16)

    def total(kernel):
        return convolve(x, kernel, stride=1, pads=HALF[5], groups=4).astype(jnp.float32).sum()

    found = jax.grad(total)(kernel)
    assert found.dtype == jnp.bfloat16
    # 512 positions: bfloat16 cannot count so far one by one.
    np.testing.assert_array_equal(found[2, 2, 0].astype(jnp.float32), 512)


def test_the_benchmark_writes_the_table_that_its_times_ask_for(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    program = importlib.import_module("convolutions")
    times = [
        (program.Shape(side, 8, 8, 3), {"native": [native] * 3, "patches": [2.0, 1.0, 90.0]})
        for side, native in ((6, 2.5), (2, 9.0), (12, 1.5), (4, 3.0))
    ]
    # Of fewer channels: the map is larger beside the kernel.
    times.append((program.Shape(6, 4, 8, 3), {"native": [1.0], "patches": [3.0]}))
    times.append((program.Shape(6, 8, 8, 5, 1, 8), {"native": [3.0], "depthwise": [2.0]}))
    text = program.table_text(program.choices(times), "today")
    (tmp_path / "table.json").write_text(text)
    monkeypatch.setattr("pcls.nn.convolve.TABLE", tmp_path / "table.json")
    assert measured.__wrapped__() == (
        Choice("dense", 3, 1, 4.5, "patches"),
        Choice("dense", 3, 1, float("inf"), "native"),
        Choice("depthwise", 5, 1, float("inf"), "depthwise"),
    )
