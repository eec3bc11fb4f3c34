"""The checkpoints of a run, one folder a step.

Orbax writes the arrays; which steps exist, which of them count, and which are kept is decided here. A step counts when
its manifest, written last, agrees with its files. Nothing damaged is deleted: it is renamed aside and named.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from orbax.checkpoint.experimental import v1 as ocp

from pcls.checkpoint.filesystem import Commit, commit_for
from pcls.checkpoint.leaves import stored_leaves
from pcls.checkpoint.manifest import Damaged, Leaf, Manifest, leaf_of, read_manifest, verify, write_manifest
from pcls.checkpoint.retention import Retention
from pcls.errors import RestartRequested, UserError

Tree = TypeVar("Tree")

HALF = ".orbax-checkpoint-tmp"


class NotSaved(UserError):
    """The disk refused a checkpoint; `reason` says why, and what to do."""

    def __init__(self, folder: Path, reason: str):
        self.folder, self.reason = folder, reason
        super().__init__(f"{folder}: a checkpoint could not be written; {reason}, then resume from the last one")


class CheckpointStore:
    """Saves and restores a pytree of arrays.

    Args:
      folder: holds one folder a step; made when first needed.
      warn: tells a person about a damaged step.
      agree: gives process 0's number to every process.
      retention: what is kept after each save.
      about: what every manifest says of where its step comes from.
      commit: how a save becomes a step; `auto`: by the folder's file system.
    """

    def __init__(
        self,
        folder: Path,
        *,
        warn: Callable[[str], None],
        agree: Callable[[int], int],
        retention: Retention | None = None,
        about: Mapping[str, Any] | None = None,
        commit: Commit | Literal["auto"] = "auto",
    ):
        # Orbax wants absolute paths.
        self.folder = folder.absolute()
        self._warn = warn
        self._agree = agree
        self._retention = retention or Retention()
        self._about = about or {}
        self._commit = commit
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._half: list[Path] = []

    def save(self, step: int, tree: Any, *, score: float | None = None) -> None:
        """Starts saving; returns when the arrays are copied off the devices. `poll` or `wait` tell of a failure.

        Args:
          step: its number; by it, and no clock, steps are ordered.
          tree: its arrays may be given up as soon as this returns.
          score: of the evaluation at this step, if there was one.

        Raises:
          NotSaved: the disk refused (full, read-only), now or at the save before; older steps are as they were.
        """
        self.wait()
        leaves = named_leaves(tree)
        kinds = {name: Leaf(tuple(leaf.shape), str(leaf.dtype)) for name, leaf in leaves.items()}
        with _disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                # Orbax would find out half-way, and leave a coroutine behind that never ran.
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if jax.process_index() == 0:
                self._make_way(self.folder / str(step))
            with self._committing():
                response = ocp.save_async(self.folder / str(step), leaves)
        self._pending = self._finisher.submit(self._finish, response, step, kinds, score)

    def poll(self) -> None:
        """Raises what went wrong with the save under way, if it has ended; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

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
        """As `steps_in`."""
        return steps_in(self.folder)

    def restore(self, like: Tree, *, rename: bool = True, before: int | None = None) -> tuple[Tree, int] | None:
        """Loads the newest step that proves valid; damaged ones are named and renamed aside.

        Args:
          like: a pytree of shapes with types and shardings, into which the arrays are read.
          rename: False for one who only reads: what looks damaged may be the save under way of a live run.
          before: only steps below this number; with `rename`, those that are newer than the one found are renamed aside
            too: the run goes another way from there. None: any.

        Returns:
          The tree and its step, or None where there is no valid step.

        Raises:
          UserError: the step holds another model's or optimizer's arrays.
          RestartRequested: its files are as they were written, and other arrays came of them.
        """
        # Process 0 decides, so that no two processes load different steps.
        step = self._agree(self._newest_valid(rename, before) if jax.process_index() == 0 else 0)
        if step < 0:
            return None
        folder = self.folder / str(step)
        wanted = named_leaves(like)
        found = read_manifest(folder).leaves
        _check_leaves(folder, found, wanted)
        loaded = ocp.load(folder, wanted)
        for name in wanted:
            _check_loaded(folder, name, loaded[name], found[name])
        return jax.tree.unflatten(jax.tree.structure(like), [loaded[name] for name in wanted]), step

    def _make_way(self, folder: Path) -> None:
        """A cut-off save of the same step is set aside; FileExistsError where it is a valid step."""
        if folder.exists():
            problem = problem_of(folder, full=False)
            if problem is None:
                raise FileExistsError(errno.EEXIST, f"{folder.name} is a valid step already")
            self._warn(f"checkpoint step {folder.name} is damaged ({problem}); kept as {set_aside(folder).name}")
        self._half = [half for half in self._half if half.name.removesuffix(HALF) != folder.name]

    @contextmanager
    def _committing(self) -> Iterator[None]:
        """Orbax's way of making a save a step, chosen here: its own choice goes by the path's beginning alone."""
        commit = commit_for(self.folder) if self._commit == "auto" else self._commit
        modes = ocp.options.AtomicityMode
        context = ocp.Context()
        context.atomicity.mode = modes.COMMIT_FILE if commit == "marker" else modes.ATOMIC_RENAME
        # Where a folder cannot be made in the background, Orbax's other threads wait 20 minutes for it, and the process
        # with them when it ends.
        context.asynchronous.create_directories_asynchronously = False
        with context:
            yield

    def _finish(self, response: Any, step: int, kinds: dict[str, Leaf], score: float | None) -> None:
        folder = self.folder / str(step)
        try:
            response.result()
        except BaseException:
            # What a failed save leaves behind is no step, and fills the disk that may have been the reason.
            self._half += [folder.with_name(f"{step}{HALF}"), folder]
            self._discard_half_saves()
            raise
        if jax.process_index() != 0:
            return
        try:
            # Read back: a step that cannot be read is none, and is known as such while its successor can be made.
            leaves = stored_leaves(folder, kinds)
            write_manifest(folder, step, leaves, score=score, about=self._about)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, Damaged):
                raise OSError(errno.EIO, f"what was written reads back otherwise ({error})") from error
            raise
        prune(self.folder, self._retention)

    def _discard_half_saves(self) -> None:
        for folder in self._half:
            shutil.rmtree(folder, ignore_errors=True)

    def _newest_valid(self, rename: bool, before: int | None) -> int:
        """The newest step whose digests hold, or -1; damaged ones on the way are named, and set aside if wanted."""
        if rename and self.folder.is_dir():
            # Of killed saves; they were never steps.
            for half in self.folder.glob(f"*{HALF}"):
                shutil.rmtree(half, ignore_errors=True)
        damaged = []
        valid = -1
        for step in reversed(self.steps()):
            if before is not None and step >= before:
                continue
            problem = problem_of(self.folder / str(step), full=True)
            if problem is None:
                valid = step
                break
            kept = f", bad step kept as {set_aside(self.folder / str(step)).name}" if rename else ""
            damaged.append((step, problem, kept))
        verb = "resumed from" if rename else "read"
        for step, problem, kept in damaged:
            then = f"{verb} step {valid}" if valid >= 0 else "no earlier step is valid"
            self._warn(f"checkpoint step {step} is damaged ({problem}); {then}{kept}")
        if rename and before is not None and valid >= 0:
            for step in self.steps():
                if step > valid:
                    set_aside(self.folder / str(step), "left")
        return valid


def steps_in(folder: Path) -> list[int]:
    """The steps that have a folder, ascending; valid or not."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def manifest_of(folder: Path, *, full: bool) -> Manifest:
    """The manifest of a step, whose files have the right sizes, and if wanted digests; raises Damaged."""
    manifest = read_manifest(folder)
    if str(manifest.step) != folder.name:
        raise Damaged(f"its manifest is that of step {manifest.step}")
    if full:
        verify(folder, manifest)
    return manifest


def problem_of(folder: Path, *, full: bool) -> str | None:
    """What is wrong with a step, or None; sizes only, or digests too."""
    try:
        manifest_of(folder, full=full)
    except Damaged as error:
        return str(error)
    return None


def prune(folder: Path, retention: Retention, *, full: bool = False) -> list[int]:
    """Deletes the steps that are not kept, oldest first; returns them.

    Damaged steps stay where they are, and count for nothing: what is kept is valid.

    Args:
      folder: of all steps.
      retention: what to keep.
      full: whether a step counts by its digests, not only its sizes.
    """
    removed = prunable(folder, retention, full=full)
    for step in removed:
        shutil.rmtree(folder / str(step))
    return removed


def prunable(folder: Path, retention: Retention, *, full: bool = False) -> list[int]:
    """The steps that `prune` would delete."""
    scores = {}
    for step in steps_in(folder):
        try:
            scores[step] = manifest_of(folder / str(step), full=full).score
        except Damaged:
            continue
    kept = retention.reasons(scores)
    return [step for step in sorted(scores) if step not in kept]


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise when a disk refuses into one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        text = str(error)
        code = re.search(r"os_error_code='(\d+)'", text)
        number = int(code[1]) if code else getattr(error, "errno", None)
        if number == errno.ENOSPC or "No space left" in text:
            reason = "no space left on the disk: free some"
        elif code:
            reason = f"{os.strerror(int(code[1]))}: check the folder"
        elif isinstance(error, OSError):
            reason = f"{error.strerror or text}: check the folder"
        else:
            raise
        raise NotSaved(folder, reason) from error


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by name: `params/conv1/kernel`, `opt_state/0/mu/conv1/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def set_aside(folder: Path, why: str = "corrupt") -> Path:
    """Renames a step that is damaged, or that the run has left, to a name that no listing takes for a step."""
    target = folder.with_name(f"{folder.name}.{why}")
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}.{why}{number}")
    return folder.rename(target)


def _check_leaves(folder: Path, found: Mapping[str, Leaf], wanted: Mapping[str, Any]) -> None:
    """Orbax would cast types and leave out leaves silently."""
    here = {name: str(Leaf(tuple(leaf.shape), str(leaf.dtype))) for name, leaf in wanted.items()}
    there = {name: str(leaf) for name, leaf in found.items()}
    for name in [*here, *there]:
        if there.get(name) != here.get(name):
            raise UserError(
                f"{folder}: is a checkpoint of another model: {name} is {there.get(name, 'absent')} there and "
                f"{here.get(name, 'absent')} here; use the run's own recipe"
            )


def _check_loaded(folder: Path, name: str, leaf: jax.Array, expected: Leaf) -> None:
    """The last link between disk and device: what came of files whose digests hold."""
    array = _on_host(leaf)
    if array is not None and leaf_of(array) != expected:
        raise RestartRequested(
            f"{folder}: leaf {name} is not what was saved, though the files are: this machine's memory or disk is not "
            "to be trusted; resume once more, on another machine if you can"
        )


def _on_host(leaf: jax.Array) -> np.ndarray | None:
    """The whole array, or None where other processes hold parts of it."""
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    if not leaf.is_fully_addressable:
        return None
    # An array keeps the host copy that was once asked for, as long as it lives: of the whole state, while the run goes
    # on. This one is dropped.
    parts = [shard.data for shard in leaf.addressable_shards]
    return np.asarray(jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts))
