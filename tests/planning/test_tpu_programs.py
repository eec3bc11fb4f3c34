"""What the TPU compiler makes of the training step: how often devices talk, and what is donated."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.tpu

# Small images and batches: the program has all its layers and collectives, and compiles in seconds instead of minutes.
SETTINGS = [
    "data.image_size=8",
    "data.on_device=false",
    "train.batch_size=32",
    "batch_norm.over=groups",
    "batch_norm.group_size=8",
]
KERNELS = 21
LARGEST_KERNEL = 3 * 3 * 512 * 512 * 4


def plan(*arguments: str) -> dict:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (the extra tpu)")
    done = subprocess.run(
        [sys.executable, "-m", "pcls", "plan", "cifar10_resnet18", *SETTINGS, *arguments, "--quick", "--json"],
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def zero1() -> dict:
    return plan("--topology", "v6e:2x2")


def test_grouped_batch_norm_needs_two_all_reduces_a_step(zero1):
    """One for gradients, in bfloat16, one for statistics and metrics."""
    assert zero1["all_reduces"] == 2


def test_global_batch_norm_needs_one_more_each_way_for_each_layer():
    layers = 20
    found = plan("--topology", "v6e:2x2", "batch_norm.over=global", "batch_norm.group_size=0")
    # A block's last layer and its shortcut's share theirs.
    assert 1.5 * layers <= found["all_reduces"] <= 2 * layers + 2


def test_zero1_gathers_each_updated_kernel_once_and_nothing_larger(zero1):
    assert zero1["collectives"]["all-gather"]["count"] <= KERNELS
    assert zero1["largest_all_gather"] == LARGEST_KERNEL


def test_a_replicated_state_is_never_gathered():
    found = plan("--topology", "v6e:2x2", "mesh.sharding=replicated")
    assert found["all_reduces"] == 2
    assert set(found["collectives"]) == {"all-reduce"}


def test_every_buffer_of_the_state_is_donated(zero1):
    arrays = sum(part["arrays"] for part in zero1["state"])
    # Beside parameters, statistics and optimizer: step, key, best metric, last good step.
    assert zero1["donated_buffers"] == arrays + 4
    assert zero1["memory"]["aliased"] >= sum(part["bytes_per_device"] for part in zero1["state"])


def test_a_slice_more_halves_what_a_chip_computes():
    one, two = plan("--topology", "v5e:2x2"), plan("--topology", "v5e:2x2", "--slices", "2", "batch_norm.group_size=4")
    assert two["devices"] == 2 * one["devices"] == 8
    assert two["flops_per_image"] == pytest.approx(one["flops_per_image"], rel=0.2)
