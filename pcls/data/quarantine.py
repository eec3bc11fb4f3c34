"""Lists of records that are left out of a run: plain text, made by `pcls data doctor` and edited by hand.

One name a line, as the source calls the record. Empty lines and lines that begin with `#` say nothing. A name that a
line of its own could not carry (with a line break, or blanks or `#` or `"` at its start) stands as a JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pcls.data.sources.source import Source
from pcls.errors import UserError

HEADER = """\
# pcls quarantine: records to leave out, one a line. In a recipe: data.quarantine: THIS FILE
# Lines with a # say nothing: put one in front of what should stay in, take it away from what should go.
"""


def read_quarantine(path: Path) -> frozenset[str]:
    """Reads the names of a list.

    Raises:
      UserError: the file is missing, no text, or has a line that is none of a name, a comment and a JSON string.
    """
    try:
        # Names of files may be no UTF-8; they come back as `os.fsdecode` makes them.
        lines = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; data.quarantine needs a list as pcls data doctor writes it"
        ) from error
    if any("\0" in line for line in lines):
        raise UserError(f"{path}: is no text; data.quarantine needs a list as pcls data doctor writes it")
    named = (_name(path, number, line.rstrip("\r")) for number, line in enumerate(lines, 1))
    return frozenset(name for name in named if name)


def _name(path: Path, number: int, line: str) -> str:
    if not line.strip() or line.startswith("#"):
        return ""
    if line[0].isspace():
        raise UserError(f"{path}:{number}: begins with a blank; take it away, or write the name as a JSON string")
    if not line.startswith('"'):
        return line
    try:
        name = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}:{number}: begins with a quote and is no JSON string ({error}); correct it") from error
    return str(name)


def quarantine_text(parts: Iterable[tuple[str, bool, Iterable[str]]]) -> str:
    """A list as `read_quarantine` reads it; in a file, lone surrogates stand for the bytes that they came from.

    Args:
      parts: what is common to some records, whether they are to be left out (or only listed behind a `#`), and their
        names.
    """
    blocks = [HEADER]
    for title, active, names in parts:
        lines = [_line(name) for name in names]
        blocks.append("\n".join([f"# {title}", *(line if active else f"# {line}" for line in lines)]) + "\n")
    return "\n".join(blocks)


def _line(name: str) -> str:
    plain = name and name.isprintable() and not name[0].isspace() and name[0] not in '#"'
    return name if plain else json.dumps(name)


def records_kept(sources: Sequence[Source], names: frozenset[str], path: Path) -> list[np.ndarray]:
    """The numbers of the records that are not on a list, source by source.

    A name that no record has is no error: the file may have been removed since. A list of which no name is found was
    made for another place, and would leave nothing out.

    Args:
      sources: of one set: a list names records of all its splits.
      names: as `read_quarantine` returns them.
      path: of the list, for the message.

    Raises:
      UserError: none of the names is found.
    """
    kept = [np.array([n for n in range(len(source)) if source.name(n) not in names], np.int64) for source in sources]
    if names and all(len(numbers) == len(source) for numbers, source in zip(kept, sources, strict=True)):
        raise UserError(
            f"{path}: none of its {len(names):,} names is in the set, whose first record is {sources[0].name(0)!r} and "
            f"the list's {min(names)!r}; make it anew with the same data.path"
        )
    return kept
