"""Checkpoints copied elsewhere, so that a run can be gone on with from there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from pcls.atomic import atomic_write
from pcls.checkpoint.manifest import NAME, Damaged, Manifest, verify
from pcls.checkpoint.store import manifest_of, problem_of
from pcls.data.sources.remote import file_system, is_url, without_secrets
from pcls.errors import UserError, first_line
from pcls.run.checkpoints import no_such_step, saved_steps
from pcls.run.folder import RunFolder

# What makes a folder a run; it comes last.
RECIPE = "recipe.yaml"
# What `pcls resume` needs beside it and a checkpoint, and what it goes on writing.
BESIDE = ("preprocessing.json", "data.json", "origin.json", "status.json", "metrics.jsonl")

PIECE = 8 << 20


def copy_checkpoints(path: str | Path, target: str, *, step: int | None = None, every: bool = False) -> list[int]:
    """Copies steps of a run to another folder, with what it takes to resume there.

    A step is copied under another name, its digests are compared there, and only then it gets its own. Of a step that
    goes to a URL every file is read back, and its manifest comes last. What is there already and valid stays.

    Args:
      path: the run's folder.
      target: a path, or a URL that fsspec opens.
      step: which; None: the newest that is valid.
      every: all that are valid.

    Returns:
      The steps, ascending.

    Raises:
      UserError: there is no run or no valid step, the target lies in the run or holds another, or it cannot be written.
    """
    folder = RunFolder(path)
    folder.recipe()
    if not is_url(target) and Path(target).resolve().is_relative_to(folder.path.resolve()):
        raise UserError(f"{target}: lies in the run's own folder {path}; name a folder elsewhere")
    manifests = _valid_steps(folder, step, every)
    place = _Bucket(target) if is_url(target) else _Folder(Path(target))
    recipe = folder.recipe_file.read_bytes()
    with place.held():
        if place.read(RECIPE) not in (None, recipe):
            raise UserError(f"{place.name}: holds a run of another recipe; name another folder")
        for manifest in manifests:
            place.copy(folder.checkpoints / str(manifest.step), manifest)
        for name in BESIDE:
            if (folder.path / name).is_file():
                place.write(name, (folder.path / name).read_bytes())
        place.write(RECIPE, recipe)
    return [manifest.step for manifest in manifests]


def _valid_steps(folder: RunFolder, step: int | None, every: bool) -> list[Manifest]:
    steps = saved_steps(folder)
    if step is not None and step not in steps:
        raise no_such_step(folder, step, steps)
    found: list[Manifest] = []
    for each in reversed(steps if step is None else [step]):
        try:
            found.insert(0, manifest_of(folder.checkpoints / str(each), full=True))
        except Damaged as error:
            if step is not None:
                raise UserError(f"{folder.checkpoints / str(step)}: is damaged ({error}); name another step") from error
            continue
        if not every:
            break
    if not found:
        raise UserError(
            f"{folder.checkpoints}: there is no valid step to copy; see: pcls checkpoints verify {folder.path}"
        )
    return found


class _Folder:
    """A target on this machine."""

    def __init__(self, path: Path):
        self.name = str(path)
        self._run = RunFolder(path)

    def held(self) -> AbstractContextManager[None]:
        """Nobody else writes there meanwhile."""
        return self._run.locked()

    def read(self, name: str) -> bytes | None:
        """A file at the top, or None."""
        path = self._run.path / name
        return path.read_bytes() if path.is_file() else None

    def write(self, name: str, data: bytes) -> None:
        """Writes a file at the top, whole or not at all."""
        atomic_write(self._run.path / name, data)

    def copy(self, source: Path, manifest: Manifest) -> None:
        """Copies a step."""
        target = self._run.checkpoints / source.name
        if target.exists():
            problem = problem_of(target, full=True)
            if problem is None:
                return
            raise UserError(f"{target}: is damaged ({problem}); remove it, then copy again")
        part = target.with_name(f"{target.name}.copying")
        shutil.rmtree(part, ignore_errors=True)
        try:
            for name in (*manifest.files, NAME):
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, part / name)
            verify(part, manifest)
            part.rename(target)
        except (OSError, Damaged) as error:
            shutil.rmtree(part, ignore_errors=True)
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"{target}: could not be copied ({reason}); nothing of it is left there") from error


class _Bucket:
    """A target that fsspec opens. Objects there cannot be renamed together: the manifest makes a step one."""

    def __init__(self, url: str):
        self.name = without_secrets(url)
        self._fs, self._root = file_system(url.rstrip("/"))

    def held(self) -> AbstractContextManager[None]:
        """Object stores know no locks."""
        return nullcontext()

    def read(self, name: str) -> bytes | None:
        """A file at the top, or None."""
        with self._told():
            try:
                return bytes(self._fs.cat_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Writes a file; object stores show it whole or not at all."""
        path = f"{self._root}/{name}"
        with self._told():
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(path, data)

    def copy(self, source: Path, manifest: Manifest) -> None:
        """Copies a step."""
        step = f"checkpoints/{source.name}"
        own = (source / NAME).read_bytes()
        if self.read(f"{step}/{NAME}") == own:
            return
        for name, file in manifest.files.items():
            path = f"{self._root}/{step}/{name}"
            with self._told():
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(source / name), path)
                if self._digest(path) != file.sha256:
                    raise UserError(f"{self.name}/{step}/{name}: reads back otherwise than it was written; copy again")
        self.write(f"{step}/{NAME}", own)

    def _digest(self, path: str) -> str:
        found = hashlib.sha256()
        with self._fs.open(path, "rb") as file:
            while piece := file.read(PIECE):
                found.update(piece)
        return found.hexdigest()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            # Whatever a store's client raises, of the network or of rights.
            raise UserError(f"{self.name}: cannot be written ({without_secrets(first_line(error))})") from error
