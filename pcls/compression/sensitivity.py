"""Which layer suffers: the error of the logits with one kernel quantized and all others as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pcls.data.augment import normalise
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import Preprocessing
from pcls.nn.module import Arrays, ModelDef
from pcls.nn.quantized import Product, Quantization, rounded


@dataclass(frozen=True)
class Sensitivity:
    """What one quantized kernel does.

    Attributes:
      path: of the kernel.
      inputs: whether the inputs of its layer were rounded too.
      error: of the logits, as a share: the root of their summed squared changes over that of their squares.
      changed: records whose most probable class is another one.
      lost: records that were right and are wrong, less those that were wrong and are right.
      records: that were looked at.
    """

    path: str
    inputs: bool
    error: float
    changed: int
    lost: int
    records: int


@dataclass(frozen=True)
class _OneRounded:
    """Rounds the inputs of layers by ranges that may be traced, so that one program does for all; 0: not this one."""

    ranges: Mapping[str, Array]

    def weights(self, params: Arrays) -> Arrays:
        """As they are."""
        return params

    def product(self, path: str, own: Product) -> Product:
        """Of inputs that are rounded, or not."""
        if path not in self.ranges:
            return own
        largest = self.ranges[path]

        def product(inputs: Array, kernel: Array, *rest: Any, **settings: Any) -> Array:
            return own(jnp.where(largest > 0, rounded(inputs, largest), inputs), kernel, *rest, **settings)

        return product


def sensitivities(
    model: ModelDef,
    params: Arrays,
    stats: Arrays,
    quantization: Quantization,
    batches: Sequence[Batch],
    preprocessing: Preprocessing,
    precision: str,
    say: Callable[[str], None],
) -> list[Sensitivity]:
    """Each kernel by itself, the worst first. Every record is seen once more for each of them.

    Args:
      model: of the registry.
      params, stats: by path, before quantization.
      quantization: of all.
      batches: of records, as evaluation sees them.
      preprocessing, precision: of the run.
      say: hears what is being done.
    """

    def step(params: Arrays, stats: Arrays, ranges: Arrays, batch: Batch) -> Array:
        images = normalise(batch.image, preprocessing, jnp.dtype(precision), batch.length)
        one = replace(model, predicting=_OneRounded(ranges))
        return one.apply(params, stats, images, lengths=batch.length)[0].astype(jnp.float32)

    compiled = jax.jit(step)
    counted = [np.asarray(batch.weight) > 0 for batch in batches]
    labels = np.concatenate([np.asarray(batch.label)[rows] for batch, rows in zip(batches, counted, strict=True)])
    params, stats = jax.device_put((params, stats))
    untouched = dict.fromkeys(quantization.inputs, 0.0)

    def logits(params: Arrays, ranges: Mapping[str, float]) -> np.ndarray:
        found = [compiled(params, stats, dict(ranges), batch) for batch in batches]
        return np.concatenate([np.asarray(one)[rows] for one, rows in zip(found, counted, strict=True)])

    before = logits(params, untouched)
    right = before.argmax(-1) == labels
    rows = []
    for number, (path, array) in enumerate(quantization.weights.items(), 1):
        say(f"layer {number} of {len(quantization.weights)}: {path}")
        layer = path.rpartition("/")[0]
        own = {layer: quantization.inputs[layer]} if path == f"{layer}/kernel" and layer in untouched else {}
        after = logits(params | {path: array.floats()}, untouched | own)
        rows.append(
            Sensitivity(
                path=path,
                inputs=bool(own),
                error=float(np.linalg.norm(after - before)) / (float(np.linalg.norm(before)) or 1.0),
                changed=int((after.argmax(-1) != before.argmax(-1)).sum()),
                lost=int(right.sum()) - int((after.argmax(-1) == labels).sum()),
                records=len(labels),
            )
        )
    return sorted(rows, key=lambda row: -row.error)
