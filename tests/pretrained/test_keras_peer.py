"""Files that Keras itself wrote, and the logits that it computes from them."""

import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.errors import UserError
from pcls.pretrained.keras_files import read_keras

pytestmark = pytest.mark.peer

FORMATS = ("h5", "weights.h5", "keras")


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("tensorflow")
        return pytest.importorskip("keras")


def cnn(layers, hidden, last):
    dense = [layers.Dense(hidden, activation="relu")] if hidden else []
    return [
        *(layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D()),
        *(layers.Conv2D(64, (3, 3), activation="relu"), layers.MaxPooling2D((2, 2))),
        *(layers.Flatten(), layers.Dropout(0.5), *dense, layers.Dense(10, activation=last)),
    ]


# The layers, the shape of an example, the model here.
NETWORKS = {
    "cnn28": (lambda layers: cnn(layers, 64, "softmax"), (28, 28, 1), "cnn28"),
    "without a hidden layer": (lambda layers: cnn(layers, 0, None), (28, 28, 1), "cnn28"),
    "wider, colours": (lambda layers: cnn(layers, 128, None), (32, 32, 3), "cnn28"),
    "rnn28": (lambda layers: [layers.SimpleRNN(32), layers.Dense(10, activation="softmax")], (28, 28), "rnn28"),
    "irnn28": (lambda layers: [layers.SimpleRNN(32, activation="relu"), layers.Dense(10)], (28, 28), "irnn28"),
    "stacked": (
        lambda layers: [layers.SimpleRNN(48, return_sequences=True), layers.SimpleRNN(48), layers.Dense(10)],
        (28, 28),
        "rnn",
    ),
}


def with_drawn_weights(keras, build, shape):
    model = keras.Sequential([keras.Input(shape), *build(keras.layers)])
    rng = np.random.default_rng(0)
    model.set_weights(
        [rng.normal(0, 0.1 if one.ndim == 1 else np.prod(one.shape[:-1]) ** -0.5, one.shape) for one in model.weights]
    )
    return model


def save(model, path):
    with warnings.catch_warnings():
        # That .h5 is a format of old.
        warnings.simplefilter("ignore")
        (model.save_weights if path.name.endswith("weights.h5") else model.save)(path)
    return path


def logits_of(bundle, pixels):
    """Of bytes, as pcls prepares them."""
    mean, std = (np.float32(getattr(bundle.preprocessing, name)) for name in ("mean", "std"))
    x = (jnp.asarray(pixels, jnp.float32) / 255 - mean) / std
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(bundle.definition().apply)(bundle.params, {}, x)[0])


def check(bundle, expected, pixels, last):
    found = logits_of(bundle, pixels)
    found = np.asarray(jax.nn.softmax(found)) if last == "softmax" else found
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
    assert np.linalg.norm(expected - expected.mean(0)) > 0.01 * np.linalg.norm(expected)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("network", NETWORKS)
def test_logits_are_those_of_keras(keras, tmp_path, network, form):
    build, shape, name = NETWORKS[network]
    model = with_drawn_weights(keras, build, shape)
    told = name if form == "weights.h5" else ""
    bundle = read_keras(save(model, tmp_path / f"mine.{form}"), model=told)
    assert bundle.model == name
    assert bundle.preprocessing.shape == (*shape, 1)[:3]
    pixels = np.random.default_rng(1).integers(0, 256, (8, *bundle.preprocessing.shape), np.uint8)
    expected = model.predict(pixels.reshape(8, *shape) / np.float32(255), verbose=0)
    check(bundle, expected, pixels, model.layers[-1].activation.__name__)


@pytest.mark.parametrize("form", ["h5", "keras"])
def test_layers_that_scale_images_are_honoured(keras, tmp_path, form):
    def build(layers):
        normalization = layers.Normalization()
        normalization.build((None, 28, 28, 1))
        return [
            *(layers.Rescaling(1 / 127.5, offset=-1), normalization, layers.Reshape((28, 28))),
            *(layers.SimpleRNN(32), layers.Dense(10)),
        ]

    model = with_drawn_weights(keras, build, (28, 28, 1))
    model.layers[1].set_weights([np.float32([0.3]), np.float32([0.7]), np.int32(1)])
    # As `adapt` leaves it.
    model.layers[1].finalize_state()
    bundle = read_keras(save(model, tmp_path / f"mine.{form}"))
    pixels = np.random.default_rng(1).integers(0, 256, (8, 28, 28, 1), np.uint8)
    check(bundle, model.predict(pixels.astype(np.float32), verbose=0), pixels, "linear")


def test_a_model_that_was_trained_has_its_optimizer_left_out(keras, tmp_path):
    model = with_drawn_weights(keras, *NETWORKS["rnn28"][:2])
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(np.zeros((4, 28, 28), np.float32), np.zeros(4), verbose=0)
    for form in ("h5", "keras"):
        bundle = read_keras(save(model, tmp_path / f"mine.{form}"))
        np.testing.assert_array_equal(bundle.params["recurrent"], model.layers[0].get_weights()[1])


@pytest.mark.parametrize("form", ["h5", "keras"])
def test_networks_of_other_layers_are_refused(keras, tmp_path, form):
    layers = keras.layers
    model = keras.Sequential([keras.Input((28, 28)), layers.LSTM(8), layers.Dense(10)])
    with pytest.raises(UserError, match="begins with LSTM 'lstm"):
        read_keras(save(model, tmp_path / f"lstm.{form}"))
    inputs = keras.Input((28, 28))
    both = layers.Concatenate()([layers.SimpleRNN(8)(inputs), layers.SimpleRNN(8, go_backwards=True)(inputs)])
    model = keras.Model(inputs, layers.Dense(10)(both))
    with pytest.raises(UserError, match="a chain of layers is needed"):
        read_keras(save(model, tmp_path / f"branches.{form}"))
