"""Settings of the process that make every program on it faster."""

from __future__ import annotations

import ctypes
import os
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import jax

# glibc's numbers for mallopt.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def tune_process() -> None:
    """Settings of the process that every run wants: a compile cache on disk, and an allocator that keeps its memory.

    To be called before jax's first array: the allocator's settings reach only threads that start after it.
    """
    _use_compile_cache()
    _keep_freed_memory()


def _use_compile_cache() -> None:
    """A second start of the same recipe need not compile; JAX_COMPILATION_CACHE_DIR names another folder, as always."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "pcls" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _keep_freed_memory() -> None:
    """Keeps glibc from giving temporary memory back to the kernel after every step and every batch.

    Above 32 MiB glibc maps such memory anew each time, and the kernel fills every page with zeros first: the first
    stage of cnn28 takes 7 ms instead of 18 on CPU, and a batch of 128 photographs 3 ms less on any host. Threads have
    arenas of their own, which shrink all the same; so where steps run on the CPU there is one for all: an LSTM's step
    takes 73 ms instead of 98, a ResNet-18's 258 instead of 299. Where they do not, two threads that decode images read
    11 % faster with arenas of their own. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    if _only_cpu():
        mallopt(M_ARENA_MAX, 1)


def _only_cpu() -> bool:
    """Whether jax can find no other device than the CPU. Without asking it: that would start its threads."""
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    if platforms:
        return platforms == "cpu"
    return not (entry_points(group="jax_plugins") or find_spec("jax_plugins") or find_spec("libtpu"))
