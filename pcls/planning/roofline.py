"""What bounds a step and how fast it can be: the documented limits of the chip against what the program needs."""

from __future__ import annotations

from dataclasses import dataclass

from pcls.nn.flops import TRAINING_FLOPS_PER_FORWARD
from pcls.observe.chips import Chip
from pcls.planning.costs import Collective, Costs

Range = tuple[float, float]


@dataclass(frozen=True)
class Prediction:
    """Bounds of a step; None where the chip, or one of its figures, is not documented.

    Attributes:
      compute_seconds, memory_seconds, network_seconds: a step if nothing else took time.
      bound: the longest of the three: "compute", "memory", "network"; "unknown" if one of them is.
      step_seconds: (best, worst): all three at the same time, one after the other.
      images_per_second, images_per_second_per_chip: (worst, best) of the whole job, and of a chip.
      mfu: (worst, best) share of the chips' peak that the model's own FLOPs use.
    """

    compute_seconds: float | None
    memory_seconds: float | None
    network_seconds: float | None
    bound: str = "unknown"
    step_seconds: Range | None = None
    images_per_second: Range | None = None
    images_per_second_per_chip: Range | None = None
    mfu: Range | None = None


def roofline(
    costs: Costs,
    chip: Chip | None,
    images_per_device: float,
    *,
    forward_flops: float | None = None,
    precision: str = "bfloat16",
) -> Prediction:
    """Predicts a training step.

        compute   FLOPs of the program / peak
        memory    bytes accessed / HBM bandwidth; an upper bound, as the compiler counts on-chip memory as well
        network   `wire_bytes` of all collectives / ICI bandwidth of the chip (DCN for groups across slices);
                  a lower bound, as the outer chips of a slice without wrap-around links have fewer

    Args:
      costs: of one step, without loops: XLA counts the body of a loop once.
      chip: what it runs on; None predicts nothing.
      images_per_device: in one step.
      forward_flops: of one image through the model, from `analytic_flops`; None predicts no MFU.
      precision: of the computation.
    """
    if chip is None:
        return Prediction(None, None, None)
    peak = chip.flops(precision)
    compute = None if peak is None else costs.flops * chip.devices / peak
    memory = costs.bytes_accessed * chip.devices / chip.hbm_bandwidth
    network = _network_seconds(costs.collectives, chip)
    if peak is None or compute is None or network is None:
        return Prediction(compute, memory, network)
    seconds = {"compute": compute, "memory": memory, "network": network}
    best, worst = max(seconds.values()), sum(seconds.values())
    images = images_per_device * costs.devices
    chips = costs.devices / chip.devices
    rate = (images / worst, images / best)
    rate_per_chip = (rate[0] / chips, rate[1] / chips)
    model_flops = None if forward_flops is None else TRAINING_FLOPS_PER_FORWARD * forward_flops
    return Prediction(
        **{f"{name}_seconds": value for name, value in seconds.items()},
        bound=max(seconds, key=lambda name: seconds[name]),
        step_seconds=(best, worst),
        images_per_second=rate,
        images_per_second_per_chip=rate_per_chip,
        mfu=None
        if model_flops is None
        else (rate_per_chip[0] * model_flops / peak, rate_per_chip[1] * model_flops / peak),
    )


def wire_bytes(collective: Collective) -> float:
    """Bytes that one device sends in one execution, by the algorithms that send least.

    Of n devices: all-reduce 2 (n - 1) / n of the buffer (a reduce-scatter, then an all-gather), the others (n - 1) / n,
    a permutation all of it. Source: Thakur, Rabenseifner and Gropp 2005.
    """
    n = collective.group_size
    if collective.kind == "collective-permute":
        return collective.bytes
    return (2 if collective.kind == "all-reduce" else 1) * (n - 1) / n * collective.bytes


def _network_seconds(collectives: tuple[Collective, ...], chip: Chip) -> float | None:
    seconds = 0.0
    for collective in collectives:
        bandwidth = chip.dcn_bandwidth if collective.crosses_slices else chip.ici_bandwidth
        if bandwidth is None:
            return None
        seconds += collective.count * wire_bytes(collective) * chip.devices / bandwidth
    return seconds
