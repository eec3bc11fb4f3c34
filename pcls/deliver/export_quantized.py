"""A quantized model's integers in a program that is exported: marked in it, and with BatchNorm folded in.

What a layer rounds and what a kernel's integers stand for could be read from the arithmetic they are computed by. Marks
say it outright: primitives of their own, which a translation that has a word for them writes as such (`export_onnx`),
or composites of StableHLO (`export_litert`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive

from pcls.nn.module import Arrays
from pcls.nn.quantized import Integers, Product, Quantization, QuantizedArray, input_step, rounded

# Of inputs to the nearest of the int8 multiples of a step: `largest` as `rounded` has it.
ROUND = "round_to_int8"
# Of a kernel's integers [..., outputs] and scales [outputs] to what they stand for.
STAND_FOR = "stand_for"
# What LiteRT's converter calls either.
FAKE_QUANT = "quant.fake_quant"

# In steps of what 1 stands for in sums of products of integers.
LARGEST_BIAS = 2**30

_round, _stand_for = Primitive(ROUND), Primitive(STAND_FOR)
_round.def_impl(rounded)
_round.def_abstract_eval(lambda inputs, *, largest: inputs)
_stand_for.def_impl(lambda values, scales: values * scales)
_stand_for.def_abstract_eval(lambda values, scales: ShapedArray(values.shape, scales.dtype))


def round_to_int8(inputs: Array, largest: float) -> Array:
    """What `rounded` gives, marked."""
    return _round.bind(inputs, largest=largest)


def stand_for(values: Any, scales: Any) -> Array:
    """`values * scales`, [..., outputs] int8 by [outputs] float32, marked."""
    return _stand_for.bind(values, scales)


@dataclass(frozen=True)
class Marked:
    """A quantized model whose roundings and kernels are marked in its jaxpr; it computes with floats."""

    quantization: Quantization

    def weights(self, params: Arrays) -> Arrays:
        """Every kernel is what its integers stand for."""
        kernels = self.quantization.weights.items()
        return params | {path: stand_for(array.values, array.scales) for path, array in kernels}

    def product(self, path: str, own: Product) -> Product:
        """Of rounded inputs, where their range is known."""
        largest = self.quantization.inputs.get(path)
        return own if largest is None else _rounding(own, partial(round_to_int8, largest=largest))


@dataclass(frozen=True)
class Stored:
    """A quantized model whose program holds the kernels' integers, and computes with them as `Integers` does."""

    quantization: Quantization

    def weights(self, params: Arrays) -> Arrays:
        """Kernels as products of integers take them, and the others as what their integers stand for."""
        multiplied = {f"{path}/kernel" for path in self.quantization.inputs}
        kernels = self.quantization.weights.items()
        integers = {path: jnp.asarray(array.values) for path, array in kernels}
        floats = {path: integers[path] * array.scales for path, array in kernels if path not in multiplied}
        return params | integers | floats

    def product(self, path: str, own: Product) -> Product:
        """In integers, where the range of inputs is known."""
        return Integers(self.quantization).product(path, own) if path in self.quantization.inputs else own


@dataclass(frozen=True)
class Told:
    """A quantized model that says in StableHLO what is rounded, by a name that LiteRT's converter knows.

    Who does not know it finds the arithmetic behind it.
    """

    quantization: Quantization

    def weights(self, params: Arrays) -> Arrays:
        """Every kernel is what its integers stand for."""
        kernels = self.quantization.weights.items()
        return params | {path: _told_kernel(array) for path, array in kernels}

    def product(self, path: str, own: Product) -> Product:
        """Of rounded inputs, where their range is known."""
        largest = self.quantization.inputs.get(path)
        return own if largest is None else _rounding(own, partial(_told_inputs, largest=largest))


def _told_inputs(inputs: Array, largest: float) -> Array:
    return _told(partial(rounded, largest=largest), inputs, step_of(largest).reshape(1))


def _told_kernel(array: QuantizedArray) -> Array:
    kernel = array.values * array.scales
    return _told(lambda kernel: kernel, kernel, array.scales, quantization_dimension=np.int32(kernel.ndim - 1))


def _told(function: Callable[[Array], Array], values: Any, steps: np.ndarray, **more: Any) -> Array:
    """What a function rounds to multiples of steps, or leaves because it is such already."""
    told = {"scale": steps, "zero_point": np.zeros(steps.shape, np.int64), "dtype": "i8", "narrow_range": True}
    return jax.lax.composite(lambda values, **_: function(values), FAKE_QUANT)(values, **told, **more)


def _rounding(own: Product, round_: Callable[[Array], Array]) -> Product:
    """The product of inputs that are rounded before."""

    def product(inputs: Array, kernel: Array, *rest: Any, **settings: Any) -> Array:
        return own(round_(inputs), kernel, *rest, **settings)

    return product


def step_of(largest: float) -> np.ndarray:
    """The distance of two int8 inputs, known while a program is traced."""
    with jax.ensure_compile_time_eval():
        return np.asarray(input_step(largest))


def with_gains(quantization: Quantization, params: Mapping[str, Any]) -> Quantization:
    """The same integers for kernels whose outputs were multiplied by numbers, as folding BatchNorm does.

    Scales take the numbers in; they stay above 0: where one is negative, the integers have the other sign. Beside a
    bias that is huge, an output of almost nothing has a larger scale and smaller integers. onnxruntime adds biases as
    int32, in steps of the scales of inputs and kernel together, and does not look whether they fit.

    Args:
      quantization: of the kernels before.
      params: by path, kernels and biases after.
    """
    weights = {}
    for path, array in quantization.weights.items():
        layer = path.rpartition("/")[0]
        least = np.zeros_like(array.scales)
        if layer in quantization.inputs and f"{layer}/bias" in params:
            least = np.abs(params[f"{layer}/bias"]) / (step_of(quantization.inputs[layer]) * LARGEST_BIAS)
        weights[path] = _with_gains(array, np.asarray(params[path]), least)
    return Quantization(quantization.bits, weights, quantization.inputs)


def _with_gains(array: QuantizedArray, kernel: np.ndarray, least: np.ndarray) -> QuantizedArray:
    """Scales are at least so large, [outputs]."""
    values = array.values.reshape(-1, array.scales.size)
    # By the largest of each output, whose quotient rounds least.
    places = np.abs(values.astype(int)).argmax(0), np.arange(array.scales.size)
    whole, number = values[places], kernel.reshape(values.shape)[places]
    gained = np.divide(number, whole, out=np.zeros_like(number), where=whole != 0)
    scales = np.maximum(np.abs(gained), least)
    # Of zeros any scale would do.
    scales = np.where(scales == 0, 1, scales).astype(np.float32)
    return QuantizedArray(np.rint(array.values * (gained / scales)).astype(np.int8), scales)
