"""TPU slices, as the programs that rent them call them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pcls.errors import UserError
from pcls.planning.topology import GENERATIONS, Topology, parse_topology

# Source: https://docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
GKE_NAMES = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}
# A host of a slice of several has four chips; one of v5e and v6e alone may have up to eight.
CHIPS_PER_HOST = 4
CHIPS_OF_A_LONE_HOST = {"v5e": 8, "v6e": 8}


@dataclass(frozen=True)
class Slice:
    """Equal TPU slices.

    Attributes:
      generation: as in `v5e:4x4`.
      shape: chips along each axis, as in `4x4`.
      chips: of one slice.
      slices: how many.
    """

    generation: str
    shape: str
    chips: int
    slices: int = 1

    @property
    def accelerator_type(self) -> str:
        """As gcloud and XPK call one slice: v6e-16; v4-16 is one of 8 chips with two cores each."""
        generation = GENERATIONS[self.generation]
        return f"{generation.accelerator}-{generation.cores * self.chips}"

    @property
    def hosts(self) -> int:
        """Of one slice."""
        if self.chips <= CHIPS_OF_A_LONE_HOST.get(self.generation, CHIPS_PER_HOST):
            return 1
        return self.chips // CHIPS_PER_HOST

    @property
    def chips_per_host(self) -> int:
        """Of each host."""
        return self.chips // self.hosts

    @property
    def gke_name(self) -> str:
        """The value of GKE's label for nodes of this generation."""
        return GKE_NAMES[self.generation]


def parse_slice(text: str, slices: int) -> Slice:
    """Reads `v6e:4x4`; UserError for anything else."""
    topology: Topology = parse_topology(text, slices)
    if topology.generation is None:
        raise UserError(f"--topology {text!r}: a TPU is needed, as in v6e:4x4")
    shape = "x".join(map(str, topology.shape))
    return Slice(topology.generation.name, shape, math.prod(topology.shape), slices)
