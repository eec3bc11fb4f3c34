"""Products of small integers: weights as int8 or int4 with a scale for each output, inputs as int8 with one scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from pcls.errors import UserError
from pcls.nn.conv import convolve_valid
from pcls.nn.convolve import Pads, chosen_form, convolve, pads_of, patches_of
from pcls.nn.platform import target_platform

# What a layer multiplies its inputs by: `(inputs, kernel, ...)`.
Product = Callable[..., Array]

Bits = Literal[8, 4]
# Both ways: the kernel with the other sign, as a BatchNorm may turn it, has the same numbers with the other sign.
LARGEST: Mapping[int, int] = {8: 127, 4: 7}
INPUT_BITS = 8

# The last part of the paths of parameters that inputs are multiplied by, outputs on their last axis: of convolutions,
# dense layers and cells; of the LRU also its real and imaginary parts. Vectors of a few numbers are not worth it.
_KERNELS = frozenset(("kernel", "recurrent", "b_re", "b_im", "c_re", "c_im", "d"))
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def is_kernel(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is one that is quantized."""
    return len(shape) >= 2 and path.rpartition("/")[2] in _KERNELS


@dataclass(frozen=True)
class QuantizedArray:
    """An array of small integers; what it stands for is `values * scales`.

    Attributes:
      values: [..., outputs] int8.
      scales: [outputs] float32.
    """

    values: np.ndarray
    scales: np.ndarray

    def floats(self) -> np.ndarray:
        """[..., outputs] float32."""
        return self.values * self.scales


@dataclass(frozen=True)
class Quantization:
    """How a model's numbers were made small.

    Attributes:
      bits: of the weights, 8 or 4.
      weights: path to array, of all kernels.
      inputs: path of a layer to the largest magnitude that its inputs keep as int8; empty: they stay as they are.
    """

    bits: Bits
    weights: Mapping[str, QuantizedArray]
    inputs: Mapping[str, float]

    def __str__(self) -> str:
        if not self.inputs:
            return f"int{self.bits} weights"
        return f"int{self.bits} weights, int{INPUT_BITS} inputs of {len(self.inputs)} layers"


class Arithmetic(Protocol):
    """What a model computes with instead of its own numbers."""

    def weights(self, params: dict[str, Any]) -> dict[str, Any]:
        """Parameters by path, as the layers are to see them."""

    def product(self, path: str, own: Product) -> Product:
        """What a layer multiplies by, given what it would by itself."""


def quantizer() -> ModuleType:
    """qwix; UserError where it is not installed."""
    try:
        import qwix
    except ImportError as error:
        raise UserError("quantized training and int8 inputs need qwix: pip install 'pcls[compress]'") from error
    return qwix


def quantized(kernel: Array, bits: Bits) -> Any:
    """A kernel [..., outputs] as qwix's array, with a scale for each output: its largest magnitude is kept.

    int4 too is kept in int8, which every device multiplies.
    """
    kept = quantizer().quantize(kernel, jnp.int8 if bits == 8 else jnp.int4, channelwise_axes=[kernel.ndim - 1])
    values = jnp.maximum(kept.qvalue.astype(jnp.int8), -LARGEST[bits])
    return kept.replace(qvalue=values, qtype=jnp.dtype(jnp.int8))


def quantize_weights(params: Mapping[str, Any], bits: Bits) -> dict[str, QuantizedArray]:
    """Every kernel of a model's parameters."""
    found = {}
    for path, kernel in params.items():
        if is_kernel(path, kernel.shape):
            kept = quantized(jnp.asarray(kernel), bits)
            found[path] = QuantizedArray(np.asarray(kept.qvalue), np.asarray(kept.scale).reshape(-1))
    return found


def rounded(inputs: Array, largest: Array | float) -> Array:
    """Inputs in steps of int8 between +-largest, each the multiple of a step that is nearest; their own type."""
    step = input_step(largest)
    return (_whole(inputs, step) * step).astype(inputs.dtype)


def input_step(largest: Array | float) -> Array:
    """The distance of two int8 inputs; 1 where nothing but zeros was seen."""
    size = jnp.asarray(largest, jnp.float32)
    return jnp.where(size > 0, size, LARGEST[INPUT_BITS]) / LARGEST[INPUT_BITS]


def _whole(inputs: Array, step: Array) -> Array:
    most = LARGEST[INPUT_BITS]
    return jnp.clip(jnp.round(inputs.astype(jnp.float32) / step), -most, most)


@dataclass(frozen=True)
class Integers:
    """A quantized model as it predicts: layers that keep a range of inputs multiply int8 by int8.

    Of the parameters, the kernels of those layers are their integers.
    """

    quantization: Quantization

    def __post_init__(self) -> None:
        quantizer()

    def weights(self, params: dict[str, Any]) -> dict[str, Any]:
        """As they are."""
        return params

    def product(self, path: str, own: Product) -> Product:
        """In integers, summed up as int32; a layer whose inputs stay as they are has its own."""
        largest = self.quantization.inputs.get(path)
        if largest is None:
            return own
        qwix, step = quantizer(), input_step(largest)
        scales = jnp.asarray(self.quantization.weights[f"{path}/kernel"].scales)

        def product(inputs: Array, kernel: Array, *rest: Any, **settings: Any) -> Array:
            def on_last(scale: Array, axes: int) -> Array:
                return scale.reshape((1,) * (axes - 1) + (-1,))

            whole = _whole(inputs, step)
            if own in (convolve, convolve_valid) and target_platform() == "gpu":
                # XLA for GPUs lacks the convolution of int8 to int32. In floats the numbers are the same: products of
                # such integers are exact in every type, and their sums are float32's.
                return (own(whole.astype(inputs.dtype), kernel, **settings) * (step * scales)).astype(inputs.dtype)
            x = qwix.QArray(whole.astype(jnp.int8), on_last(step, inputs.ndim))
            w = qwix.QArray(kernel.astype(jnp.int8), on_last(scales, kernel.ndim))
            if own is convolve:
                y = _convolution(x, w, settings["stride"], settings["pads"], settings["groups"])
            elif own is convolve_valid:
                y = _convolution(x, w, 1, ((0, 0), (0, 0)), 1)
            else:
                y = qwix.dot_general(x, w, *rest)
            return y.astype(inputs.dtype)

        return product


def _convolution(x: Any, kernel: Any, stride: int, pads: Pads | Literal["SAME"], groups: int) -> Array:
    """In the form that is fastest where it is compiled for, as `convolve` chooses it for floats."""
    qwix, zeros = quantizer(), pads_of(x.shape, kernel.shape, stride, pads)
    form = chosen_form(x.shape, kernel.shape, stride, zeros, groups)
    if form == "pointwise":
        return qwix.dot_general(x[:, ::stride, ::stride], kernel[0, 0], (((3,), (0,)), ((), ())))
    if form == "patches":
        values = patches_of(x.qvalue, kernel.shape[0], stride, zeros)
        rows = qwix.QArray(kernel.qvalue.reshape(-1, kernel.shape[-1]), kernel.scale.reshape(1, -1))
        return qwix.dot_general(qwix.QArray(values, x.scale), rows, (((3,), (0,)), ((), ())))
    return qwix.conv_general_dilated(
        x, kernel, (stride, stride), zeros, dimension_numbers=_LAYOUT, feature_group_count=groups
    )


@dataclass(frozen=True)
class Rounding:
    """A model that is trained to be quantized: it computes with rounded numbers, and learns as if they were not.

    The largest magnitudes are those of each kernel and of each layer's inputs in the batch. Recurrent kernels are
    rounded, and the inputs of recurrences are not.

    Attributes:
      bits: of the weights.
      inputs: whether inputs of convolutions and dense layers are rounded too.

    Source: Jacob et al. 2018; the gradient goes straight through the rounding, Bengio et al. 2013.
    """

    bits: Bits
    inputs: bool

    def weights(self, params: dict[str, Any]) -> dict[str, Any]:
        """Kernels rounded."""

        def near(kernel: Array) -> Array:
            return quantizer().dequantize(quantized(kernel, self.bits))

        return {
            path: straight_through(near, kernel) if is_kernel(path, kernel.shape) else kernel
            for path, kernel in params.items()
        }

    def product(self, path: str, own: Product) -> Product:
        """Of rounded inputs."""

        def near(inputs: Array) -> Array:
            return rounded(inputs, jnp.max(jnp.abs(inputs.astype(jnp.float32))))

        def product(inputs: Array, kernel: Array, *rest: Any, **settings: Any) -> Array:
            keeps = not self.inputs or not takes_integers(settings)
            return own(inputs if keeps else straight_through(near, inputs), kernel, *rest, **settings)

        return product


def takes_integers(settings: Mapping[str, Any]) -> bool:
    """Whether a product of such settings is computed in integers: grouped and depthwise convolutions are not.

    They are a small part of a network's arithmetic; of them the weights alone are quantized.
    """
    return settings.get("groups", 1) == 1


def straight_through(near: Callable[[Array], Array], array: Array) -> Array:
    """What `near` makes of an array, with the gradient of the array itself."""
    return array + lax.stop_gradient(near(array) - array)


ROUNDINGS: Mapping[str, Rounding | None] = {
    "none": None,
    "int8": Rounding(8, inputs=True),
    "int8_weights": Rounding(8, inputs=False),
    "int4_weights": Rounding(4, inputs=False),
}


def rounding(name: str) -> Rounding | None:
    """What training computes with, by `train.quantize`; UserError where that needs a package which is not installed."""
    if ROUNDINGS[name] is not None:
        quantizer()
    return ROUNDINGS[name]


def integers_of(params: Mapping[str, Any], quantization: Quantization) -> dict[str, Any]:
    """Parameters as `Integers` takes them."""
    kernels = {f"{path}/kernel" for path in quantization.inputs}
    return {
        path: jax.device_put(quantization.weights[path].values) if path in kernels else array
        for path, array in params.items()
    }
