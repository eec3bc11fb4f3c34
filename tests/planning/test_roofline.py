"""The roofline by hand."""

import pytest

from pcls.observe.chips import Chip
from pcls.planning.costs import Collective, Costs, Memory
from pcls.planning.roofline import roofline, wire_bytes

CHIP = Chip(
    name="round numbers",
    kind="round",
    bf16_flops=1e12,
    f32_flops=1e11,
    hbm_bytes=10**9,
    hbm_bandwidth=1e9,
    ici_bandwidth=1e8,
    dcn_bandwidth=1e7,
    source="none",
)
HALVED = Chip(
    name="two devices a chip",
    kind="halved",
    bf16_flops=2e12,
    f32_flops=None,
    hbm_bytes=2 * 10**9,
    hbm_bandwidth=2e9,
    ici_bandwidth=None,
    dcn_bandwidth=None,
    source="none",
    devices=2,
)


def program(*collectives: Collective, flops: float = 4e9, bytes_accessed: float = 2e6) -> Costs:
    memory = Memory(arguments=0, outputs=0, aliased=0, temporaries=0, code=0, compiler_peak=None)
    return Costs(8, memory, flops, bytes_accessed, collectives, donated=0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("all-reduce", 1500),
        ("all-gather", 750),
        ("reduce-scatter", 750),
        ("all-to-all", 750),
        ("collective-permute", 1000),
    ],
)
def test_what_each_kind_sends(kind, expected):
    assert wire_bytes(Collective(kind, 1000, 4)) == expected


def test_a_group_of_one_sends_nothing():
    assert wire_bytes(Collective("all-reduce", 1000, 1)) == 0


def test_a_step_lies_between_full_overlap_and_none():
    """4 ms of computing, 2 ms of memory, 1.5 ms of network; 32 images on each of 8 devices."""
    found = roofline(program(Collective("all-reduce", 100_000, 4)), CHIP, 32)
    assert found.compute_seconds == pytest.approx(4e-3)
    assert found.memory_seconds == pytest.approx(2e-3)
    assert found.network_seconds == pytest.approx(1.5e-3)
    assert found.bound == "compute"
    assert found.step_seconds == pytest.approx((4e-3, 7.5e-3))
    assert found.images_per_second == pytest.approx((256 / 7.5e-3, 256 / 4e-3))
    assert found.images_per_second_per_chip == pytest.approx((32 / 7.5e-3, 32 / 4e-3))
    assert found.mfu is None


@pytest.mark.parametrize(
    ("costs", "collective", "bound"),
    [
        ({"flops": 4e9, "bytes_accessed": 5e6}, Collective("all-reduce", 100_000, 4), "memory"),
        ({}, Collective("all-reduce", 100_000, 4, count=3), "network"),
        ({}, Collective("all-reduce", 100_000, 2, crosses_slices=True), "network"),
    ],
)
def test_the_longest_time_names_the_bound(costs, collective, bound):
    assert roofline(program(collective, **costs), CHIP, 32).bound == bound


def test_a_group_across_slices_has_the_data_center_network_only():
    found = roofline(program(Collective("all-reduce", 100_000, 2, crosses_slices=True)), CHIP, 32)
    assert found.network_seconds == pytest.approx(1e5 / 1e7)


def test_mfu_counts_three_forward_passes_of_the_model():
    """8 ms at best for 32 images of 3 x 50 MFLOPs: 4.8 GFLOPs of the 8 that the chip could do."""
    found = roofline(program(flops=8e9), CHIP, 32, forward_flops=5e7)
    assert found.mfu == pytest.approx((4.8e9 / 10e-3 / 1e12, 0.6))


def test_a_float32_program_is_held_against_the_float32_peak():
    assert roofline(program(), CHIP, 32, precision="float32").compute_seconds == pytest.approx(4e-2)


def test_a_device_has_its_share_of_the_chip():
    found = roofline(program(), HALVED, 32)
    assert (found.compute_seconds, found.memory_seconds) == pytest.approx((4e-3, 2e-3))
    assert found.images_per_second == pytest.approx((256 / 6e-3, 256 / 4e-3))
    assert found.images_per_second_per_chip == pytest.approx((64 / 6e-3, 64 / 4e-3))


def test_without_a_documented_figure_the_bound_is_unknown():
    no_network = roofline(program(Collective("all-reduce", 100_000, 4)), HALVED, 32)
    assert (no_network.compute_seconds, no_network.network_seconds) == (pytest.approx(4e-3), None)
    assert (no_network.bound, no_network.images_per_second) == ("unknown", None)
    no_chip = roofline(program(), None, 32)
    assert (no_chip.bound, no_chip.memory_seconds) == ("unknown", None)
