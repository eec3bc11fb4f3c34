"""The allocator keeps what a step used: the next one's pages are there."""

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pcls.parallel import tuning

STEPS = """
import resource, statistics
from pcls.parallel.tuning import tune_process
tune_process()
import jax, jax.numpy as jnp
# Two arrays of 80 MiB live between the products: 20,480 pages each.
step = jax.jit(lambda x: jnp.tanh(x @ x.T) @ x)
x = jnp.ones((4580, 128))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(statistics.median([faults() for _ in range(41)][20:]))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
@pytest.mark.skipif(not tuning._only_cpu(), reason="needs a jax that finds the CPU only")
def test_most_steps_map_no_memory_anew():
    # One device, as a run has here: the suite's eight bring more threads.
    environment = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-c", STEPS]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # The heap may still grow in one step or another: each that does faults 20,480 pages in.
    assert float(found.stdout) < 1000


@pytest.mark.parametrize(
    ("platforms", "installed", "expected"),
    [(None, None, True), ("cpu", "libtpu", True), ("cuda,cpu", None, False), (None, "libtpu", False)],
)
def test_one_arena_only_where_no_accelerator_can_be_found(monkeypatch, platforms, installed, expected):
    monkeypatch.setattr(tuning.jax, "config", SimpleNamespace(jax_platforms=platforms))
    monkeypatch.setattr(tuning, "entry_points", lambda group: [])
    monkeypatch.setattr(tuning, "find_spec", lambda name: name if name == installed else None)
    assert tuning._only_cpu() is expected
