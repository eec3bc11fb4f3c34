"""What accelerators can do at most, as their makers document it; what is not documented is None."""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9
GIB = 2**30
TERA = 10**12


@dataclass(frozen=True)
class Chip:
    """The documented limits of one chip. What holds for one jax device is this divided by `devices`.

    Attributes:
      name: as people call it.
      kind: `device_kind` of its jax devices.
      bf16_flops: dense bfloat16 matrix FLOP/s, a multiply-add counted as two.
      f32_flops: FLOP/s of float32 at jax's default precision: TF32 where the GPU has it. None on TPUs: no figure is
        documented, and jax multiplies in bfloat16 there unless it is asked not to.
      hbm_bytes: memory. The compiler keeps some for itself: a v6e has 31.25 of its 32 GiB to give.
      hbm_bandwidth: bytes/s.
      ici_bandwidth: bytes/s that leave the chip over all its links together, one direction. Where the page gives both
        directions, half of it.
      dcn_bandwidth: bytes/s of the data center network between slices, the chip's share of its host's.
      source: where the figures stand.
      devices: jax devices that share the chip.
    """

    name: str
    kind: str
    bf16_flops: float | None
    f32_flops: float | None
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float | None
    dcn_bandwidth: float | None
    source: str
    devices: int = 1

    def flops(self, precision: str) -> float | None:
        """The peak that a program of this precision ("bfloat16", "float32") is measured against; FLOP/s of the chip."""
        if precision == "float32" and self.f32_flops is not None:
            return self.f32_flops
        return self.bf16_flops


def _tpu(
    name: str,
    kind: str,
    tflops: float,
    hbm_gib: int,
    hbm_gb_s: float,
    ici_gb_s: float,
    dcn_gbit_s: float | None,
    source: str,
    devices: int = 1,
) -> Chip:
    return Chip(
        name=f"TPU {name}",
        kind=kind,
        bf16_flops=tflops * TERA,
        f32_flops=None,
        hbm_bytes=hbm_gib * GIB,
        hbm_bandwidth=hbm_gb_s * GB,
        ici_bandwidth=ici_gb_s * GB,
        dcn_bandwidth=None if dcn_gbit_s is None else dcn_gbit_s * GB / 8,
        source=source,
        devices=devices,
    )


def _gpu(name: str, kind: str, bf16: float | None, f32: float, hbm_gb: int, hbm_gb_s: float, source: str) -> Chip:
    return Chip(
        name=f"NVIDIA {name}",
        kind=kind,
        bf16_flops=None if bf16 is None else bf16 * TERA,
        f32_flops=f32 * TERA,
        hbm_bytes=hbm_gb * GB,
        hbm_bandwidth=hbm_gb_s * GB,
        ici_bandwidth=None,
        dcn_bandwidth=None,
        source=source,
    )


_TPU_DOCS = "Cloud TPU documentation, https://docs.cloud.google.com/tpu/docs"
_V4_PAPER = "interconnect (6 links of 50 GB/s): Jouppi et al. 2023, https://arxiv.org/abs/2304.01433"
_NVIDIA = "NVIDIA data sheet (halved where it counts sparsity), https://www.nvidia.com/en-us/data-center"

# The network share of a v5e chip is its pod's 6.4 Tbit/s over 256 chips; for v5p, v6e and 7x the pages give it by chip.
# The two cores of a v4 (as its virtual machines run it) and of a v5p are one device, the two of a 7x are two.
CHIPS = (
    _tpu("v4", "TPU v4", 275, 32, 1200, 300, None, f"{_TPU_DOCS}/v4; {_V4_PAPER}"),
    _tpu("v5e", "TPU v5 lite", 197, 16, 819, 200, 25, f"{_TPU_DOCS}/v5e"),
    _tpu("v5p", "TPU v5", 459, 95, 2765, 600, 50, f"{_TPU_DOCS}/v5p"),
    _tpu("v6e", "TPU v6 lite", 918, 32, 1638, 400, 100, f"{_TPU_DOCS}/v6e and /tpu7x"),
    _tpu("7x", "TPU7x", 2307, 192, 7380, 600, 100, f"{_TPU_DOCS}/tpu7x", devices=2),
    _gpu("H200", "NVIDIA H200", 989.5, 494.5, 141, 4800, f"{_NVIDIA}/h200/"),
    _gpu("H100 SXM", "NVIDIA H100 80GB HBM3", 989.5, 494.5, 80, 3350, f"{_NVIDIA}/h100/"),
    _gpu("H100 NVL", "NVIDIA H100 NVL", 835.5, 417.5, 94, 3900, f"{_NVIDIA}/h100/"),
    _gpu("H100 PCIe", "NVIDIA H100 PCIe", 756.5, 378, 80, 2000, f"{_NVIDIA}/h100/"),
    _gpu("A100 SXM 80 GB", "NVIDIA A100-SXM4-80GB", 312, 156, 80, 2039, f"{_NVIDIA}/a100/"),
    _gpu("A100 SXM 40 GB", "NVIDIA A100-SXM4-40GB", 312, 156, 40, 1555, f"{_NVIDIA}/a100/"),
    _gpu("A100 PCIe 80 GB", "NVIDIA A100 80GB PCIe", 312, 156, 80, 1935, f"{_NVIDIA}/a100/"),
    _gpu("A100 PCIe 40 GB", "NVIDIA A100-PCIE-40GB", 312, 156, 40, 1555, f"{_NVIDIA}/a100/"),
    _gpu("L40S", "NVIDIA L40S", 362, 183, 48, 864, f"{_NVIDIA}/l40s/"),
    _gpu("L4", "NVIDIA L4", 121, 60, 24, 300, f"{_NVIDIA}/l4/"),
    _gpu("A10", "NVIDIA A10", 125, 62.5, 24, 600, f"{_NVIDIA}/products/a10-gpu/"),
    # Turing has no bfloat16 units and no TF32.
    _gpu("T4", "Tesla T4", None, 8.1, 16, 320, f"{_NVIDIA}/tesla-t4/"),
)

_BY_KIND = {chip.kind: chip for chip in CHIPS}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that a jax device's `device_kind` names; None where no peak is documented here, as for any CPU."""
    return _BY_KIND.get(device_kind)


def share_of_peak(flops_per_second: float, chip: Chip | None, devices: int, precision: str) -> float | None:
    """Model FLOPs utilisation (MFU): the share of the peak of so many jax devices; None where it is not documented."""
    peak = None if chip is None else chip.flops(precision)
    return None if chip is None or peak is None else flops_per_second * chip.devices / (peak * devices)
