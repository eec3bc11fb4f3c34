"""What was measured of a model before and after compression."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcls.compression.latency import Latency
from pcls.compression.sensitivity import Sensitivity
from pcls.evaluation.metrics import Evaluation


@dataclass(frozen=True)
class Variant:
    """A model that was measured.

    Attributes:
      name: what was done to it.
      evaluation: on all held-out records of the run.
      file_bytes: of its weight file.
      parameters: trained numbers.
      flops: of one image, two for each multiply-add.
      latencies: of a prediction, one for each batch size.
    """

    name: str
    evaluation: Evaluation
    file_bytes: int
    parameters: int
    flops: int
    latencies: tuple[Latency, ...]


@dataclass(frozen=True)
class Compressed:
    """What `compress_run` did.

    Attributes:
      path: of the bundle that it wrote.
      variants: the model as it was, what was tried, and last what was written.
      sensitivities: of each kernel, the worst first; empty where channels were removed.
    """

    path: Path
    variants: tuple[Variant, ...]
    sensitivities: tuple[Sensitivity, ...]


def points_lost(before: Evaluation, after: Evaluation) -> float:
    """Of top-1 accuracy, on the same records: whole records, divided once."""
    return 100 * (round(before.top1 * before.n) - round(after.top1 * after.n)) / max(before.n, 1)


def compressed_json(found: Compressed) -> dict[str, Any]:
    """All that was measured, in plain numbers."""
    return {
        "variants": [
            {
                "name": variant.name,
                "records": variant.evaluation.n,
                "top1": variant.evaluation.top1,
                "loss": variant.evaluation.loss,
                "file_bytes": variant.file_bytes,
                "parameters": variant.parameters,
                "flops": variant.flops,
                "latency_ms": [vars(own) for own in variant.latencies],
            }
            for variant in found.variants
        ],
        "layers": [vars(own) for own in found.sensitivities],
    }
