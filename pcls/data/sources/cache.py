"""The node's own cache: files that were fetched or worked out once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pcls.errors import UserError


def cache_folder() -> Path:
    """`$PCLS_CACHE`, else `~/.cache/pcls`; may not be there yet."""
    return Path(os.environ.get("PCLS_CACHE") or "~/.cache/pcls").expanduser()


def cache_key(*parts: object) -> str:
    """32 hex digits that stand for the parts: a file name of any text, with nothing of it to be read."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def kept(target: Path, fill: Callable[[Path], None]) -> Path:
    """A file or folder of the cache, filled if it is not there.

    Whoever asks for it meanwhile, in this process or another, waits and finds it whole. What a killed process left
    half-written lies under another name, and is written anew by the next.

    Args:
      target: its path; says by its name what it was made from, as it is never made again.
      fill: writes it under the path given.

    Raises:
      UserError: the disk is full or cannot be written; or whatever `fill` raises. Nothing half-written is left.
    """
    if target.exists():
        return target
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(f"{target.name}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                try:
                    _remove(part)
                    fill(part)
                    part.rename(target)
                finally:
                    _remove(part)
    except OSError as error:
        raise not_writable(target.parent, error) from error
    return target


def not_writable(folder: Path, error: OSError) -> UserError:
    """What to tell when the cache cannot take a file."""
    reason = error.strerror or str(error)
    return UserError(f"{folder}: cannot be written ({reason}); make room there, or set PCLS_CACHE to another folder")


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)
