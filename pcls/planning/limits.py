"""What a device can do at most: documented of chips, measured of this machine's CPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from pcls.data.workers import usable_cores
from pcls.errors import UserError
from pcls.nn.flops import TRAINING_FLOPS_PER_FORWARD
from pcls.observe.chips import CHIPS, Chip, chip_of

# Forward and backward pass read and write each activation about so often: on accelerators by the TPU compiler's traffic
# of ResNet-50, on CPU, where loops fuse less and some run on one core, by the measured steps of five networks.
PASSES, PASSES_ON_CPU = 14, 60
# A product of this size, and a copy of so many numbers, are measured on CPU.
PRODUCT_SIDE, COPIED, REPEATS = 2048, 2**24, 8


@dataclass(frozen=True)
class Limits:
    """Of one device.

    Attributes:
      name: as people call it.
      precision: type of activations for which `flops` holds.
      flops: FLOP/s of matrix products.
      bandwidth: bytes/s of its memory, read and written together.
      memory: bytes.
      source: where the figures come from.
      cpu: whether it is one.
    """

    name: str
    precision: str
    flops: float
    bandwidth: float
    memory: int
    source: str
    cpu: bool = False

    def training_seconds(self, images: float, forward_flops: float, activation_bytes: float) -> tuple[float, float]:
        """Of so many images: if computing and memory traffic overlap, and if they do not; a bound, no measurement.

        Args:
          images: trained on, each as often as it comes.
          forward_flops: of one image through the model.
          activation_bytes: that its products and convolutions put out.
        """
        computing = TRAINING_FLOPS_PER_FORWARD * forward_flops * images / self.flops
        traffic = (PASSES_ON_CPU if self.cpu else PASSES) * activation_bytes * images / self.bandwidth
        return max(computing, traffic), computing + traffic


def limits_of(device: str = "") -> Limits:
    """The limits of a device.

    Args:
      device: a chip's name, as `v6e` or `a100 sxm 80 gb`; `cpu`: this machine's; empty: the first that jax finds.

    Raises:
      UserError: nothing is documented of it.
    """
    if device.lower() == "cpu":
        return _cpu()
    if device:
        return _of_chip(_named(device))
    first = jax.devices()[0]
    if first.platform == "cpu":
        return _cpu()
    chip = chip_of(first.device_kind)
    if chip is None:
        raise UserError(f"nothing is documented here of {first.device_kind!r}; name a chip by --device: {_names()}")
    return _of_chip(chip)


def _named(device: str) -> Chip:
    found = [chip for chip in CHIPS if _short(chip) == device.lower()]
    if not found:
        raise UserError(f"--device {device!r}: there is no such chip here; known: cpu, {_names()}")
    return found[0]


def _names() -> str:
    return ", ".join(map(_short, CHIPS))


def _short(chip: Chip) -> str:
    """`v6e` of `TPU v6e`."""
    return chip.name.partition(" ")[2].lower()


def _of_chip(chip: Chip) -> Limits:
    precision = "float32" if chip.bf16_flops is None else "bfloat16"
    flops = chip.flops(precision)
    if flops is None:
        raise UserError(f"no peak is documented of {chip.name}; name another device")
    n = chip.devices
    return Limits(chip.name, precision, flops / n, chip.hbm_bandwidth / n, chip.hbm_bytes // n, "documented")


def _cpu() -> Limits:
    """Of the CPU of this process: the best of a few products and copies, about a second."""
    with jax.default_device(jax.devices("cpu")[0]):
        matrix, vector = jnp.ones((PRODUCT_SIDE, PRODUCT_SIDE)), jnp.ones(COPIED)
        product = _seconds(jax.jit(lambda a: a @ a), matrix)
        copy = _seconds(jax.jit(lambda a: a + 1), vector)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Limits(
        name=f"CPU, {usable_cores()} cores",
        precision="float32",
        flops=2 * PRODUCT_SIDE**3 / product,
        bandwidth=8 * COPIED / copy,
        memory=memory,
        source="measured just now",
        cpu=True,
    )


def _seconds(run: Callable[[Any], Any], argument: Any) -> float:
    run(argument).block_until_ready()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run(argument).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)
