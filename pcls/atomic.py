"""Files and folders that are there whole or not at all, also where the writing process is killed or the power fails."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_numbers = itertools.count()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path`, to write a file or a folder to: renamed to `path` at the end, removed where that fails.

    Folders above it are made. What killed processes of this machine left of the same is removed first. A folder takes
    the place of an empty one or of none.

    Raises:
      OSError: it cannot be renamed.
    """
    # Where a file lies in the way, whoever writes says it better.
    with suppress(FileExistsError):
        path.parent.mkdir(parents=True, exist_ok=True)
    start = _start(path.name)
    for left in path.parent.glob(f"{start}*"):
        process = left.name.removeprefix(start).partition("-")[0]
        if process.isdecimal() and not _is_running(int(process)):
            _remove(left)
    # Beside it, because a rename is atomic only within a file system.
    part = path.with_name(f"{start}{os.getpid()}-{next(_numbers)}")
    try:
        yield part
        _sync(part)
        part.replace(path)
    finally:
        _remove(part)


def atomic_write(path: Path, content: str | bytes) -> Path:
    """Writes a file; returns its path.

    Raises:
      OSError: it cannot be written.
    """
    with atomic_path(path) as part:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def _start(name: str) -> str:
    """How names begin that this machine writes beside a name, which may be as long as names can be."""
    key = f"{socket.gethostname()}/{name}".encode("utf-8", "surrogateescape")
    return f".tmp-{hashlib.sha256(key).hexdigest()[:16]}-"


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _sync(part: Path) -> None:
    """Onto the disk: else a file system may keep the new name and lose what is in it."""
    for path in (part, *part.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(part: Path) -> None:
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)
