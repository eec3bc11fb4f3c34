"""Post-training quantization: the ranges of a model's inputs from some records, its weights from themselves.

BatchNorm is folded without being touched. A kernel has a scale for each output, and folding multiplies each output by a
number: the integers stay the same, and the scale takes the number in. So a quantized bundle keeps the layers of its
model, and can be exported and fine-tuned as any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pcls.data.augment import normalise
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import Preprocessing
from pcls.nn.module import Arrays, ModelDef
from pcls.nn.quantized import Bits, Product, Quantization, quantize_weights, takes_integers
from pcls.pretrained.bundle import Bundle


@dataclass(frozen=True)
class Watching:
    """A model's own arithmetic, which notes how large the inputs of its products are.

    Attributes:
      seen: path of a layer to the largest magnitude of its inputs; filled while the model is traced.
    """

    seen: dict[str, Array] = field(default_factory=dict)

    def weights(self, params: Arrays) -> Arrays:
        """As they are."""
        return params

    def product(self, path: str, own: Product) -> Product:
        """The layer's own."""

        def product(inputs: Array, kernel: Array, *rest: Any, **settings: Any) -> Array:
            if takes_integers(settings):
                self.seen[path] = jnp.max(jnp.abs(inputs.astype(jnp.float32)))
            return own(inputs, kernel, *rest, **settings)

        return product


def input_ranges(
    model: ModelDef,
    params: Arrays,
    stats: Arrays,
    batches: Iterable[Batch],
    preprocessing: Preprocessing,
    precision: str,
) -> dict[str, float]:
    """The largest magnitude of the inputs of every convolution and dense layer, but of grouped convolutions.

    It is the mean of the batches' largest: the largest of all would be that of the strangest record, and all others
    would share the steps that it leaves.

    Args:
      model: of the registry.
      params, stats: by path.
      batches: of records, as evaluation sees them.
      preprocessing, precision: of the run.
    """

    def step(params: Arrays, stats: Arrays, batch: Batch) -> dict[str, Array]:
        watching = Watching()
        images = normalise(batch.image, preprocessing, jnp.dtype(precision), batch.length)
        replace(model, predicting=watching).apply(params, stats, images, lengths=batch.length)
        return watching.seen

    compiled = jax.jit(step)
    found = [jax.device_get(compiled(params, stats, batch)) for batch in batches]
    return {path: float(np.mean([seen[path] for seen in found])) for path in found[0]}


def quantize(params: Mapping[str, Any], ranges: Mapping[str, float], bits: Bits) -> Quantization:
    """A model's weights, and the ranges of its inputs; without these its inputs stay as they are."""
    return Quantization(bits, quantize_weights(params, bits), dict(ranges))


def floats(params: Mapping[str, Any], quantization: Quantization) -> dict[str, Any]:
    """Parameters with what the integers stand for in place of the kernels."""
    return dict(params) | {path: array.floats() for path, array in quantization.weights.items()}


def with_integers(bundle: Bundle, bits: Bits, ranges: Mapping[str, float]) -> Bundle:
    """A bundle with its weights quantized, and its inputs where their ranges are given."""
    quantization = quantize(bundle.params, ranges, bits)
    return replace(bundle, params=floats(bundle.params, quantization), quantization=quantization)
