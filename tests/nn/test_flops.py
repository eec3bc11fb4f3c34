"""FLOPs of functions and models that are known."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from pcls.models.registry import customary_model
from pcls.nn.flops import analytic_activations, analytic_flops


def test_resnet50_has_its_published_flops():
    """4.09 G multiply-adds for 224 x 224 (version 1.5, stride in the 3 x 3 convolution)."""
    model = customary_model("resnet50")
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    flops = analytic_flops(model.apply, model.params, model.stats, image)
    assert flops == pytest.approx(8.18e9, rel=0.001)


def test_resnet50_has_its_published_activations():
    """11.1 M for 224 x 224, and the 1,000 logits."""
    model = customary_model("resnet50")
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    assert analytic_activations(model.apply, model.params, model.stats, image) == pytest.approx(11.1e6, rel=0.005)


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def convolve(x, kernel, **options):
    return lax.conv_general_dilated(
        x,
        kernel,
        options.pop("strides", (1, 1)),
        options.pop("padding", "VALID"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **options,
    )


def test_a_product_is_two_flops_for_each_multiply_add():
    assert analytic_flops(lambda x, w: x @ w, floats(5, 7), floats(7, 11)) == 2 * 5 * 7 * 11
    batched = analytic_flops(lambda x, w: jnp.einsum("bij,bjk->bik", x, w), floats(3, 5, 7), floats(3, 7, 11))
    assert batched == 3 * 2 * 5 * 7 * 11


@pytest.mark.parametrize(
    ("kernel", "options", "multiply_adds"),
    [
        ((3, 3, 8, 16), {}, 2 * 8 * 8 * 16 * 9 * 8),
        ((3, 3, 8, 16), {"strides": (2, 2), "padding": "SAME"}, 2 * 5 * 5 * 16 * 9 * 8),
        ((3, 3, 2, 16), {"feature_group_count": 4}, 2 * 8 * 8 * 16 * 9 * 2),
        ((3, 3, 8, 16), {"batch_group_count": 2}, 1 * 8 * 8 * 16 * 9 * 8),
        ((3, 3, 8, 16), {"rhs_dilation": (2, 2)}, 2 * 6 * 6 * 16 * 9 * 8),
        # Of 20 x 20 inputs, three in four are zeros between the others.
        ((1, 1, 8, 16), {"lhs_dilation": (2, 2), "padding": ((0, 1), (0, 1))}, 2 * 10 * 10 * 16 * 8),
    ],
)
def test_a_convolution_counts_its_window_and_the_channels_of_a_group(kernel, options, multiply_adds):
    flops = analytic_flops(lambda x, k: convolve(x, k, **dict(options)), floats(2, 10, 10, 8), floats(*kernel))
    assert flops == 2 * multiply_adds


ONE = 2 * 4 * 4 * 4


@jax.custom_vjp
def custom(x):
    return x @ x


custom.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x,))


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x: lax.scan(lambda c, _: (c @ x, None), x, None, length=7)[0], 7 * ONE),
        (lambda x: lax.scan(lambda c, _: (jax.jit(jnp.dot)(c, x), None), x, None, length=7)[0], 7 * ONE),
        (lambda x: lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x), 2 * ONE),
        (lambda x: jax.checkpoint(lambda x: x @ x)(x), ONE),
        (custom, ONE),
        (jax.jit(lambda x: x @ x), ONE),
        (lambda x: jnp.tanh(x) + x, 0),
    ],
)
def test_what_is_inside_is_counted(fn, expected):
    assert analytic_flops(fn, floats(4, 4)) == expected


def test_the_gradient_of_a_product_costs_two_more():
    flops = analytic_flops(jax.grad(lambda w, x: jnp.sum(jnp.tanh(x @ w)), argnums=(0, 1)), floats(4, 4), floats(4, 4))
    assert flops == 3 * ONE
