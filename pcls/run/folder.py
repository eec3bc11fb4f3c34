"""The folder of a run: what lies where, who may write, what state it is in."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pcls.config import Recipe, dump_recipe, load_recipe
from pcls.errors import UserError

UNWRITTEN_LOCK_SECONDS = 5.0

Status = Literal["running", "stopped", "finished"]


class RunFolder:
    """Paths of a run, and its small JSON files.

    Attributes:
      path: the folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def checkpoints(self) -> Path:
        """One folder a step."""
        return self.path / "checkpoints"

    @property
    def bundle(self) -> Path:
        """What the finished run delivers."""
        return self.path / "bundle"

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.path / "report.html"

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.recipe_file.is_file()

    def create(self, recipe: Recipe) -> None:
        """Makes the folder with its recipe; UserError where it cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            _write(self.recipe_file, dump_recipe(recipe))
        except OSError as error:
            raise UserError(f"run.dir {self.path}: cannot be written ({error.strerror})") from error

    def recipe(self) -> Recipe:
        """The run's recipe; UserError where there is no run."""
        if not self.exists():
            raise UserError(f"{self.path}: there is no run in this folder (no recipe.yaml); start one with pcls train")
        return load_recipe(self.recipe_file)

    def status(self) -> dict[str, Any]:
        """`status`, `step` and `steps`; empty before the first."""
        return self.read_json("status.json") or {}

    def set_status(self, status: Status, step: int, steps: int) -> None:
        """Notes how far the run is."""
        self.write_json("status.json", {"status": status, "step": step, "steps": steps})

    def read_json(self, name: str) -> Any:
        """A JSON file of the folder, or None where there is none; UserError where it is damaged."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / name}: cannot be read ({error})") from error

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of the folder atomically."""
        _write(self.path / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run: one process writes at a time.

        The lock file names host, pid and the process's start; one that a dead process of this host left is taken over.

        Raises:
          UserError: another live process, or one of another host, holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run.dir {self.path}: cannot be written ({error.strerror})") from error
        lock = self.path / "lock"
        holder = take(lock)
        if holder is not None:
            here = (
                "" if holder["host"] == socket.gethostname() else ", and whether it still runs cannot be seen from here"
            )
            raise UserError(
                f"{self.path}: process {holder['pid']} on {holder['host']} is writing this run{_since(lock)}{here}; "
                f"stop it first, or delete {lock} if you know that it is gone"
            )
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def take(lock: Path) -> dict[str, Any] | None:
    """Makes a lock file that names this process's host, pid and start; one of a dead process of this host is replaced.

    Returns:
      None: this process holds the lock now, and removes the file in the end. Else the `host`, `pid` and `started` of
      the process that holds it: a live one, or one of another host, of which nobody here can know.
    """
    me = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())})
    while not _create(lock, me):
        found = _identity(lock)
        holder = _holder(lock)
        if holder is None and _age(lock) < UNWRITTEN_LOCK_SECONDS:
            # Made a moment ago and not written yet.
            time.sleep(0.1)
            continue
        if holder is not None and _alive(holder):
            return holder
        _remove(lock, found)
    return None


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _create(lock: Path, text: str) -> bool:
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return True


def _identity(lock: Path) -> tuple[int, int] | None:
    try:
        status = lock.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _remove(lock: Path, found: tuple[int, int] | None) -> None:
    """Removes a stale lock, unless another process was faster: its new one must stay."""
    with contextlib.suppress(FileNotFoundError), lock.open() as file:
        # One at a time may compare and remove the same file.
        fcntl.flock(file, fcntl.LOCK_EX)
        if _identity(lock) == found:
            lock.unlink()


def _holder(lock: Path) -> dict[str, Any] | None:
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
        return {"host": str(holder["host"]), "pid": int(holder["pid"]), "started": str(holder["started"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _since(lock: Path) -> str:
    """Since when, by this machine's time of day."""
    try:
        return f" since {datetime.fromtimestamp(lock.stat().st_mtime):%Y-%m-%d %H:%M}"
    except OSError:
        # Given back in this moment.
        return ""


def _age(lock: Path) -> float:
    try:
        # A clock that was set back in between gives no negative age: nobody would wait for it to pass.
        return abs(time.time() - lock.stat().st_mtime)
    except FileNotFoundError:
        return 0.0


def _alive(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        # Nobody here can know; deleting the lock is the user's decision.
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # The number may have been given to another process since.
    return _started(holder["pid"]) == holder["started"]


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return fields[19]
