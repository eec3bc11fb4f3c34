"""The small CNN with other widths than its customary ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.errors import UserError
from pcls.models.registry import define_model


def cnn(**options):
    return define_model("cnn28", height=14, width=18, channels=3, classes=5, **options)


@pytest.mark.parametrize(
    ("widths", "shapes"),
    [
        ((), {"conv1": (3, 3, 3, 32), "conv2": (3, 3, 32, 64), "dense": (6 * 64, 64), "head": (64, 5)}),
        ((4, 6, 7), {"conv1": (3, 3, 3, 4), "conv2": (3, 3, 4, 6), "dense": (6 * 6, 7), "head": (7, 5)}),
        ((4, 6), {"conv1": (3, 3, 3, 4), "conv2": (3, 3, 4, 6), "head": (6 * 6, 5)}),
    ],
)
def test_widths_are_those_of_the_convolutions_and_of_the_hidden_layer(widths, shapes):
    found = {path: leaf.shape for path, leaf in cnn(widths=widths).params.items()}
    assert found == {f"{name}/kernel": shape for name, shape in shapes.items()} | {
        f"{name}/bias": shape[-1:] for name, shape in shapes.items()
    }


def test_without_a_hidden_layer_the_head_sees_what_the_convolutions_leave():
    model = cnn(widths=(4, 6))
    params, _ = model.init(jax.random.key(0))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 14, 18, 3)), jnp.float32)
    plain, _ = model.apply(params, {}, images)
    # A hidden layer that changes nothing: what the convolutions leave is not below zero.
    wider = {**params, "dense/kernel": jnp.eye(36), "dense/bias": jnp.zeros(36)}
    np.testing.assert_allclose(cnn(widths=(4, 6, 36)).apply(wider, {}, images)[0], plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("widths", [(4,), (4, 6, 7, 8), (4, 0, 7)])
def test_other_numbers_of_widths_are_refused(widths):
    with pytest.raises(UserError) as raised:
        cnn(widths=widths)
    assert str(raised.value) == (
        f"model.widths is {list(widths)}; cnn28 has two convolutions and one hidden layer or none: "
        "write 2 or 3 numbers >= 1, as in [32, 64, 64]"
    )


def test_widths_of_another_model_are_refused():
    with pytest.raises(UserError) as raised:
        define_model("convnext_atto", height=32, width=32, channels=3, classes=5, widths=(4, 6))
    told = "model.widths has no effect with convnext_atto; models that have it: cnn28, resnet18, resnet34, "
    assert str(raised.value).startswith(told)
