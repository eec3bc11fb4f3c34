"""Weights of timm and torchvision to pcls's arrays and back: other names, other order of axes, the same numbers."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from pcls.errors import UserError
from pcls.nn.module import HEAD_BIAS, HEAD_KERNEL, Arrays, ModelDef
from pcls.pretrained.names.rules import Names
from pcls.pretrained.tensors import StoredTensor

# Counts of batches, which only a mean over all of them needs.
IGNORED = "num_batches_tracked"
# Every network's last layer.
HEAD_PATHS = (HEAD_KERNEL, HEAD_BIAS)
# Faults that an error lists; a wrong architecture has hundreds.
SHOWN = 8


def import_weights(
    model: ModelDef, names: Names, tensors: Mapping[str, np.ndarray | StoredTensor]
) -> tuple[Arrays, Arrays]:
    """Parameters and statistics of a model from another library's tensors.

    Args:
      model: of the same architecture.
      names: the library's for it.
      tensors: key to array, of any float type; those in a file are read one after the other.

    Raises:
      UserError: keys are missing or left over, or shapes differ; it lists them as a diff.
    """
    wanted = {names.key(path): (path, leaf) for path, leaf in {**model.params, **model.stats}.items()}
    found = {key: tensor for key, tensor in tensors.items() if not key.endswith(IGNORED)}
    _check(
        {key: foreign_shape(leaf.shape, names.is_pointwise(key)) for key, (_, leaf) in wanted.items()},
        {key: tensor.shape for key, tensor in found.items()},
    )
    arrays = {path: _ours(found[key], leaf.shape) for key, (path, leaf) in wanted.items()}
    return {path: arrays[path] for path in model.params}, {path: arrays[path] for path in model.stats}


def export_weights(params: Arrays, stats: Arrays, names: Names) -> dict[str, np.ndarray]:
    """The other library's tensors, float32; `import_weights` gives the arguments back, bit for bit."""
    tensors = {}
    for path, array in {**params, **stats}.items():
        key = names.key(path)
        array = np.asarray(array)
        shape = foreign_shape(array.shape, names.is_pointwise(key))
        tensors[key] = np.ascontiguousarray(_transposed(array, back=True).reshape(shape))
    return tensors


def foreign_shape(shape: tuple[int, ...], pointwise: bool = False) -> tuple[int, ...]:
    """Of a tensor whose shape here is known: outputs, inputs, height, width; 1, 1 at the end where it is pointwise."""
    match shape:
        case (height, width, inputs, outputs):
            shape = outputs, inputs, height, width
        case (inputs, outputs):
            shape = outputs, inputs
    return (*shape, 1, 1) if pointwise else shape


def _ours(tensor: np.ndarray | StoredTensor, shape: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(_transposed(np.asarray(tensor)).reshape(shape), np.float32)


def _transposed(array: np.ndarray, *, back: bool = False) -> np.ndarray:
    """Outputs, inputs, height, width to height, width, inputs, outputs; or back."""
    match array.ndim:
        case 4:
            return array.transpose(3, 2, 0, 1) if back else array.transpose(2, 3, 1, 0)
        case 2:
            return array.T
    return array


def _check(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    faults = [
        f"- {key} {list(shape)}" if key not in found else f"! {key} {list(found[key])}, needed {list(shape)}"
        for key, shape in wanted.items()
        if found.get(key) != shape
    ]
    faults += [f"+ {key} {list(shape)}" for key, shape in found.items() if key not in wanted]
    if faults:
        more = f"; and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
        raise UserError(
            f"{len(faults):,} of {len(wanted):,} tensors do not fit (- missing, + left over, ! another shape): "
            f"{'; '.join(faults[:SHOWN])}{more}"
        )


def with_channels(kernel: jax.typing.ArrayLike, channels: int) -> np.ndarray:
    """A first kernel [height, width, inputs, outputs] for another number of channels, its response kept.

    For one channel the kernels are added up, so that a grey picture answers as its three equal channels did; for more
    they are repeated, scaled by how many there were over how many there are.
    """
    kernel = np.asarray(kernel)
    inputs = kernel.shape[2]
    if channels == inputs:
        return kernel
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    return kernel[:, :, np.arange(channels) % inputs] * np.float32(inputs / channels)
