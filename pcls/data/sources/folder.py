"""A folder of images, one folder a class: `root/class/*.jpg`, or `root/train/class/...` and `root/val/class/...`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pcls.data.sources.source import ImageSource, Stored, Unreadable
from pcls.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
EVALUATION_FOLDERS = ("val", "validation", "valid", "test")

# A picture of the largest size that is decoded, uncompressed and with 16 bits in four channels, has 800 MB.
MAX_FILE_BYTES = 1 << 30


class FileStore:
    """Image files below a folder; read when asked for.

    Args:
      root: the folder. A link below it must not lead out of it.
      files: paths below it; or absolute ones, which may lie and lead anywhere.
      labels: [n] int32.
    """

    def __init__(self, root: Path, files: Sequence[str], labels: np.ndarray):
        self.root = root
        self.files = files
        self._labels = labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, records: Sequence[int]) -> list[Stored]:
        """Reads the files one after the other; threads read side by side."""
        return [Stored(self._bytes(record), int(self._labels[record])) for record in records]

    def name(self, record: int) -> str:
        """The file's path; fit to be shown."""
        return shown(str(self.root / self.files[record]))

    def _bytes(self, record: int) -> bytes | Unreadable:
        name = self.files[record]
        try:
            if name.startswith("/"):
                return read_file(name, within=None)
            return read_file(f"{self.root}/{name}", within=self.root)
        except OSError as error:
            return Unreadable(error.strerror or str(error))
        # A name out of a manifest may hold a zero byte.
        except ValueError as error:
            return Unreadable(str(error))


def read_file(path: str, within: Path | None) -> bytes | Unreadable:
    """The bytes of a regular file of a bearable size.

    Asked for every image: through a Path it takes five times as long.

    Args:
      path: of the file.
      within: the folder that no link may lead out of; None: any may.

    Raises:
      OSError: it is not there, or cannot be read.
    """
    status = os.lstat(path)
    is_link = stat.S_ISLNK(status.st_mode)
    if is_link:
        status = Path(path).stat()
    if within is not None and (
        _is_outside(within, path) if is_link else _folder_is_outside(within, path.rpartition("/")[0])
    ):
        return Unreadable("is a link that leads out of the folder")
    # A pipe or a device would be waited for without end, and whoever writes into it would see it opened.
    if not stat.S_ISREG(status.st_mode):
        return Unreadable("is no regular file")
    if status.st_size > MAX_FILE_BYTES:
        return Unreadable(f"{status.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read()


def shown(name: str) -> str:
    """A file's name in one line: what cannot be printed, a newline or a byte that is no text, is written as escape."""
    return name if name.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def _is_outside(root: Path, path: str) -> bool:
    return not Path(path).resolve().is_relative_to(root.resolve())


# Remembered: every folder on the way is looked at for it, and the files of a folder have the same way.
_folder_is_outside = lru_cache(1 << 14)(_is_outside)


class ClassFiles(NamedTuple):
    """The images of all classes.

    Attributes:
      class_names: lexical, as torchvision orders; the order is saved with the weights.
      files: paths below the root, class by class.
      labels: [n] int32.
    """

    class_names: tuple[str, ...]
    files: list[str]
    labels: np.ndarray


def class_files(where: str, found: Mapping[str, list[str]]) -> ClassFiles:
    """Numbers the classes and lists their files.

    Args:
      where: what messages call the folder.
      found: class folder -> paths of its images below the root.

    Raises:
      UserError: no images, one class only, a class without images.
    """
    names = sorted(found)
    numbered = numbered_files(found, names)
    if not numbered.files:
        raise UserError(f"{where}: no {', '.join(EXTENSIONS)} files in folders below it; one folder a class is needed")
    if empty := [name for name in names if not found[name]]:
        raise UserError(f"{where}: no images in the class folder {empty[0]!r}; fill or remove it")
    if len(names) < 2:
        raise UserError(f"{where}: only one class, {names[0]!r}; a classifier needs two or more class folders")
    return numbered


def numbered_files(found: Mapping[str, list[str]], names: list[str]) -> ClassFiles:
    """The files of classes, numbered in the order of `names`; a class may have none."""
    files = [file for name in names for file in sorted(found.get(name, []))]
    labels = np.repeat(np.arange(len(names), dtype=np.int32), [len(found.get(name, [])) for name in names])
    return ClassFiles(tuple(names), files, labels)


def check_same_classes(where: str, train: Sequence[str], part: str, evaluation: Sequence[str]) -> None:
    """Raises a UserError where `train` and the evaluation part have not the same classes."""
    sides = {"train": sorted({*train} - {*evaluation}), part: sorted({*evaluation} - {*train})}
    if not any(sides.values()):
        return
    only = ", ".join(f"only {side} has {', '.join(map(repr, names))}" for side, names in sides.items() if names)
    likely = {name.casefold(): name for name in sides["train"]}
    pairs = [(likely[name.casefold()], name) for name in sides[part] if name.casefold() in likely]
    case = "".join(f"; {one!r} and {other!r} differ in capital letters only" for one, other in pairs[:1])
    raise UserError(f"{where}: {only}{case}; both need the same classes: rename the folders, fill them or remove them")


def is_image(name: str) -> bool:
    """Whether a file counts, by its name. Hidden files are thumbnails and leftovers of other programs."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def open_folder(root: Path) -> tuple[ImageSource, ImageSource | None]:
    """Opens a folder of classes.

    Returns:
      The training files, and the evaluation files where the folder has such a part beside `train`.

    Raises:
      UserError: missing, no images, one class only, a class without images, parts that disagree on the classes.
    """
    train, *others = [(part, class_files(str(part), _found(part))) for part in set_parts(root)]
    for part, classes in others:
        check_same_classes(str(root), train[1].class_names, part.name, classes.class_names)
    return _source(*train), _source(*others[0]) if others else None


def open_folder_as_it_is(root: Path) -> tuple[ImageSource, ImageSource | None]:
    """The same for who looks for what is wrong: classes may be empty, or stand in one part only.

    Raises:
      UserError: missing, or no images at all.
    """
    found = {part: _found(part) for part in set_parts(root)}
    names = sorted(set().union(*found.values()))
    train, *others = [_source(part, numbered_files(classes, names)) for part, classes in found.items()]
    if not len(train) and not any(map(len, others)):
        raise UserError(f"{root}: no {', '.join(EXTENSIONS)} files in folders below it; one folder a class is needed")
    return train, others[0] if others else None


def set_parts(root: Path) -> list[Path]:
    """The folder itself; or that of training, and that of evaluation if there is one.

    Raises:
      UserError: there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; data.path needs the folder that holds one folder a class")
    if not (root / "train").is_dir():
        return [root]
    return [root / "train", *[root / name for name in EVALUATION_FOLDERS if (root / name).is_dir()][:1]]


def _found(root: Path) -> dict[str, list[str]]:
    """Class folder -> paths of its images."""
    try:
        return {name: list(_images_below(root, name)) for name in class_folders(root)}
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from error


def _source(root: Path, classes: ClassFiles) -> ImageSource:
    return ImageSource(FileStore(root, classes.files, classes.labels), classes.class_names, classes.labels)


def class_folders(root: Path) -> list[str]:
    """The names of the folders in a folder, without hidden ones.

    Raises:
      UserError: a link leads out of the folder.
      OSError: it cannot be listed.
    """
    with os.scandir(root) as entries:
        # By Path: an entry's own is_dir raises where a link leads to itself.
        folders = [entry for entry in entries if Path(entry.path).is_dir() and not entry.name.startswith(".")]
    for folder in folders:
        # Told here, once: every single image in it would be unreadable.
        if folder.is_symlink() and _is_outside(root, folder.path):
            raise UserError(
                f"{folder.path}: is a link that leads out of the folder; "
                "copy the class here, or list its files in a manifest, by absolute paths"
            )
    return [folder.name for folder in folders]


def _images_below(root: Path, name: str) -> Iterator[str]:
    """Paths below the root of a class folder's images, at any depth; links to folders are not followed."""
    folders = [name]
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    # Hidden folders hold thumbnails and checkpoints of other programs.
                    folders += [] if entry.name.startswith(".") else [f"{folder}/{entry.name}"]
                elif is_image(entry.name) and not (entry.is_symlink() and Path(entry.path).is_dir()):
                    yield f"{folder}/{entry.name}"
