"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path`, to write a file or a folder to: renamed to `path` at the end, removed where that fails.

    What killed processes left of the same is removed first. A folder takes the place of an empty one or of none.

    Raises:
      OSError: it cannot be renamed.
    """
    # Beside it, because a rename is atomic only within a file system; short, because names have at most 255 bytes.
    start = f".{path.name[:60]}.tmp-"
    for left in path.parent.glob(f"{glob.escape(start)}*"):
        if not _is_running(left.name.removeprefix(start)):
            _remove(left)
    part = path.with_name(f"{start}{os.getpid()}")
    _remove(part)
    try:
        yield part
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


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return True
    except (ValueError, OSError):
        return False
    return True


def _remove(part: Path) -> None:
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)
