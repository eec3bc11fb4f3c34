"""What a launcher hands to another program: files and command lines, printed or run."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pcls.errors import UserError


@dataclass(frozen=True)
class Submission:
    """What would run.

    Attributes:
      commands: programs with their arguments, one after another.
      files: name, in the current folder, to text: what the commands read.
    """

    commands: tuple[tuple[str, ...], ...]
    files: Mapping[str, str] = field(default_factory=dict)


def as_script(submission: Submission) -> str:
    """The same as a shell script, to be read, or pasted into bash."""
    parts = [_written(name, text) for name, text in submission.files.items()]
    return "\n".join([*parts, *(shlex.join(command) for command in submission.commands)]) + "\n"


def submit(submission: Submission) -> None:
    """Writes the files and runs the commands.

    Raises:
      UserError: a program is missing or fails, or a file of that name says something else.
    """
    require_programs({command[0] for command in submission.commands})
    for name, text in submission.files.items():
        _write(Path(name), text)
    for command in submission.commands:
        done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise UserError(f"{_start(command)} ended with exit code {done.returncode}; what it said stands above")


def require_programs(programs: set[str]) -> None:
    """UserError where one is not on PATH."""
    missing = sorted(program for program in programs if shutil.which(program) is None)
    if missing:
        raise UserError(f"{', '.join(missing)}: not installed here, or not on PATH; --dry-run shows what would run")


def _start(command: Sequence[str]) -> str:
    """The program and its subcommand."""
    words = [word for word in command[:4] if word[0] != "-" and word.isalnum()]
    return " ".join([command[0], *words[1:]])


def _write(path: Path, text: str) -> None:
    try:
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise UserError(f"{path}: is here already and says something else; remove it, or choose another --name")
        path.write_text(text, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be written ({error})") from error


def _written(name: str, text: str) -> str:
    """The shell command that writes a text to a file as it stands."""
    end = "PCLS_END"
    while end in text.splitlines():
        end = f"PCLS_END_{hashlib.sha256((end + text).encode()).hexdigest()[:8]}"
    return f"cat > {shlex.quote(name)} <<'{end}'\n{text}{end}"
