"""The folder of a run: what lies where, who may write, what state it is in."""

from __future__ import annotations

import contextlib
import glob
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pcls.atomic import atomic_write
from pcls.config import Recipe, dump_recipe, load_recipe
from pcls.errors import UserError
from pcls.run.lock import LEASE, Seen, keep, since, take

POLL_SECONDS = 1.0

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
            atomic_write(self.recipe_file, dump_recipe(recipe))
        except OSError as error:
            raise UserError(f"run.dir {self.path}: cannot be written ({error.strerror})") from error

    def recipe(self) -> Recipe:
        """The run's recipe; UserError where there is no run."""
        if not self.exists():
            # Of an import at the top, every reader of a run's folder would wait for jax.
            from pcls.pretrained.bundle import FACTS

            if (self.path / FACTS).is_file():
                raise UserError(
                    f"{self.path}: is a bundle, and a run's folder (with recipe.yaml) is needed; to evaluate a bundle, "
                    f"name records: pcls eval {self.path} --data FOLDER"
                )
            seeds = sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}-seed*/recipe.yaml"))
            if seeds:
                raise UserError(
                    f"{self.path}: there is no run in this folder, but {len(seeds):,} of several seeds beside it; name "
                    f"one, such as {seeds[0].parent}"
                )
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
        atomic_write(self.path / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run: one process writes at a time.

        The lock of a dead process is taken over; whether one of another machine is dead takes a while to know.

        Raises:
          UserError: a live process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run.dir {self.path}: cannot be written ({error.strerror})") from error
        lock, seen = self.path / "lock", Seen()
        told = False
        while (holder := take(lock, seen)) is not None and not holder.certain:
            if not told:
                print(
                    f"{self.path}: process {holder.pid} on {holder.host} was writing this run; waiting up to "
                    f"{LEASE:.0f} s to see whether it still does",
                    file=sys.stderr,
                    flush=True,
                )
                told = True
            time.sleep(POLL_SECONDS)
        if holder is not None:
            raise UserError(
                f"{self.path}: process {holder.pid} on {holder.host} is writing this run{since(lock)}; stop it first"
            )
        with keep(lock):
            yield
