"""The checkpoints of a run, one folder a step.

Orbax writes the arrays; which steps exist, which of them count, and which are kept is decided here. A step counts when
its manifest, written last, agrees with its files. Nothing damaged is deleted: it is renamed aside and named.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
from orbax.checkpoint.experimental import v1 as ocp

from pcls.checkpoint.manifest import Damaged, read_manifest, verify, write_manifest
from pcls.errors import UserError

Tree = TypeVar("Tree")


class CheckpointStore:
    """Saves and restores a pytree of arrays.

    Args:
      folder: holds one folder a step; made when first needed.
      keep: newest steps kept.
      warn: tells a person about a damaged step.
      agree: gives process 0's number to every process.
    """

    def __init__(self, folder: Path, *, keep: int, warn: Callable[[str], None], agree: Callable[[int], int]):
        # Orbax wants absolute paths.
        self.folder = folder.absolute()
        self._keep = keep
        self._warn = warn
        self._agree = agree
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._half: list[Path] = []

    def save(self, step: int, tree: Any) -> None:
        """Starts saving; returns when the arrays are copied off the devices. A failed save surfaces here or in `wait`.

        Raises:
          UserError: the disk refused (full, read-only); steps saved before are as they were.
        """
        self.wait()
        leaves = named_leaves(tree)
        shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
        with _disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                # Orbax would find out half-way, and leave a coroutine behind that never ran.
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            response = ocp.save_async(self.folder / str(step), leaves)
        self._pending = self._finisher.submit(self._finish, response, step, shapes)

    def wait(self) -> None:
        """Waits for the save under way and raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with _disk_errors(self.folder):
                pending.result()

    def close(self) -> None:
        """Waits for the save under way and ends the thread; call it in `finally`."""
        try:
            self.wait()
        finally:
            self._finisher.shutdown()
            # Once more: other threads of a failed save may have written on.
            self._discard_half_saves()

    def steps(self) -> list[int]:
        """Steps with a folder, ascending; valid or not."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal() and path.is_dir())

    def restore(self, like: Tree, *, rename: bool = True) -> tuple[Tree, int] | None:
        """Loads the newest step that proves valid; damaged ones are named and renamed aside.

        Args:
          like: a pytree of shapes with types and shardings, into which the arrays are read.
          rename: False for one who only reads: what looks damaged may be the save under way of a live run.

        Returns:
          The tree and its step, or None where there is no valid step.

        Raises:
          UserError: the step holds another model's or optimizer's arrays.
        """
        # Process 0 decides, so that no two processes load different steps.
        step = self._agree(self._newest_valid(rename) if jax.process_index() == 0 else 0)
        if step < 0:
            return None
        folder = self.folder / str(step)
        wanted = named_leaves(like)
        _check_leaves(folder, read_manifest(folder)["leaves"], wanted)
        loaded = ocp.load(folder, wanted)
        return jax.tree.unflatten(jax.tree.structure(like), [loaded[name] for name in wanted]), step

    def _finish(self, response: Any, step: int, leaves: dict[str, Any]) -> None:
        try:
            response.result()
        except BaseException:
            # What a failed save leaves behind is no step, and fills the disk that may have been the reason.
            self._half.append(self.folder / f"{step}.orbax-checkpoint-tmp")
            self._discard_half_saves()
            raise
        if jax.process_index() != 0:
            return
        try:
            write_manifest(self.folder / str(step), step, leaves)
        except BaseException:
            shutil.rmtree(self.folder / str(step), ignore_errors=True)
            raise
        for old in self._valid_steps()[: -self._keep]:
            shutil.rmtree(self.folder / str(old))

    def _discard_half_saves(self) -> None:
        for folder in self._half:
            shutil.rmtree(folder, ignore_errors=True)

    def _valid_steps(self) -> list[int]:
        return [step for step in self.steps() if _problem(self.folder / str(step), full=False) is None]

    def _newest_valid(self, rename: bool) -> int:
        """The newest step whose digests hold, or -1; damaged ones on the way are named, and set aside if wanted."""
        damaged = []
        valid = -1
        for step in reversed(self.steps()):
            problem = _problem(self.folder / str(step), full=True)
            if problem is None:
                valid = step
                break
            kept = f", bad step kept as {set_aside(self.folder / str(step)).name}" if rename else ""
            damaged.append((step, problem, kept))
        verb = "resumed from" if rename else "read"
        for step, problem, kept in damaged:
            then = f"{verb} step {valid}" if valid >= 0 else "no earlier step is valid"
            self._warn(f"checkpoint step {step} is damaged ({problem}); {then}{kept}")
        return valid


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise when a disk refuses into one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        text = str(error)
        if "No space left" in text:
            reason = "no space left on the disk: free some"
        elif isinstance(error, OSError):
            reason = f"{error.strerror or text}: check the folder"
        elif "os_error_code" in text:
            reason = f"{' '.join(text.split())[:200]}: check the folder"
        else:
            raise
        raise UserError(
            f"{folder}: a checkpoint could not be written; {reason}, then resume from the last one"
        ) from error


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by name: `params/conv1/kernel`, `opt_state/0/mu/conv1/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def set_aside(folder: Path) -> Path:
    """Renames a damaged step to a name that no listing takes for a step."""
    target = folder.with_name(f"{folder.name}.corrupt")
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}.corrupt{number}")
    return folder.rename(target)


def _problem(folder: Path, *, full: bool) -> str | None:
    try:
        manifest = read_manifest(folder)
        if full:
            verify(folder, manifest)
    except Damaged as error:
        return str(error)
    return None


def _check_leaves(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Orbax would cast types and leave out leaves silently."""
    expected = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in wanted.items()}
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise UserError(
                f"{folder}: is a checkpoint of another model: {name} is {_shape(found.get(name))} there and "
                f"{_shape(expected.get(name))} here; use the run's own recipe"
            )


def _shape(entry: Any) -> str:
    return "absent" if entry is None else f"{entry[1]}[{', '.join(map(str, entry[0]))}]"
