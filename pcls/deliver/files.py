"""From what is named on a command line to the files that are predicted, in order."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from pcls.data.preprocessing import GREY, RGB, Preprocessing
from pcls.data.sources.folder import EXTENSIONS
from pcls.errors import UserError

STDIN = "-"
WILDCARDS = re.compile(r"[*?[]")


def kinds_of(preprocessing: Preprocessing) -> tuple[str, ...]:
    """How the names of files end that hold what a model sees."""
    if preprocessing.sequence is not None:
        return (".wav",) if preprocessing.sequence.kind == "log_mel" else (".npy",)
    return EXTENSIONS if preprocessing.channels in (GREY, RGB) else (".npy",)


def named_files(named: Sequence[str], kinds: Sequence[str], stdin: BinaryIO) -> list[str]:
    """The files that are meant, in the order in which they are named.

    A file may be missing or be of another kind: who reads it says so, in its place.

    Args:
      named: files; folders, which stand for what is below them, sorted; patterns with `*`, `?`, `[...]` and `**`, which
        stand for what they match, sorted; and `-`, for the paths on standard input, one a line.
      kinds: how the names of a folder's files end that count.
      stdin: standard input.

    Raises:
      UserError: a folder without such files or that cannot be listed, a pattern that matches nothing, no path on
        standard input.
    """
    files: list[str] = []
    for name in named:
        found = list(_meant(name, kinds, stdin))
        if not found:
            raise UserError(_nothing(name, kinds))
        files += found
    return files


def _meant(name: str, kinds: Sequence[str], stdin: BinaryIO) -> Iterator[str]:
    if name == STDIN:
        # Split at line feeds only: a name may hold any other character. Lists from elsewhere end lines with two.
        lines = (os.fsdecode(line.removesuffix(b"\r")) for line in stdin.read().split(b"\n"))
        yield from filter(None, lines)
    elif Path(name).is_dir():
        yield from _below(name, kinds)
    elif WILDCARDS.search(name) and not os.path.lexists(name):
        # Not by Path, whose patterns are never absolute.
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207
        # Two stars match a folder and what is below it: each file counts once.
        every = (_below(match, kinds) if Path(match).is_dir() else (match,) for match in matches)
        yield from dict.fromkeys(file for files in every for file in files)
    else:
        yield name


def _below(folder: str, kinds: Sequence[str]) -> list[str]:
    """A folder's files at any depth.

    Hidden ones are thumbnails and leftovers of other programs, and links to other folders are not followed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    found = []
    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(where, name)  # noqa: PTH118
            for name in names
            if name.lower().endswith(tuple(kinds)) and not name.startswith(".")
        ]
    return sorted(found)


def _nothing(name: str, kinds: Sequence[str]) -> str:
    if name == STDIN:
        return "-: standard input names no file; write one path a line, as `find` does"
    if Path(name).is_dir():
        return f"{name}: no {', '.join(kinds)} files in the folder or below it"
    return f"{name}: matches no file; name a file, a folder, or another pattern"
