"""Quantized weights in a bundle's files: small integers as tensors of their own, with a scale for each output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pcls.nn.module import ModelDef
from pcls.nn.quantized import LARGEST, Quantization, QuantizedArray, is_kernel

PARAMS, SCALES = "params/", "scales/"


def to_tensors(quantization: Quantization) -> dict[str, np.ndarray]:
    """Name to tensor: `params/PATH` int8, of int4 two in a byte; `scales/PATH` float32."""
    tensors = {}
    for path, array in quantization.weights.items():
        tensors[PARAMS + path] = array.values if quantization.bits == 8 else packed(array.values)
        tensors[SCALES + path] = array.scales
    return tensors


def expected_tensors(definition: ModelDef, bits: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What `to_tensors` gives of a model."""
    tensors = {}
    for path, leaf in definition.params.items():
        if is_kernel(path, leaf.shape):
            integers = jax.ShapeDtypeStruct(leaf.shape, np.int8)
            halves = jax.ShapeDtypeStruct(((leaf.size + 1) // 2,), np.uint8)
            tensors[PARAMS + path] = integers if bits == 8 else halves
            tensors[SCALES + path] = jax.ShapeDtypeStruct(leaf.shape[-1:], np.float32)
    return tensors


def from_tensors(facts: Quantization, definition: ModelDef, tensors: Mapping[str, np.ndarray]) -> Quantization:
    """Reads `to_tensors` back, whose shapes and types were checked; ValueError where numbers cannot be right."""
    weights = {}
    for path, leaf in definition.params.items():
        if is_kernel(path, leaf.shape):
            scales, values = tensors[SCALES + path], tensors[PARAMS + path]
            if not (np.isfinite(scales).all() and (scales > 0).all()):
                raise ValueError(f"{SCALES}{path} holds a number that is not finite and above 0")
            whole = values if facts.bits == 8 else unpacked(values, leaf.shape)
            weights[path] = QuantizedArray(whole, scales)
    for path in facts.inputs:
        if f"{path}/kernel" not in weights:
            raise ValueError(f"a range of inputs is given for {path}, which is no layer of {len(weights)} kernels")
    return Quantization(facts.bits, weights, facts.inputs)


def to_json(quantization: Quantization) -> dict[str, Any]:
    """What model.json says of it."""
    return {"bits": quantization.bits, "inputs": dict(quantization.inputs)}


def from_json(values: Mapping[str, Any]) -> Quantization:
    """Reads `to_json` back, without the weights; ValueError, TypeError or KeyError where it is not that."""
    bits, inputs = values["bits"], {str(path): float(size) for path, size in values["inputs"].items()}
    if bits not in LARGEST or isinstance(bits, bool):
        raise ValueError(f"weights of {bits!r} bits")
    if not all(math.isfinite(size) and size >= 0 for size in inputs.values()):
        raise ValueError("a range of inputs that is not finite, or below 0")
    return Quantization(bits, {}, inputs)


def packed(values: np.ndarray) -> np.ndarray:
    """Numbers of -8 to 7, two in a byte, the first in its lower half: [(size + 1) // 2] uint8."""
    halves = np.zeros(values.size + values.size % 2, np.uint8)
    halves[: values.size] = values.reshape(-1).astype(np.uint8) & 15
    return halves[::2] | halves[1::2] << 4


def unpacked(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Reads `packed` back as int8."""
    halves = np.stack([packed & 15, packed >> 4], 1).reshape(-1)[: math.prod(shape)].astype(np.int8)
    return ((halves ^ 8) - 8).reshape(shape)
