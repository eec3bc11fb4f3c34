"""What a stack of Keras layers is here: the CNN or the recurrent network of `pcls.models.classic`, or neither.

Descriptions are read as data; nothing of Keras is needed or run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np

from pcls.data.preprocessing import Preprocessing
from pcls.errors import UserError

# What pcls has of Keras' layers.
NETWORKS = (
    "pcls imports Conv2D, MaxPooling2D, Conv2D, MaxPooling2D, Flatten, Dense (or none), Dense; or SimpleRNN (one or "
    "more), Dense"
)
# Kinds of layers with arrays: what each array is, and how many axes it has; None: any number.
ARRAYS: Mapping[str, Mapping[str, int | None]] = {
    "Conv2D": {"kernel": 4, "bias": 1},
    "Dense": {"kernel": 2, "bias": 1},
    "SimpleRNN": {"kernel": 2, "recurrent_kernel": 2, "bias": 1},
    "Normalization": {"mean": None, "variance": None, "count": 0},
}
_IN_TRAINING_ONLY = ("Dropout", "SpatialDropout2D")
_ACTIVATIONS = {"ReLU": "relu", "Softmax": "softmax"}
# Other settings of these are another network. The first value is the one that files of older versions leave out.
_CONVOLVED = {"data_format": ("channels_last",), "padding": ("valid",)}
_SETTINGS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "Conv2D": {
        **_CONVOLVED,
        "kernel_size": ([3, 3],),
        "strides": ([1, 1],),
        "dilation_rate": ([1, 1],),
        "groups": (1,),
        "use_bias": (True,),
    },
    "MaxPooling2D": {**_CONVOLVED, "pool_size": ([2, 2],), "strides": ([2, 2],)},
    "Flatten": {"data_format": ("channels_last",)},
    "Dense": {"use_bias": (True,)},
    "SimpleRNN": {"use_bias": (True,), "go_backwards": (False,), "return_state": (False,)},
    "ReLU": {"max_value": (None,), "negative_slope": (0,), "threshold": (0,)},
    "Softmax": {"axis": (-1,)},
    "Normalization": {"invert": (False,)},
}
# A larger scale is of numbers that were divided by 255 already, and then no image is what the layer expects.
_BYTE_SCALE = 0.1
# Of Keras.
_LEAST_DEVIATION = 1e-7


@dataclass(frozen=True)
class Layer:
    """A layer of a file.

    Attributes:
      kind: Keras' class name.
      name: of the layer.
      settings: as the file describes them; None: it holds weights only.
      arrays: its tensors, each with `shape`, read by `numpy.asarray`.
    """

    kind: str
    name: str
    settings: Mapping[str, Any] | None
    arrays: Sequence[Any] = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


@dataclass(frozen=True)
class Network:
    """What the layers are here.

    Attributes:
      model: a name of the registry.
      options: of `define_model`.
      preprocessing: what the weights expect of an image.
      classes: outputs.
      arrays: path to the layer and what of it stands there.
      assumed: what the file does not tell.
    """

    model: str
    options: Mapping[str, Any]
    preprocessing: Preprocessing
    classes: int
    arrays: Mapping[str, tuple[Layer, str]]
    assumed: tuple[str, ...]


def layers_of(description: Any) -> list[Layer]:
    """The layers that Keras' JSON describes, without their arrays.

    Raises:
      UserError: it is no chain of layers.
    """
    kind = _text(description, "class_name")
    if kind not in ("Sequential", "Functional", "Model"):
        raise UserError(f"describes a {kind[:40]!r}; a Sequential or Functional model is needed")
    config = description.get("config")
    # Keras 1 and early 2 wrote the list alone.
    listed = config.get("layers") if isinstance(config, dict) else config
    if not isinstance(listed, list) or not listed:
        raise UserError("describes a model without layers")
    layers: list[Layer] = []
    for entry in listed:
        settings = entry.get("config") if isinstance(entry, dict) else None
        if not isinstance(settings, dict):
            raise UserError(f"describes layer {len(layers) + 1} without its settings")
        layer = Layer(_text(entry, "class_name"), str(settings.get("name", len(layers))), settings)
        if kind != "Sequential":
            _check_chain(layer, entry.get("inbound_nodes", []), layers[-1:])
        layers.append(layer)
    if isinstance(config, dict) and "build_input_shape" in config and _declared_shape(layers[0]) is None:
        first = layers[0]
        layers[0] = replace(first, settings={**(first.settings or {}), "batch_shape": config["build_input_shape"]})
    return layers


def _check_chain(layer: Layer, nodes: Any, before: Sequence[Layer]) -> None:
    """UserError unless a layer takes what the one before it gives, and nothing else."""
    taken = list(_sources(nodes))
    if taken != [one.name for one in before]:
        raise UserError(f"{layer} takes {', '.join(taken)[:80] or 'nothing'}; a chain of layers is needed")


def _sources(nodes: Any) -> Iterator[str]:
    """The layers whose outputs a layer takes: `keras_history` of Keras 3, `[name, 0, 0, {}]` of Keras 2."""
    if isinstance(nodes, dict):
        if "keras_history" in nodes:
            yield str(nodes["keras_history"][0])
        else:
            for value in nodes.values():
                yield from _sources(value)
    elif isinstance(nodes, list):
        if len(nodes) >= 3 and isinstance(nodes[0], str):
            yield nodes[0]
        else:
            for value in nodes:
                yield from _sources(value)


def recognised(layers: Sequence[Layer], model: str = "") -> Network:
    """The network that the layers are.

    Args:
      layers: all of them, or those with arrays where nothing describes the others.
      model: `rnn28` or `irnn28` (`rnn`, `irnn`), where no description tells tanh from ReLU.

    Raises:
      UserError: it is none of `NETWORKS`; it names the layer which does not fit.
    """
    layers = _with_activations([layer for layer in layers if layer.kind not in _IN_TRAINING_ONLY])
    start = next((place for place, layer in enumerate(layers) if layer.kind not in _FRONT), len(layers))
    front, body = layers[:start], layers[start:]
    first = body[0].kind if body else "nothing"
    if first == "Conv2D":
        return _cnn(front, body)
    if first == "SimpleRNN":
        return _rnn(front, body, model)
    raise UserError(f"begins with {body[0] if body else first}; {NETWORKS}")


_FRONT = ("InputLayer", "Rescaling", "Normalization", "Reshape")


def _with_activations(layers: Sequence[Layer]) -> list[Layer]:
    """Activations that are layers of their own become settings of the layer before them."""
    found: list[Layer] = []
    for layer in layers:
        if layer.kind not in ("Activation", *_ACTIVATIONS):
            found.append(layer)
            continue
        _check_settings(layer)
        before = found[-1].settings or {} if found else {}
        if before.get("activation") != "linear":
            raise UserError(f"{layer} does not fit: it follows no layer that lacks an activation; {NETWORKS}")
        activation = _ACTIVATIONS.get(layer.kind) or (layer.settings or {}).get("activation")
        found[-1] = replace(found[-1], settings={**before, "activation": activation})
    return found


def _cnn(front: Sequence[Layer], body: Sequence[Layer]) -> Network:
    kinds = ["Conv2D", "MaxPooling2D", "Conv2D", "MaxPooling2D", "Flatten", "Dense"]
    kinds += ["Dense"] * (sum(layer.kind == "Dense" for layer in body) > 1)
    described = body[0].settings is not None
    _check_kinds(body, kinds if described else [kind for kind in kinds if kind in ARRAYS])
    *hidden, head = [layer for layer in body if layer.kind in ARRAYS]
    for layer in hidden:
        _check_settings(layer, activation=("relu",))
    _check_settings(head, activation=("softmax", "linear"))
    widths = tuple(_shape(layer, "kernel")[-1] for layer in hidden)
    shape = _input_shapes(front, body[0])[-1:]
    image = shape[0] if shape else _square_image_of(body)
    if len(image) != 3:
        raise UserError(f"{body[0]} reads {_sizes(image)}; height, width and channels are needed")
    names = ("conv1", "conv2", "dense")[: len(hidden)]
    return Network(
        model="cnn28",
        options={} if widths == (32, 64, 64) else {"widths": widths},
        preprocessing=_preprocessing(front, image),
        classes=_shape(head, "kernel")[-1],
        arrays={
            f"{name}/{part}": (layer, part)
            for name, layer in zip((*names, "head"), (*hidden, head), strict=True)
            for part in ("kernel", "bias")
        },
        assumed=_assumed(front, image if not shape else None, "ReLU and pooling of 2 x 2" if not described else ""),
    )


def _rnn(front: Sequence[Layer], body: Sequence[Layer], model: str) -> Network:
    count = max(1, sum(layer.kind == "SimpleRNN" for layer in body))
    _check_kinds(body, ["SimpleRNN"] * count + ["Dense"])
    *recurrent, head = body
    for place, layer in enumerate(recurrent):
        _check_settings(layer, activation=("tanh", "relu"), return_sequences=(place < count - 1,))
    _check_settings(head, activation=("softmax", "linear"))
    activation = _recurrent_activation(recurrent, model)
    shapes = _input_shapes(front, body[0])
    image, read = _image_of_steps(shapes) if shapes else _square_image_of_rows(recurrent[0])
    hidden = [_shape(layer, "kernel")[-1] for layer in recurrent]
    if len(set(hidden)) > 1:
        raise UserError(f"{recurrent[1]} does not fit: the layers have {_sizes(hidden)} units; as many each are needed")
    classic = count == 1 and hidden[0] == 32 and read == "rows"
    if classic:
        places = {"inputs/kernel": "kernel", "inputs/bias": "bias", "recurrent": "recurrent_kernel"}
        arrays = {path: (recurrent[0], part) for path, part in places.items()}
    else:
        parts = {"kernel": "kernel", "bias": "bias", "recurrent": "recurrent_kernel"}
        arrays = {
            f"recurrent/layers/{place}/forward/{name}": (layer, part)
            for place, layer in enumerate(recurrent)
            for name, part in parts.items()
        }
    options = {"hidden": hidden[0], "layers": count, "read": read}
    return Network(
        model={"tanh": "rnn", "relu": "irnn"}[activation] + ("28" if classic else ""),
        options={} if classic else options,
        preprocessing=_preprocessing(front, image),
        classes=_shape(head, "kernel")[-1],
        arrays={**arrays, "head/kernel": (head, "kernel"), "head/bias": (head, "bias")},
        assumed=_assumed(front, image if not shapes else None, ""),
    )


def _recurrent_activation(layers: Sequence[Layer], model: str) -> str:
    if layers[0].settings is None:
        told = {"rnn28": "tanh", "rnn": "tanh", "irnn28": "relu", "irnn": "relu"}.get(model)
        if told is None:
            raise UserError(
                f"holds weights only, and {layers[0]} may be of tanh or ReLU: write --model rnn28 (tanh) or irnn28 "
                "(ReLU); rnn or irnn where it is not one layer of 32 units; or import the whole model"
            )
        return told
    found = [str((layer.settings or {})["activation"]) for layer in layers]
    if len(set(found)) > 1:
        raise UserError(f"{layers[1]} does not fit: the layers have {', '.join(found)}; one activation is needed")
    return found[0]


def _check_kinds(body: Sequence[Layer], kinds: Sequence[str]) -> None:
    for place, kind in enumerate(kinds):
        before = f"after {body[place - 1]}" if place else "at the start"
        if place >= len(body):
            raise UserError(f"ends after {body[-1]}, where {kind} is needed; {NETWORKS}")
        if body[place].kind != kind:
            raise UserError(f"{body[place]} does not fit: {kind} is needed {before}; {NETWORKS}")
        _check_settings(body[place])
    if len(body) > len(kinds):
        raise UserError(f"{body[len(kinds)]} does not fit: nothing may follow {body[len(kinds) - 1]}; {NETWORKS}")


def _check_settings(layer: Layer, **needed: tuple[Any, ...]) -> None:
    if layer.settings is None:
        return
    for key, allowed in {**_SETTINGS.get(layer.kind, {}), **needed}.items():
        value = layer.settings.get(key, None if key in needed else allowed[0])
        # Keras writes 3 and [3, 3], and takes the size of pooling for strides that are not given.
        pair = isinstance(allowed[0], list)
        value = [value] * 2 if pair and isinstance(value, int) else allowed[0] if pair and value is None else value
        if value not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise UserError(f"{layer} does not fit: its {key} is {str(value)[:60]}, and {wanted} is needed")


def _shape(layer: Layer, part: str) -> tuple[int, ...]:
    """Of one of its arrays, whose number of axes is checked."""
    parts = ARRAYS[layer.kind]
    if len(layer.arrays) != len(parts):
        raise UserError(f"{layer} has {len(layer.arrays)} arrays; {', '.join(parts)} are needed")
    shape = tuple(layer.arrays[list(parts).index(part)].shape)
    if parts[part] not in (None, len(shape)) or 0 in shape:
        raise UserError(f"{layer} has a {part} of shape {list(shape)}; one of {parts[part]} axes is needed")
    return shape


def array_of(layer: Layer, part: str) -> Any:
    """One of its arrays by what it is."""
    _shape(layer, part)
    return layer.arrays[list(ARRAYS[layer.kind]).index(part)]


# Images


def _input_shapes(front: Sequence[Layer], first: Layer) -> list[tuple[int, ...]]:
    """The shape of an example before and after each reshaping at the front; empty: the file tells none."""
    shapes: list[tuple[int, ...]] = []
    for layer in (*front, first):
        declared = _declared_shape(layer)
        if declared is not None and not shapes:
            shapes.append(declared)
        if layer.kind == "Reshape" and shapes:
            target = (layer.settings or {}).get("target_shape")
            shapes.append(_reshaped(layer, shapes[-1], target))
    return shapes


def _declared_shape(layer: Layer) -> tuple[int, ...] | None:
    """Of an example, where the layer says it whole."""
    settings = layer.settings or {}
    shape = settings.get("batch_shape") or settings.get("batch_input_shape")
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape[1:]):
        return None
    return tuple(shape[1:])


def _reshaped(layer: Layer, shape: tuple[int, ...], target: Any) -> tuple[int, ...]:
    count = math.prod(shape)
    if isinstance(target, list) and all(_is_size(size) or size == -1 for size in target):
        known = math.prod(size for size in target if size != -1)
        found = tuple(count // known if size == -1 else size for size in target)
        if math.prod(found) == count:
            return found
    raise UserError(f"{layer} does not fit: it makes {str(target)[:60]} of {_sizes(shape)}")


def _is_size(size: Any) -> bool:
    return type(size) is int and 0 < size < 2**24


def _image_of_steps(shapes: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], str]:
    """Height, width and channels, and the order of reading, of what a recurrent layer sees as steps and features."""
    given, seen = shapes[0], shapes[-1]
    if len(seen) != 2:
        raise UserError(f"its SimpleRNN reads {_sizes(seen)}; steps and features are needed")
    steps, features = seen
    if len(given) == 3:
        height, width, channels = given
        if (steps, features) == (height, width * channels):
            return given, "rows"
        if (steps, features) == (height * width, channels):
            return given, "pixels"
        raise UserError(f"its SimpleRNN reads {_sizes(given)} as {_sizes(seen)}; rows or pixels are needed")
    if features > 1:
        return (steps, features, 1), "rows"
    side = math.isqrt(steps)
    if side * side != steps:
        raise UserError(f"its SimpleRNN reads {steps:,} pixels, which are no square image")
    return (side, side, 1), "pixels"


def _square_image_of_rows(layer: Layer) -> tuple[tuple[int, ...], str]:
    features = _shape(layer, "kernel")[0]
    if features == 1:
        raise UserError(f"holds weights only, and {layer} reads pixels: of how large an image cannot be told")
    return (features, features, 1), "rows"


def _square_image_of(body: Sequence[Layer]) -> tuple[int, ...]:
    """Of the customary size, a multiple of 4, of which the two convolutions leave what the first Dense takes."""
    convolutions = [layer for layer in body if layer.kind == "Conv2D"]
    dense = next(layer for layer in body if layer.kind == "Dense")
    features, width = _shape(dense, "kernel")[0], _shape(convolutions[1], "kernel")[-1]
    side = math.isqrt(features // width)
    if side * side * width != features:
        raise UserError(f"{dense} takes {features:,} features, which {width} channels of no square image are")
    size = 4 * side + 8
    return size, size, _shape(convolutions[0], "kernel")[2]


def _preprocessing(front: Sequence[Layer], image: tuple[int, ...]) -> Preprocessing:
    """What the layers at the front make of x / 255, as a mean and a deviation."""
    height, width, channels = image
    if channels not in (1, 3):
        raise UserError(f"reads images of {channels} channels; 1 (grey) or 3 (RGB) are needed")
    gain, shift = np.ones(channels), np.zeros(channels)
    scaled = False
    for layer in front:
        _check_settings(layer)
        if layer.kind == "Rescaling":
            scale, offset = _rescaling(layer)
            # It takes bytes.
            gain, shift = gain * scale * (1 if scaled else 255), shift * scale + offset
        elif layer.kind == "Normalization":
            mean, deviation = _normalization(layer, channels)
            if not scaled and mean.max() > 1:
                # Means above 1 are of bytes.
                gain = gain * 255
            gain, shift = gain / deviation, (shift - mean) / deviation
        else:
            continue
        scaled = True
    return Preprocessing(
        height, width, channels, mean=tuple(map(float, 0 - shift / gain)), std=tuple(map(float, 1 / gain))
    )


def _rescaling(layer: Layer) -> tuple[float, float]:
    if layer.settings is None:
        raise UserError(
            f"holds weights only, without the numbers of {layer}; import the whole model, such as a .keras file"
        )
    settings = layer.settings
    scale, offset = settings.get("scale"), settings.get("offset")
    if not (_is_number(scale) and _is_number(offset) and 0 < scale <= _BYTE_SCALE):
        raise UserError(
            f"{layer} does not fit: its scale is {str(scale)[:40]} and its offset {str(offset)[:40]}; numbers are "
            "needed, and a scale for bytes, such as 1/255 or 1/127.5"
        )
    return float(scale), float(offset)


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value)


def _normalization(layer: Layer, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation by channel."""
    settings = layer.settings or {}
    found = settings.get("mean"), settings.get("variance")
    if found == (None, None):
        found = (array_of(layer, "mean"), array_of(layer, "variance"))
    try:
        mean, variance = (np.asarray(value, np.float64).reshape(-1) for value in found)
    except (TypeError, ValueError) as error:
        raise UserError(f"{layer} does not fit: its mean and variance are no numbers") from error
    if mean.shape != variance.shape or mean.size not in (1, channels):
        raise UserError(f"{layer} does not fit: it has {mean.size:,} means; one is needed, or one a channel")
    if not (np.isfinite(mean).all() and np.isfinite(variance).all() and (variance >= 0).all()):
        raise UserError(f"{layer} does not fit: its mean or variance is not finite, or below 0")
    return np.broadcast_to(mean, channels), np.broadcast_to(np.maximum(variance**0.5, _LEAST_DEVIATION), channels)


def _assumed(front: Sequence[Layer], image: tuple[int, ...] | None, layers: str) -> tuple[str, ...]:
    scaled = any(layer.kind in ("Rescaling", "Normalization") for layer in front)
    assumptions = (
        "" if scaled else "images as numbers from 0 to 1 (x / 255), without a mean and a deviation",
        f"square images, of {image[0]} x {image[1]} pixels" if image else "",
        layers,
    )
    return tuple(filter(None, assumptions))


def _sizes(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes)) or "one number"


def _text(entry: Any, key: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise UserError(f"describes no model: {key} is missing")
    return value
