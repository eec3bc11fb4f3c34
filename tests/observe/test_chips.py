"""The chip table: every entry has a source, and is found by what jax calls the device."""

import jax
import pytest

from pcls.observe.chips import CHIPS, chip_of


def test_every_chip_names_its_source():
    assert [chip.name for chip in CHIPS if "https://" not in chip.source] == []


def test_no_two_chips_answer_to_one_kind():
    assert len({chip.kind for chip in CHIPS}) == len(CHIPS)


@pytest.mark.parametrize(
    ("kind", "name", "tflops"),
    [("TPU v5 lite", "TPU v5e", 197), ("TPU v6 lite", "TPU v6e", 918), ("NVIDIA H200", "NVIDIA H200", 989.5)],
)
def test_a_device_kind_finds_its_chip(kind, name, tflops):
    chip = chip_of(kind)
    assert chip is not None
    assert (chip.name, chip.flops("bfloat16")) == (name, tflops * 1e12)


def test_a_cpu_has_no_documented_peak():
    assert chip_of(jax.devices()[0].device_kind) is None


@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [("TPU v5", 459e12, 459e12), ("NVIDIA A100-SXM4-40GB", 312e12, 156e12), ("Tesla T4", None, 8.1e12)],
)
def test_the_peak_is_that_of_the_precision(kind, bfloat16, float32):
    chip = chip_of(kind)
    assert chip is not None
    assert (chip.flops("bfloat16"), chip.flops("float32")) == (bfloat16, float32)


def test_interconnect_counts_one_direction():
    """400, 800 and 1,200 GB/s are documented for both."""
    ici = {chip.name: chip.ici_bandwidth for chip in CHIPS}
    assert (ici["TPU v5e"], ici["TPU v6e"], ici["TPU v5p"]) == (200e9, 400e9, 600e9)
