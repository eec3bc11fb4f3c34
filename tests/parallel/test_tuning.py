"""The allocator keeps what a step used: the next one's pages are there."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pcls.parallel import tuning

STEPS = """
import resource
from pcls.parallel.tuning import tune_process
tune_process()
import jax, jax.numpy as jnp
# Two arrays of 80 MiB live between the products.
step = jax.jit(lambda x: jnp.tanh(x @ x.T) @ x)
x = jnp.ones((4580, 128))
for _ in range(15):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
@pytest.mark.skipif(not tuning._only_cpu(), reason="needs a jax that finds the CPU only")
def test_a_step_maps_no_memory_anew():
    found = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    # A step of these faults 20,000 pages in when its memory is new.
    assert int(found.stdout) < 5000


@pytest.mark.parametrize(
    ("platforms", "installed", "expected"),
    [(None, None, True), ("cpu", "libtpu", True), ("cuda,cpu", None, False), (None, "libtpu", False)],
)
def test_one_arena_only_where_no_accelerator_can_be_found(monkeypatch, platforms, installed, expected):
    monkeypatch.setattr(tuning.jax, "config", SimpleNamespace(jax_platforms=platforms))
    monkeypatch.setattr(tuning, "entry_points", lambda group: [])
    monkeypatch.setattr(tuning, "find_spec", lambda name: name if name == installed else None)
    assert tuning._only_cpu() is expected
