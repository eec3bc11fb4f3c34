"""How a save becomes a step on the file system at hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

# `rename`: written beside, then renamed, which local and network file systems do at once. `marker`: written in place,
# with a file in the end that says so. Object stores cannot rename a folder: a mount of one copies every object.
Commit = Literal["rename", "marker"]

MOUNTS = Path("/proc/self/mounts")


def commit_for(folder: Path, mounts: str | None = None) -> Commit:
    """The way that fits a folder's file system: `marker` on FUSE mounts, as of buckets, else `rename`.

    Args:
      folder: absolute; need not exist.
      mounts: the text of `/proc/self/mounts`; None: read, where the system has it.
    """
    if mounts is None:
        mounts = MOUNTS.read_text(encoding="utf-8", errors="replace") if MOUNTS.is_file() else ""
    best, kind = Path("/"), ""
    for line in mounts.splitlines():
        _, place, found, *_ = [*line.split(" "), "", "", ""]
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), place)
        # Later mounts hide earlier ones of the same place.
        if place.startswith("/") and folder.is_relative_to(place) and len(place) >= len(str(best)):
            best, kind = Path(place), found
    # fuseblk is a disk, such as one of NTFS.
    return "marker" if kind == "fuse" or kind.startswith("fuse.") else "rename"
