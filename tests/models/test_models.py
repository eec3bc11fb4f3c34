"""Every model: its exact parameter count, its shapes and types, what it refuses, and the numbers of the small ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.errors import UserError
from pcls.models.registry import MODELS, customary_model, define_model, model_entry

# The counts of Keras' tutorial, of the formula 28*32 + 32*32 + 32 + 32*10 + 10, and of torchvision and timm.
COUNTS = {"cnn28": 121_930, "rnn28": 2_282, "irnn28": 2_282, "resnet18": 11_689_512, "resnet50": 25_557_032}


def logits_shape(definition, *image_shape: int) -> jax.ShapeDtypeStruct:
    """Shape and type of the logits, without computing them."""
    images = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    logits, _ = jax.eval_shape(
        lambda params, stats, images: definition.apply(params, stats, images, train=True),
        definition.params,
        definition.stats,
        images,
    )
    return logits


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_the_parameter_count_is_the_published_one(name, count):
    assert customary_model(name).parameter_count == count


def test_every_registered_model_is_counted_here():
    assert set(MODELS) >= set(COUNTS)


@pytest.mark.parametrize("name", list(COUNTS))
@pytest.mark.parametrize(("height", "width", "channels", "classes"), [(32, 32, 1, 2), (48, 40, 3, 7)])
def test_any_size_and_class_count_gives_one_logit_a_class(name, height, width, channels, classes):
    definition = define_model(name, height=height, width=width, channels=channels, classes=classes)
    assert logits_shape(definition, 5, height, width, channels).shape == (5, classes)


@pytest.mark.parametrize("name", ["cnn28", "rnn28", "resnet18"])
def test_bfloat16_computes_with_float32_parameters_and_statistics(name):
    definition = define_model(name, height=32, width=32, channels=3, classes=4, precision="bfloat16")
    assert {leaf.dtype.name for leaf in (definition.params | definition.stats).values()} == {"float32"}
    assert logits_shape(definition, 2, 32, 32, 3).dtype == jnp.bfloat16
    _, stats = jax.eval_shape(
        lambda p, s: definition.apply(p, s, jnp.zeros((2, 32, 32, 3), jnp.bfloat16), train=True),
        definition.params,
        definition.stats,
    )
    assert {path: leaf.shape for path, leaf in stats.items()} == {p: leaf.shape for p, leaf in definition.stats.items()}
    assert {leaf.dtype.name for leaf in stats.values()} <= {"float32"}


@pytest.mark.parametrize(("name", "size"), [("cnn28", 9), ("rnn28", 1), ("resnet18", 31), ("resnet50", 31)])
def test_images_too_small_are_refused(name, size):
    with pytest.raises(UserError) as raised:
        define_model(name, height=size, width=64, channels=1, classes=2)
    least, customary = size + 1, MODELS[name].image_size
    assert str(raised.value) == (
        f"{name} needs images of {least} x {least} or more, and these are {size} x 64; "
        f"set data.image_size, for example to {customary}"
    )


@pytest.mark.parametrize(("name", "size"), [("cnn28", 10), ("rnn28", 2), ("resnet18", 32), ("resnet50", 32)])
def test_the_smallest_images_are_taken(name, size):
    definition = define_model(name, height=size, width=size, channels=1, classes=2)
    assert logits_shape(definition, 1, size, size, 1).shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnet19", "the nearest is 'resnet1"), ("cnn-28", "the nearest is 'cnn28'"), ("zzz", "known: cnn28, rnn28, ")],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, hint):
    with pytest.raises(UserError) as raised:
        model_entry(name)
    assert str(raised.value).startswith(f"model.name is '{name}'; there is no such model; {hint}")


# Numbers


def images_of(channels: int, size: int = 28, batch: int = 4) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, size, size, channels)), jnp.float32)


def test_cnn28_is_two_convolutions_with_relu_and_pooling_and_two_dense_layers():
    definition = define_model("cnn28", height=28, width=28, channels=1, classes=10)
    p, _ = jax.jit(definition.init)(jax.random.key(0))
    p = {path: a + 0.1 if path.endswith("bias") else a for path, a in p.items()}
    x = images_of(1)

    def layer(p, x, name):
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, p[f"{name}/kernel"], (1, 1), "VALID", dimension_numbers=layout)
        y = jnp.maximum(y + p[f"{name}/bias"], 0)
        return jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    @jax.jit
    def both(p, x):
        y = layer(p, layer(p, x, "conv1"), "conv2").reshape(4, -1)
        y = jnp.maximum(y @ p["dense/kernel"] + p["dense/bias"], 0)
        return definition.apply(p, {}, x, train=False)[0], y @ p["head/kernel"] + p["head/bias"]

    found, expected = both(p, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "activation"), [("rnn28", np.tanh), ("irnn28", lambda x: np.maximum(x, 0))])
def test_the_recurrent_networks_read_the_rows_from_the_top(name, activation):
    definition = define_model(name, height=28, width=28, channels=1, classes=10)
    params, stats = jax.jit(definition.init)(jax.random.key(0))
    p = {path: np.asarray(array, np.float64) for path, array in params.items()}
    x = np.asarray(images_of(1), np.float64)[..., 0] / 10
    h = np.zeros((4, 32))
    for row in range(28):
        h = activation(x[:, row] @ p["inputs/kernel"] + p["inputs/bias"] + h @ p["recurrent"])
    expected = h @ p["head/kernel"] + p["head/bias"]
    found, _ = jax.jit(lambda p, x: definition.apply(p, stats, x, train=False))(params, images_of(1) / 10)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_recurrent_weights_start_orthogonal_or_as_the_identity():
    start = {n: define_model(n, height=28, width=28, channels=1, classes=10) for n in ("rnn28", "irnn28")}
    tanh, relu = (np.asarray(d.init(jax.random.key(0))[0]["recurrent"]) for d in start.values())
    np.testing.assert_allclose(tanh @ tanh.T, np.eye(32), atol=1e-5)
    assert np.array_equal(relu, np.eye(32))


@pytest.fixture(scope="module")
def resnet18():
    """What ResNet-18 for 7 classes starts with, and its training pass over 4 images of 32 pixels."""
    definition = define_model("resnet18", height=32, width=32, channels=3, classes=7)
    params, stats = jax.jit(definition.init)(jax.random.key(0))
    step = jax.jit(lambda params, stats, images: definition.apply(params, stats, images, train=True))
    return params, stats, step(params, stats, images_of(3, 32))


def test_resnet18_is_finite_at_32_pixels(resnet18):
    _, _, (logits, _) = resnet18
    assert logits.shape == (4, 7)
    assert np.isfinite(logits).all()
    # A new classifier has no strong opinions, and not the same one of every image.
    assert 0.01 < np.asarray(logits).std() < 10
    assert not np.allclose(logits[0], logits[1])


def test_training_moves_all_statistics_of_resnet18(resnet18):
    _, stats, (_, moved) = resnet18
    assert len(stats) == 40  # mean and variance of 20 layers
    assert not any(np.array_equal(moved[path], stats[path]) for path in stats)


def test_residual_blocks_start_as_their_shortcut(resnet18):
    params, *_ = resnet18
    second = [path for path in params if path.endswith("bn2/scale")]
    assert len(second) == 8
    assert all(np.array_equal(params[path], np.zeros_like(params[path])) for path in second)


def test_resnet_kernels_start_with_the_variance_of_their_fan_out(resnet18):
    params, *_ = resnet18
    kernels = {path: a for path, a in params.items() if a.ndim == 4}
    assert len(kernels) == 20
    for path, kernel in kernels.items():
        height, width, _, outputs = kernel.shape
        assert np.asarray(kernel).std() == pytest.approx(np.sqrt(2 / (height * width * outputs)), rel=0.05), path
