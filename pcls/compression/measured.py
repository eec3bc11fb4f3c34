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
      latencies: of a prediction, one for each batch size.
    """

    name: str
    evaluation: Evaluation
    file_bytes: int
    latencies: tuple[Latency, ...]


@dataclass(frozen=True)
class Compressed:
    """What `compress_run` did.

    Attributes:
      path: of the bundle that it wrote.
      variants: the model as it was, what was tried, and last what was written.
      sensitivities: of each kernel, the worst first.
    """

    path: Path
    variants: tuple[Variant, ...]
    sensitivities: tuple[Sensitivity, ...]


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
                "latency_ms": [vars(own) for own in variant.latencies],
            }
            for variant in found.variants
        ],
        "layers": [vars(own) for own in found.sensitivities],
    }
