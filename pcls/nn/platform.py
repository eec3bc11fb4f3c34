"""Which kind of device a layer is being compiled for: some formulations are for one kind only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_target: ContextVar[str | None] = ContextVar("target", default=None)


def target_platform() -> str:
    """`cpu`, `gpu` or `tpu`."""
    return _target.get() or jax.default_backend()


@contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """What is traced inside is meant for this kind of device, whatever this machine has."""
    token = _target.set("gpu" if platform in ("cuda", "rocm") else platform)
    try:
        yield
    finally:
        _target.reset(token)
