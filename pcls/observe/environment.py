"""What a run ran on: versions, devices, the commit of the source."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("pcls", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


def environment() -> dict[str, Any]:
    """Facts for environment.json."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "backend": jax.default_backend(),
        "devices": describe_devices(jax.devices()),
        "processes": jax.process_count(),
        "commit": _commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def package_versions() -> dict[str, str]:
    """The version of each package that results depend on."""
    return {name: _version(name) for name in PACKAGES}


def describe_devices(devices: Sequence[jax.Device]) -> str:
    """`8 x cpu`, `4 x TPU v5 lite`."""
    kinds = sorted({device.device_kind for device in devices})
    return " + ".join(f"{sum(d.device_kind == kind for d in devices)} x {kind}" for kind in kinds)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The source tree's commit, with a + for uncommitted changes; empty for an installed package or without git."""
    root = Path(__file__).parent.parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        return subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
