"""Plans of the large recipes for one TPU slice each, by the TPU's compiler: `make plans`, half an hour on two cores.

Writes docs/plans.md and appends to the ledger.
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from _ledger import append, versions

SLICES = {
    "imagenet_resnet50": "v6e:4x4",
    "imagenet_resnet50_fast": "v6e:4x4",
    "imagenet_convnext_tiny": "v6e:4x4",
    "cifar10_resnet18": "v6e:1x1",
}
PACKAGES = ("jax", "libtpu")
PAGE = Path(__file__).parent.parent / "docs" / "plans.md"
COLUMNS = (
    "recipe, slice",
    "images a chip",
    "memory a chip, GiB",
    "GFLOP an image",
    "MB of HBM traffic an image",
    "collectives a step",
    "bound",
    "images/s a chip",
    "MFU",
)


def plan(recipe: str, topology: str) -> dict[str, Any]:
    """What `pcls plan --json` says."""
    command = [sys.executable, "-m", "pcls", "plan", recipe, "--topology", topology, "--quick", "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def row(recipe: str, found: dict[str, Any]) -> list[str]:
    """A line of the table."""
    collectives = (
        f"{one['count']} {kind} ({one['bytes'] / 1e6:,.1f} MB)" for kind, one in found["collectives"].items()
    )
    slowest, fastest = found["images_per_second_per_chip"]
    low, high = found["mfu"]
    return [
        f"{recipe}, {found['topology']}",
        f"{found['images_per_device']:,.0f}",
        f"{found['needed_bytes'] / 2**30:.2f}",
        f"{found['flops_per_image'] / 1e9:.2f}",
        f"{found['hbm_bytes_per_image'] / 1e6:.1f}",
        ", ".join(collectives) or "none",
        found["bound"],
        f"{slowest:,.0f} to {fastest:,.0f}",
        f"{low:.1%} to {high:.1%}",
    ]


def page(plans: dict[str, dict[str, Any]]) -> str:
    """docs/plans.md."""
    lines = [
        "# Plans of the large recipes",
        "",
        "What the TPU's compiler says of each recipe's training step on one slice, and the range of speed that the",
        "chip's documented limits leave: memory, compute and network all at the same time, or one after the other.",
        "Nobody has run these on a TPU. Another slice, another batch: `pcls plan RECIPE --topology ...`. The recipe",
        "with growing images is planned at its largest training size.",
        "",
        f"{datetime.date.today()}; {versions(PACKAGES)}, Python {platform.python_version()}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(f"| {' | '.join(row(recipe, found))} |" for recipe, found in plans.items()),
    ]
    return "\n".join(lines) + "\n"


def record(plans: dict[str, dict[str, Any]]) -> None:
    """Writes the page and the ledger's block."""
    PAGE.write_text(page(plans), encoding="utf-8")
    append(
        "Plans of the large recipes, by the TPU's compiler",
        list(COLUMNS),
        [row(recipe, found) for recipe, found in plans.items()],
        packages=PACKAGES,
        note="Compiled, not run. Traffic is XLA's `bytes accessed`, which counts on-chip memory as well.",
    )


if __name__ == "__main__":
    record({recipe: plan(recipe, topology) for recipe, topology in SLICES.items()})
