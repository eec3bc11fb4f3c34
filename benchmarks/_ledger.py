"""The ledger: every measured figure, with its date, machine and versions, appended by the program that measured it."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LEDGER = Path(__file__).parent / "LEDGER.md"


def append(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    packages: Sequence[str],
    note: str,
    dry: bool = False,
) -> None:
    """Prints a table and appends it to LEDGER.md.

    Args:
      title: what was measured.
      columns, rows: the table.
      packages: whose versions matter.
      note: how it was measured, what was predicted, what came.
      dry: print only.
    """
    lines = [
        f"## {title}",
        "",
        f"{datetime.date.today()}; {machine()}; Python {platform.python_version()}; {versions(packages)}.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        note,
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if dry:
        return
    if not LEDGER.exists():
        LEDGER.write_text(HEADER, encoding="utf-8")
    with LEDGER.open("a", encoding="utf-8") as file:
        file.write("\n" + text)


HEADER = """# Ledger

Every figure that README, docs and recipe headers state. A block is appended by the program in this folder that
measured it, or says otherwise. Times are from shared machines with two noisy cores: ratios within one run count,
absolute numbers do not travel.
"""


def machine() -> str:
    """Processor, usable cores, memory."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"


def versions(packages: Sequence[str]) -> str:
    """`jax 0.12.0, optax 0.2.8`; a package that is not there says so."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)
