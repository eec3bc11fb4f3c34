"""Every form of a convolution against `lax.conv_general_dilated`, forward and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pcls.nn.convolve import PATCHES_UP_TO, chosen_form, convolve
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
    "patches": ((2, 3, 4, 5), (3, 3, 5, 6), 1, HALF[3], 1, "patches"),
    "patches, stride 2, SAME": ((2, 9, 10, 5), (3, 3, 5, 6), 2, "SAME", 1, "patches"),
    "patches of one position": ((2, 1, 1, 5), (3, 3, 5, 6), 1, HALF[3], 1, "patches"),
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


def test_the_border_between_the_forms_is_where_it_is_said_to_be():
    at = ((PATCHES_UP_TO, 1), (PATCHES_UP_TO + 1, 1))
    found = [chosen_form((2, *size, 8), (3, 3, 8, 8), 1, HALF[3], 1) for size in at]
    assert found == ["patches", "native"]


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
