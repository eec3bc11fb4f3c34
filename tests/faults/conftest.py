"""The slow tier of faults: `make test-faults`. What was counted is printed in the end, for docs/reliability.md."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

COUNTS = pytest.StashKey[dict[str, Counter]]()

TINY = {
    "data.image_size": 10,
    "augment.shift": 1,
    "train.batch_size": 32,
    "train.ema_decay": 0.9,
    "evaluate.every": "100 steps",
}


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COUNTS] = {}


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not config.stash[COUNTS]:
        return
    terminalreporter.section("faults: counts")
    for title, counts in config.stash[COUNTS].items():
        terminalreporter.line(title)
        width = max(map(len, counts))
        for what, number in counts.items():
            terminalreporter.line(f"  {what:<{width}}  {number:,}")


@pytest.fixture(scope="session")
def counted(pytestconfig):
    """A function from a title to the counter that is printed under it."""
    return lambda title: pytestconfig.stash[COUNTS].setdefault(title, Counter())


def command(recipe: str | Path, path: Path, settings: dict[str, object]) -> list[str]:
    """The arguments of a run."""
    return ["train", str(recipe), *(f"{key}={value}" for key, value in (settings | {"run.dir": path}).items())]


def start(arguments: list[str], python: Sequence[str] = (sys.executable,), **options) -> subprocess.Popen:
    """`pcls` in a process of its own, with one device."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    return subprocess.Popen(
        [*python, "-m", "pcls", *arguments], env=environment, stderr=subprocess.PIPE, text=True, **options
    )


def digest_of(path: Path) -> str:
    """The last line of `pcls checkpoints verify RUN --digest`."""
    said = subprocess.run(
        [sys.executable, "-m", "pcls", "checkpoints", "verify", str(path), "--digest"],
        capture_output=True,
        text=True,
        check=True,
    )
    return said.stdout.splitlines()[-1]
