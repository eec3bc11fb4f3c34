"""Keras files: what is taken from them, and what is refused, with files written here as Keras writes them."""

import io
import json
import sys
import zipfile
from itertools import pairwise

import numpy as np
import pytest

from pcls.errors import UserError
from pcls.pretrained import keras_files
from pcls.pretrained.bundle import load_bundle, save_bundle
from pcls.pretrained.keras_files import read_keras

h5py = pytest.importorskip("h5py")

CNN = ("Conv2D", "MaxPooling2D", "Conv2D", "MaxPooling2D", "Flatten", "Dropout", "Dense", "Dense")
RNN = ("SimpleRNN", "Dense")
WIDTHS = (4, 6, 5)
GROUPS = {"Conv2D": "conv2d", "Dense": "dense", "SimpleRNN": "simple_rnn", "MaxPooling2D": "max_pooling2d"}
# The settings that Keras writes and pcls looks at.
SETTINGS = {
    "InputLayer": {"batch_shape": [None, 28, 28, 1]},
    "Conv2D": {
        "kernel_size": [3, 3],
        "strides": [1, 1],
        "padding": "valid",
        "data_format": "channels_last",
        "dilation_rate": [1, 1],
        "groups": 1,
        "activation": "relu",
        "use_bias": True,
    },
    "MaxPooling2D": {"pool_size": [2, 2], "strides": [2, 2], "padding": "valid", "data_format": "channels_last"},
    "Flatten": {"data_format": "channels_last"},
    "Dropout": {"rate": 0.5},
    "Dense": {"activation": "relu", "use_bias": True},
    "SimpleRNN": {"activation": "tanh", "use_bias": True, "return_sequences": False, "go_backwards": False},
}


def described(kinds, shape=(28, 28, 1), last="softmax", **changed):
    """Keras' description of layers; `changed` has other settings by layer, as in `conv2d_1={"strides": [2, 2]}`."""
    counts, layers = {}, []
    for kind in ("InputLayer", *kinds):
        stem = GROUPS.get(kind, kind.lower())
        place = counts[stem] = counts.get(stem, -1) + 1
        name = f"{stem}_{place}" if place else stem
        layers.append({"class_name": kind, "config": {"name": name, **SETTINGS.get(kind, {})}})
    layers[0]["config"]["batch_shape"] = [None, *shape]
    if "activation" in layers[-1]["config"]:
        layers[-1]["config"]["activation"] = last
    for layer in layers:
        layer["config"] |= changed.get(layer["config"]["name"], {})
    return {"class_name": "Sequential", "config": {"name": "sequential", "layers": layers}}


def drawn(shapes):
    rng = np.random.default_rng(0)
    return {
        name: [rng.normal(size=shape).astype(np.float32) for shape in of_layer] for name, of_layer in shapes.items()
    }


def cnn_arrays(widths=WIDTHS, features=25, classes=3, channels=1):
    first, second, *hidden = widths
    shapes = {"conv2d": [(3, 3, channels, first), (first,)], "conv2d_1": [(3, 3, first, second), (second,)]}
    inputs = features * second
    for place, units in enumerate((*hidden, classes)):
        shapes[f"dense_{place}" if place else "dense"] = [(inputs, units), (units,)]
        inputs = units
    return drawn(shapes)


def rnn_arrays(features=28, hidden=32, layers=1, classes=3):
    shapes = {}
    for place in range(layers):
        inputs = hidden if place else features
        shapes[f"simple_rnn_{place}" if place else "simple_rnn"] = [(inputs, hidden), (hidden, hidden), (hidden,)]
    return drawn(shapes | {"dense": [(hidden, classes), (classes,)]})


def write_legacy(path, description, arrays, weights_only=False):
    """As Keras 2 does: `.h5`, the names of arrays in attributes."""
    with h5py.File(path, "w") as file:
        root = file
        if not weights_only:
            file.attrs["model_config"] = json.dumps(description)
            root = file.create_group("model_weights")
        names = [layer["config"]["name"] for layer in description["config"]["layers"]]
        root.attrs["layer_names"] = [name.encode() for name in names]
        for name in names:
            paths = [f"{name}/array_{number}:0" for number in range(len(arrays.get(name, ())))]
            root.create_group(name).attrs["weight_names"] = [one.encode() for one in paths]
            for one, array in zip(paths, arrays.get(name, ()), strict=True):
                root[name][one] = array
    return path


def write_weights(path, arrays, empty=("flatten", "dropout"), **options):
    """As Keras 3 does: `.weights.h5`; `options` are those of the arrays."""
    with h5py.File(path, "w") as file:
        for name in empty:
            file.create_group(f"layers/{name}/vars")
        for name, of_layer in arrays.items():
            cell = "/cell" if name.startswith("simple_rnn") else ""
            for number, array in enumerate(of_layer):
                file.create_dataset(f"layers/{name}{cell}/vars/{number}", data=array, **options)
    return path


def write_archive(path, description, arrays):
    """As Keras 3 does: `.keras`."""
    buffer = io.BytesIO()
    write_weights(buffer, arrays)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(description))
        archive.writestr("model.weights.h5", buffer.getvalue())
    return path


@pytest.fixture
def write(tmp_path):
    """Writes a file of one of the formats."""

    def one(form, description, arrays):
        path = tmp_path / f"pretrained_model.{form}"
        if form == "keras":
            return write_archive(path, description, arrays)
        if form == "weights.h5":
            return write_weights(path, arrays)
        return write_legacy(path, description, arrays, weights_only=form == "weights_only.h5")

    return one


def refusal(path, **options):
    with pytest.raises(UserError) as raised:
        read_keras(path, **options)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# What is taken


@pytest.mark.parametrize("form", ["h5", "weights_only.h5", "weights.h5", "keras"])
def test_a_cnn_comes_with_its_arrays_from_every_format(write, form):
    arrays, heard = cnn_arrays(), []
    bundle = read_keras(write(form, described(CNN), arrays), say=heard.append)
    assert (bundle.model, dict(bundle.options)) == ("cnn28", {"widths": WIDTHS})
    assert bundle.preprocessing.shape == (28, 28, 1)
    assert (bundle.preprocessing.mean, bundle.preprocessing.std) == ((0.0,), (1.0,))
    assert bundle.class_names == ("0", "1", "2")
    layers = {"conv1": "conv2d", "conv2": "conv2d_1", "dense": "dense", "head": "dense_1"}
    assert bundle.params.keys() == bundle.definition().params.keys()
    for path, array in bundle.params.items():
        layer, part = path.split("/")
        np.testing.assert_array_equal(array, arrays[layers[layer]][part == "bias"], err_msg=path)
    said = " ".join(heard)
    assert "x / 255" in said
    assert ("28 x 28 pixels" in said) == ("ReLU" in said) == form.startswith("weights")


@pytest.mark.parametrize("form", ["h5", "weights.h5", "keras"])
@pytest.mark.parametrize(("activation", "model"), [("tanh", "rnn28"), ("relu", "irnn28")])
def test_a_recurrent_network_comes_with_its_arrays_from_every_format(write, form, activation, model):
    arrays = rnn_arrays()
    description = described(RNN, (28, 28), "linear", simple_rnn={"activation": activation})
    bundle = read_keras(write(form, description, arrays), "abc", model=model if form == "weights.h5" else "")
    assert (bundle.model, dict(bundle.options), bundle.class_names) == (model, {}, ("a", "b", "c"))
    kernel, recurrent, bias = arrays["simple_rnn"]
    expected = {"inputs/kernel": kernel, "inputs/bias": bias, "recurrent": recurrent}
    expected |= {"head/kernel": arrays["dense"][0], "head/bias": arrays["dense"][1]}
    assert bundle.params.keys() == expected.keys() == bundle.definition().params.keys()
    for path, array in bundle.params.items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)


def test_a_bundle_of_keras_is_saved_and_loaded(write, tmp_path):
    bundle = read_keras(write("keras", described(CNN), cnn_arrays()))
    save_bundle(bundle, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.options == {"widths": WIDTHS}
    for path, array in loaded.params.items():
        np.testing.assert_array_equal(array, bundle.params[path])


def test_a_cnn_may_lack_the_hidden_layer_and_see_colours_in_another_size(write):
    kinds = CNN[:-1]
    bundle = read_keras(write("h5", described(kinds, (20, 32, 3)), cnn_arrays((32, 64), 3 * 6, channels=3)))
    assert dict(bundle.options) == {"widths": (32, 64)}
    assert bundle.preprocessing.shape == (20, 32, 3)
    assert "dense/kernel" not in bundle.params


def test_the_customary_widths_are_no_option(write):
    bundle = read_keras(write("keras", described(CNN), cnn_arrays((32, 64, 64), classes=10)))
    assert (dict(bundle.options), bundle.definition().parameter_count) == ({}, 121_930)


def test_stacked_recurrent_layers_over_pixels(write):
    description = described(
        ("Reshape", "SimpleRNN", "SimpleRNN", "Dense"),
        (7, 7, 1),
        reshape={"target_shape": [-1, 1]},
        simple_rnn={"activation": "relu", "return_sequences": True},
        simple_rnn_1={"activation": "relu"},
    )
    arrays = rnn_arrays(features=1, hidden=6, layers=2)
    bundle = read_keras(write("h5", description, arrays))
    assert bundle.model == "irnn"
    assert dict(bundle.options) == {"hidden": 6, "layers": 2, "read": "pixels"}
    assert bundle.preprocessing.shape == (7, 7, 1)
    np.testing.assert_array_equal(bundle.params["recurrent/layers/1/forward/recurrent"], arrays["simple_rnn_1"][1])


def test_activations_may_be_layers_and_the_description_that_of_a_functional_model(write):
    kinds = ("Conv2D", "Activation", *CNN[1:], "Softmax")
    description = described(
        kinds,
        conv2d={"activation": "linear"},
        activation={"activation": "relu"},
        dense_1={"activation": "linear"},
        softmax={"axis": -1},
    )
    description["class_name"] = "Functional"
    layers = description["config"]["layers"]
    layers[0]["inbound_nodes"] = []
    for before, layer in pairwise(layers):
        taken = {"class_name": "__keras_tensor__", "config": {"keras_history": [before["config"]["name"], 0, 0]}}
        layer["inbound_nodes"] = [{"args": [taken], "kwargs": {}}]
    # As Keras 2 wrote it.
    layers[1]["inbound_nodes"] = [[["inputlayer", 0, 0, {}]]]
    assert read_keras(write("keras", description, cnn_arrays())).model == "cnn28"
    layers[3]["inbound_nodes"] = [[["conv2d", 0, 0, {}]]]
    message = refusal(write("keras", description, cnn_arrays()))
    assert message == "MaxPooling2D 'max_pooling2d' takes conv2d; a chain of layers is needed"


@pytest.mark.parametrize(
    ("layers", "mean", "std"),
    [
        ({"rescaling": {"scale": 1 / 255, "offset": 0}}, 0.0, 1.0),
        ({"rescaling": {"scale": 1 / 127.5, "offset": -1}}, 0.5, 0.5),
        ({"normalization": {"mean": [0.13], "variance": [0.09]}}, 0.13, 0.3),
        ({"normalization": {"mean": [[[51.0]]], "variance": [[[2601.0]]]}}, 0.2, 0.2),
        (
            {"rescaling": {"scale": 1 / 255, "offset": 0.0}, "normalization": {"mean": [0.4], "variance": [0.25]}},
            0.4,
            0.5,
        ),
    ],
)
def test_rescaling_and_normalisation_become_mean_and_deviation(write, layers, mean, std):
    kinds = tuple({"rescaling": "Rescaling", "normalization": "Normalization"}[name] for name in layers)
    arrays = cnn_arrays() | {"normalization": []}
    heard = []
    bundle = read_keras(write("keras", described((*kinds, *CNN), **layers), arrays), say=heard.append)
    np.testing.assert_allclose((*bundle.preprocessing.mean, *bundle.preprocessing.std), (mean, std), atol=1e-7)
    assert heard == []


def test_an_adapted_normalisation_has_its_numbers_among_the_arrays(write):
    arrays = cnn_arrays() | {"normalization": [np.float32([0.25]), np.float32([0.16]), np.int64(7)]}
    description = described(("Normalization", *CNN), normalization={"mean": None, "variance": None})
    bundle = read_keras(write("h5", description, arrays))
    np.testing.assert_allclose((*bundle.preprocessing.mean, *bundle.preprocessing.std), (0.25, 0.4), rtol=1e-6)


# What is refused

SHAPE_NEEDED = "[150, 5] is needed for images of 28 x 28 x 1"


@pytest.mark.parametrize(
    ("kinds", "changed", "message"),
    [
        (("LSTM", "Dense"), {}, "begins with LSTM 'lstm'; pcls imports Conv2D, "),
        (("Lambda", *CNN), {}, "begins with Lambda 'lambda'; pcls imports Conv2D, "),
        (
            ("Conv2D", "BatchNormalization", *CNN[1:]),
            {},
            "BatchNormalization 'batchnormalization' does not fit: MaxPooling2D is needed after Conv2D 'conv2d'; pcls ",
        ),
        (CNN[:-3], {}, "ends after Flatten 'flatten', where Dense is needed; pcls imports "),
        ((*CNN, "Dense"), {}, "Dense 'dense_2' does not fit: nothing may follow Dense 'dense_1'; pcls imports "),
        (
            CNN,
            {"conv2d_1": {"strides": [2, 2]}},
            "Conv2D 'conv2d_1' does not fit: its strides is [2, 2], and [1, 1] is needed",
        ),
        (CNN, {"conv2d": {"padding": "same"}}, "Conv2D 'conv2d' does not fit: its padding is same, and valid is "),
        (CNN, {"dense": {"activation": "gelu"}}, "Dense 'dense' does not fit: its activation is gelu, and relu is "),
        (
            CNN,
            {"dense_1": {"activation": "sigmoid"}},
            "Dense 'dense_1' does not fit: its activation is sigmoid, and softmax or linear is needed",
        ),
        (CNN, {"dense": {"use_bias": False}}, "Dense 'dense' does not fit: its use_bias is False, and True is needed"),
        (
            ("Rescaling", *CNN),
            {"rescaling": {"scale": 2.0, "offset": -1.0}},
            "Rescaling 'rescaling' does not fit: its scale is 2.0 and its offset -1.0; numbers are needed, and a",
        ),
        (
            ("Normalization", *CNN),
            {"normalization": {"mean": [0.1] * 28, "variance": [1.0] * 28}},
            "Normalization 'normalization' does not fit: it has 28 means; one is needed, or one a channel",
        ),
        (CNN, {"inputlayer": {"batch_shape": [None, 28, 28, 2]}}, "reads images of 2 channels; 1 (grey) or 3 (RGB) "),
        (CNN, {"inputlayer": {"batch_shape": [None, 36, 28, 1]}}, "Dense 'dense' has a kernel of shape [150, 5]; [210"),
        (CNN, {"inputlayer": {"batch_shape": [None, 8, 8, 1]}}, "cnn28 needs images of 10 x 10 or more, and these are"),
    ],
)
def test_another_network_is_refused_by_the_layer_that_does_not_fit(write, kinds, changed, message):
    path = write("keras", described(kinds, **changed), cnn_arrays((4, 6, 5, 3)) | {"normalization": []})
    assert refusal(path).startswith(message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"simple_rnn": {"activation": "sigmoid"}},
            "SimpleRNN 'simple_rnn' does not fit: its activation is sigmoid, and tanh or relu is needed",
        ),
        (
            {"simple_rnn": {"go_backwards": True}},
            "SimpleRNN 'simple_rnn' does not fit: its go_backwards is True, and False is needed",
        ),
        (
            {"inputlayer": {"batch_shape": [None, 50, 1]}},
            "its SimpleRNN reads 50 pixels, which are no square image",
        ),
    ],
)
def test_another_recurrent_network_is_refused(write, changed, message):
    assert refusal(write("h5", described(RNN, (28, 28), **changed), rnn_arrays())) == message


def test_weights_alone_do_not_tell_tanh_from_relu_nor_how_images_were_scaled(tmp_path):
    path = write_weights(tmp_path / "rnn.weights.h5", rnn_arrays())
    assert refusal(path).startswith(
        "holds weights only, and SimpleRNN 'simple_rnn' may be of tanh or ReLU: write --mod"
    )
    path = write_weights(tmp_path / "cnn.weights.h5", cnn_arrays(), empty=("rescaling",))
    assert refusal(path).startswith("holds weights only, without the numbers of Rescaling 'rescaling'; import the who")
    path = write_weights(tmp_path / "other.weights.h5", cnn_arrays(), empty=("average_pooling2d",))
    assert refusal(path).startswith("begins with average_pooling2d 'average_pooling2d'; pcls imports ")


def test_as_many_classes_are_named_as_there_are_outputs(write):
    path = write("keras", described(CNN), cnn_arrays())
    assert refusal(path, class_names=("cat", "dog")) == "has 3 outputs, and 2 classes are named"


def test_an_array_of_another_shape_is_refused_by_its_layer(write):
    arrays = cnn_arrays()
    arrays["dense"][0] = arrays["dense"][0][:100]
    message = refusal(write("h5", described(CNN), arrays))
    assert message == f"Dense 'dense' has a kernel of shape [100, 5]; {SHAPE_NEEDED}"
    arrays["dense"][0] = arrays["dense"][0].reshape(10, 10, 5)
    message = refusal(write("h5", described(CNN), arrays))
    assert message == "Dense 'dense' has a kernel of shape [10, 10, 5]; one of 2 axes is needed"


def test_an_array_that_is_missing_is_named(write):
    path = write("h5", described(CNN), cnn_arrays())
    with h5py.File(path, "r+") as file:
        del file["model_weights/conv2d_1/conv2d_1/array_1:0"]
    assert refusal(path).startswith(
        "conv2d_1/array_1:0 is missing in /model_weights/conv2d_1/conv2d_1; the file is not"
    )
    arrays = cnn_arrays()
    del arrays["conv2d"][1]
    assert refusal(write("keras", described(CNN), arrays)) == "Conv2D 'conv2d' has 1 arrays; kernel, bias are needed"


@pytest.mark.parametrize("form", ["h5", "weights.h5", "keras"])
def test_a_truncated_file_is_refused_wherever_it_ends(write, form):
    path = write(form, described(CNN), cnn_arrays())
    whole = path.read_bytes()
    for share in np.linspace(0, 0.99, 12):
        path.write_bytes(whole[: int(len(whole) * share)])
        refusal(path)


def test_bits_that_flip_give_an_error_of_one_line_or_other_numbers(write):
    path = write("h5", described(CNN), cnn_arrays())
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, min(len(whole), 20_000), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            read_keras(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 0


@pytest.mark.parametrize("link", ["external", "soft"])
def test_links_are_not_followed(tmp_path, link):
    path = write_weights(tmp_path / "mine.weights.h5", cnn_arrays())
    write_weights(tmp_path / "other.h5", cnn_arrays())
    with h5py.File(path, "r+") as file:
        where = "layers/dense/vars/0"
        del file[where]
        other = h5py.ExternalLink(str(tmp_path / "other.h5"), where)
        file[where] = other if link == "external" else h5py.SoftLink("/layers/dense/vars/1")
    assert refusal(path) == "0 is a link to elsewhere, which is not followed; save the model by Keras"


def test_arrays_in_other_files_are_not_read(tmp_path):
    path = write_weights(tmp_path / "mine.weights.h5", cnn_arrays())
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(4 * 150 * 5))
    with h5py.File(path, "r+") as file:
        del file["layers/dense/vars/0"]
        file.create_dataset("layers/dense/vars/0", (150, 5), "f4", external=[(str(raw), 0, h5py.h5f.UNLIMITED)])
    assert refusal(path) == "/layers/dense/vars/0 lies in another file; save the model again, in one"
    layout = h5py.VirtualLayout((150, 5), "f4")
    layout[:] = h5py.VirtualSource(str(raw), "x", (150, 5))
    with h5py.File(path, "r+") as file:
        del file["layers/dense/vars/0"]
        file.create_virtual_dataset("layers/dense/vars/0", layout)
    assert refusal(path) == "/layers/dense/vars/0 lies in another file; save the model again, in one"


def test_an_array_larger_than_its_file_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "large.weights.h5"
    arrays = cnn_arrays()
    for name in ("dense", "dense_1"):
        del arrays[name]
    write_weights(path, arrays)
    side, units = 2**11, 2**12
    with h5py.File(path, "r+") as file:
        # 400 GB that were never written: HDF5 would fill them with zeros when they are read.
        for name, shape in {"dense": (side * side * 6, units), "dense_1": (units, 3)}.items():
            file.create_dataset(f"layers/{name}/vars/0", shape, "f4")
            file.create_dataset(f"layers/{name}/vars/1", shape[1:], "f4")
    assert "bytes; 0 are stored, in a file of " in refusal(path)
    assert path.stat().st_size < 1e5


def test_compressed_arrays_and_arrays_of_no_numbers_are_refused(tmp_path):
    path = write_weights(tmp_path / "mine.weights.h5", cnn_arrays(), compression="gzip")
    assert "is compressed, which Keras does not do" in refusal(path)
    arrays = {name: [array.astype(np.int32) for array in of_layer] for name, of_layer in cnn_arrays().items()}
    assert "is of type int32; numbers of 16, 32 or 64 bits" in refusal(write_weights(path, arrays))
    arrays = cnn_arrays()
    arrays["dense_1"][1][0] = np.nan
    assert refusal(write_weights(path, arrays)) == "/layers/dense_1/vars/1 holds values that are not finite in float32"


def test_a_zip_bomb_is_refused_by_the_size_that_it_states(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_files, "MAX_WEIGHTS_BYTES", 10**6)
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps(described(CNN)))
        archive.writestr("model.weights.h5", bytes(10**7))
    assert path.stat().st_size < 20_000
    assert refusal(path) == "its model.weights.h5 is said to be 10,000,000 bytes; 1,000,000 at most are read"
    # The directory at the end of the archive lies: what is read ends there too, and its checksum differs.
    lying = path.read_bytes().replace((10**7).to_bytes(4, "little"), (999).to_bytes(4, "little"))
    path.write_bytes(lying)
    assert "Bad CRC-32" in refusal(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is damaged, or no file of Keras ("),
        ("{", "is damaged, or no file of Keras ("),
        ("[]", "describes no model: class_name is missing"),
        ('{"class_name": "Exec", "config": {}}', "describes a 'Exec'; a Sequential or Functional model is needed"),
        ('{"class_name": "Sequential", "config": {"layers": [3]}}', "describes layer 1 without its settings"),
        ('{"class_name": "Sequential", "config": {"layers": []}}', "describes a model without layers"),
    ],
)
def test_a_description_that_is_none_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.h5"
    write_legacy(path, described(CNN), cnn_arrays())
    buffer = io.BytesIO()
    write_weights(buffer, cnn_arrays())
    path = tmp_path / "mine.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", text)
        archive.writestr("model.weights.h5", buffer.getvalue())
    assert refusal(path).startswith(message)


def test_other_files_are_refused(tmp_path):
    text = tmp_path / "mine.h5"
    text.write_text("no HDF5")
    assert refusal(text) == "is neither HDF5 (.h5, .weights.h5) nor a .keras archive"
    assert refusal(tmp_path / "none.h5") == "there is no such file"
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = np.zeros(3)
    assert refusal(tmp_path / "data.h5") == "holds no layers, as Keras writes them"
    with zipfile.ZipFile(tmp_path / "data.keras", "w") as archive:
        archive.writestr("x", "")
    assert refusal(tmp_path / "data.keras") == "holds no config.json; a .keras file of Keras 3 has it"


def test_without_h5py_the_extra_is_named(write, monkeypatch):
    path = write("h5", described(CNN), cnn_arrays())
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert refusal(path) == "Keras files need h5py: pip install 'pcls[keras-files]'"
