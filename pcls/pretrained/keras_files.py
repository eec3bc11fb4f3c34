"""Keras files of the two classic networks: `.h5`, `.weights.h5` and `.keras` to a bundle.

Arrays and descriptions are read as data: no code of Keras runs, nothing of a file is executed, and no size that a file
states is believed before it was compared with the file's own.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from pcls.errors import UserError, first_line
from pcls.pretrained.bundle import Bundle
from pcls.pretrained.keras_layers import ARRAYS, Layer, Network, array_of, layers_of, recognised

ZIP_MAGIC, HDF5_MAGIC = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
CONFIG, WEIGHTS = "config.json", "model.weights.h5"
# Of a description, and of the weights inside a .keras file. The networks have a thousandth of it.
MAX_CONFIG_BYTES, MAX_WEIGHTS_BYTES = 1 << 22, 1 << 28
# Of the layers' arrays; the second in files of TensorFlow 2.12 to 2.15.
LAYER_GROUPS = ("layers", "_layer_checkpoint_dependencies")
# How Keras 3 calls the groups of the layers whose arrays matter.
_GROUP_NAMES = {"Conv2D": "conv2d", "Dense": "dense", "SimpleRNN": "simple_rnn", "Normalization": "normalization"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class StoredArray:
    """An array in an HDF5 file; `numpy.asarray` reads it as float32.

    Attributes:
      path: in the file.
      shape: as the file states it; what it states is checked when it is read.
    """

    path: str
    shape: tuple[int, ...]
    _dataset: Any
    _file_size: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The values.

        Raises:
          UserError: it lies elsewhere, is compressed, is larger than the file, or holds no finite numbers.
        """
        dataset = self._dataset
        if dataset.dtype.kind != "f" or dataset.dtype.itemsize > 8:
            raise UserError(f"{self.path} is of type {dataset.dtype}; numbers of 16, 32 or 64 bits are needed")
        if dataset.is_virtual or dataset.external:
            raise UserError(f"{self.path} lies in another file; save the model again, in one")
        if dataset.id.get_create_plist().get_nfilters():
            raise UserError(f"{self.path} is compressed, which Keras does not do; save the model by Keras")
        stored = dataset.id.get_storage_size()
        if not dataset.nbytes <= stored <= self._file_size:
            raise UserError(
                f"{self.path} of shape {list(self.shape)} needs {dataset.nbytes:,} bytes; {stored:,} are stored, in a "
                f"file of {self._file_size:,}"
            )
        with np.errstate(over="ignore"):
            values = np.asarray(dataset[()], np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"{self.path} holds values that are not finite in float32")
        return values if dtype is None else values.astype(dtype)


def read_keras(
    path: Path, class_names: Sequence[str] | None = None, *, model: str = "", say: Say = lambda text: None
) -> Bundle:
    """A Keras file of a classic network as a bundle.

    Keras' examples divide pixels by 255 before the network, of which a file says nothing: where it has no Rescaling or
    Normalization layer, the bundle's mean is 0 and its deviation 1. A softmax at the end is left out: the bundle gives
    logits.

    Args:
      path: `.h5` (whole model or weights), `.weights.h5` or `.keras`; told apart by what is in it.
      class_names: of the outputs, in order; None: the numbers from 0.
      model: `rnn28`, `irnn28`, `rnn` or `irnn`, where a file holds weights only and so does not tell tanh from ReLU.
      say: hears what was assumed.

    Raises:
      UserError: h5py is missing; the file is damaged, is another network, or has another number of classes.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        with _opened(path) as (file, size, description):
            network = recognised(_with_arrays(file, size, description), model)
            bundle = _bundle(network, class_names)
            params = _params(bundle, network)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    # h5py raises any of them for a damaged file; deep nesting in JSON is the last.
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, RecursionError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is damaged, or no file of Keras ({first_line(error)})") from error
    for text in network.assumed:
        say(f"{path} does not tell; assumed: {text}")
    return replace(bundle, params=params)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, int, Any]]:
    """The HDF5 file, its size in bytes, and the description of the model; None: it has none."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise UserError("Keras files need h5py: pip install 'pcls[keras-files]'") from error
    with path.open("rb") as raw:
        magic = raw.read(len(HDF5_MAGIC))
        raw.seek(0)
        if magic.startswith(ZIP_MAGIC):
            with zipfile.ZipFile(raw) as archive:
                description = json.loads(_member(archive, CONFIG, MAX_CONFIG_BYTES))
                weights = _member(archive, WEIGHTS, MAX_WEIGHTS_BYTES)
            with h5py.File(io.BytesIO(weights), "r") as file:
                yield file, len(weights), description
        elif magic == HDF5_MAGIC:
            size = path.stat().st_size
            with h5py.File(path, "r") as file:
                text = _attribute(file, "model_config")
                yield file, size, None if text is None else json.loads(text)
        else:
            raise UserError("is neither HDF5 (.h5, .weights.h5) nor a .keras archive")


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise UserError(f"holds no {name}; a .keras file of Keras 3 has it") from None
    if info.file_size > most:
        raise UserError(f"its {name} is said to be {info.file_size:,} bytes; {most:,} at most are read")
    try:
        with archive.open(info) as member:
            return _read_whole(member, info.file_size)
    except (zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"its {name} cannot be unpacked ({first_line(error)})") from error


def _read_whole(member: IO[bytes], size: int) -> bytes:
    # zipfile stops at the size that the archive states, and compares the checksum there.
    data = member.read(size)
    if len(data) != size:
        raise UserError(f"is cut off: {len(data):,} of {size:,} bytes are there")
    return data


def _attribute(group: Any, name: str) -> Any:
    """Of a group; None: it has none of that name."""
    if name not in group.attrs:
        return None
    stated = group.attrs.get_id(name)
    if math.prod(stated.shape) * stated.dtype.itemsize > MAX_CONFIG_BYTES:
        raise UserError(f"its attribute {name} is larger than {MAX_CONFIG_BYTES:,} bytes")
    value = group.attrs[name]
    return value.decode() if isinstance(value, bytes) else value


def _with_arrays(file: Any, size: int, description: Any) -> list[Layer]:
    """The layers of a file with their arrays; those that have some, where nothing describes the others."""
    # Whole models have a group for the weights; files of weights are that group.
    root = _child(file, "model_weights") if "model_weights" in file else file
    by_name = _attribute(root, "layer_names")
    found = next((name for name in LAYER_GROUPS if name in root), None)
    if by_name is None and found is None:
        raise UserError("holds no layers, as Keras writes them")
    layers = None if description is None else layers_of(description)
    if by_name is not None:
        return _legacy(root, size, [_as_text(name) for name in by_name], layers)
    assert found is not None
    return _keras3(_child(root, found), size, layers)


def _legacy(root: Any, size: int, names: Sequence[str], layers: list[Layer] | None) -> list[Layer]:
    """Each layer's group lists the paths of its arrays in order."""

    def arrays(name: str) -> list[StoredArray]:
        group = _child(root, name)
        weights = _attribute(group, "weight_names")
        return [_array(group, _as_text(path), size) for path in (() if weights is None else weights)]

    if layers is None:
        stored = [(name, arrays(name)) for name in names]
        return [Layer(_kind_of(name, found), name, None, found) for name, found in stored if found]
    return [replace(layer, arrays=arrays(layer.name) if layer.name in names else ()) for layer in layers]


def _keras3(groups: Any, size: int, layers: list[Layer] | None) -> list[Layer]:
    """The group of a layer is called after its kind, and counted: `dense`, `dense_1`."""
    if layers is None:
        names = sorted(groups, key=_place)
        stored = [(name, _numbered(_child(groups, name), size)) for name in names]
        # What leaves no array may still change the numbers, as Rescaling does.
        kept = [(name, found) for name, found in stored if found or _stem(name) not in _ASSUMED]
        return [Layer(_kind_of(name, found), name, None, found) for name, found in kept]
    seen: dict[str, int] = {}
    with_arrays = []
    for layer in layers:
        place = seen.get(layer.kind, 0)
        seen[layer.kind] = place + 1
        name = _GROUP_NAMES.get(layer.kind, "")
        group = f"{name}_{place}" if place else name
        if name and group in groups:
            layer = replace(layer, arrays=_numbered(_child(groups, group), size))
        with_arrays.append(layer)
    return with_arrays


def _numbered(group: Any, size: int) -> list[StoredArray]:
    """The arrays `vars/0`, `vars/1` ... of a layer, or of its cell."""
    if "cell" in group:
        group = _child(group, "cell")
    if "vars" not in group:
        return []
    arrays = _child(group, "vars")
    return [_array(arrays, str(number), size) for number in range(len(arrays))]


# Layers without arrays that the networks have where nothing is said.
_ASSUMED = ("input_layer", "reshape", "max_pooling2d", "flatten", "dropout", "activation", "re_lu", "softmax")
_FRONT, _REST = ("rescaling", "normalization"), ("conv2d", "simple_rnn", "dense")


def _stem(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _place(name: str) -> tuple[int, int, str]:
    """Where a group belongs that only its name tells of: unknown kinds first, where they are refused."""
    stem = _stem(name)
    order = (*_FRONT, *_REST)
    number = name[len(stem) + 1 :]
    return order.index(stem) if stem in order else -1, int(number or 0), name


def _kind_of(name: str, arrays: Sequence[StoredArray]) -> str:
    """Of a layer that nothing describes: by its name, or else by the axes of its arrays."""
    kinds = {group: kind for kind, group in _GROUP_NAMES.items()} | {"rescaling": "Rescaling"}
    if _stem(name) in kinds:
        return kinds[_stem(name)]
    axes = [len(array.shape) for array in arrays]
    return next((kind for kind, parts in ARRAYS.items() if list(parts.values()) == axes), _stem(name))


def _child(group: Any, path: str) -> Any:
    """What lies at a path; only what is in this file, and not by another name."""
    import h5py

    for part in path.split("/"):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            raise UserError(f"{path} is missing in {getattr(group, 'name', 'it')}; the file is not whole")
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"{path} is a link to elsewhere, which is not followed; save the model by Keras")
        group = group[part]
    return group


def _array(group: Any, path: str, size: int) -> StoredArray:
    import h5py

    dataset = _child(group, path)
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise UserError(f"{path} in {group.name} is no array")
    return StoredArray(str(dataset.name), dataset.shape, dataset, size)


def _as_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _bundle(network: Network, class_names: Sequence[str] | None) -> Bundle:
    """Without the arrays."""
    names = tuple(map(str, range(network.classes))) if class_names is None else tuple(class_names)
    if len(names) != network.classes:
        raise UserError(f"has {network.classes:,} outputs, and {len(names):,} classes are named")
    return Bundle(
        model=network.model,
        class_names=names,
        preprocessing=network.preprocessing,
        precision="float32",
        params={},
        stats={},
        metrics={},
        options=network.options,
    )


def _params(bundle: Bundle, network: Network) -> dict[str, np.ndarray]:
    """The arrays by path; each shape is compared before anything is read."""
    # Keras' axes are those of flax, and both flatten height, width, channels in this order.
    needed = bundle.definition().params
    assert needed.keys() == network.arrays.keys()
    arrays = {path: array_of(layer, part) for path, (layer, part) in network.arrays.items()}
    for path, (layer, part) in network.arrays.items():
        if arrays[path].shape != needed[path].shape:
            sizes = " x ".join(map(str, bundle.preprocessing.shape))
            raise UserError(
                f"{layer} has a {part} of shape {list(arrays[path].shape)}; {list(needed[path].shape)} is needed for "
                f"images of {sizes}"
            )
    return {path: np.asarray(arrays[path]) for path in needed}
