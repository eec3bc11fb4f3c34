"""A folder of images, one folder a class: `root/class/*.jpg`, or `root/train/class/...` and `root/val/class/...`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pcls.data.decode import DecodeError, decode
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.source import CropRng, Records
from pcls.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
EVALUATION_FOLDERS = ("val", "validation", "valid", "test")


class FolderSource:
    """Image files with labels; read and decoded when asked for."""

    def __init__(self, root: Path, files: list[str], labels: np.ndarray, class_names: tuple[str, ...]):
        self.root = root
        self.files = files
        self.labels = labels
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.files)

    def name(self, record: int) -> str:
        """The file's path."""
        return str(self.root / self.files[record])

    def read(self, records: np.ndarray, preprocessing: Preprocessing, rng: CropRng) -> Records:
        """Decodes the files; one that fails comes out as zeros, not decoded."""
        shape = (len(records), preprocessing.height, preprocessing.width, preprocessing.channels)
        images = np.zeros(shape, np.uint8)
        decoded = np.zeros(len(records), bool)
        for index, record in enumerate(records):
            try:
                data = (self.root / self.files[record]).read_bytes()
                images[index] = decode(data, preprocessing, rng(index) if rng else None)
                decoded[index] = True
            except (OSError, DecodeError):
                # Weight 0 downstream: counted and named there by `failure`, and limited.
                continue
        return Records(images, self.labels[records], decoded)

    def failure(self, record: int, preprocessing: Preprocessing) -> str:
        """Decodes once more for the reason; rare, so that batches need not carry texts."""
        try:
            decode((self.root / self.files[record]).read_bytes(), preprocessing)
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        except DecodeError as error:
            return f"cannot be decoded ({error})"
        return "could not be decoded before, and can be now"


def open_folder(root: Path) -> tuple[FolderSource, FolderSource | None]:
    """Opens a folder of classes.

    Returns:
      The training files, and the evaluation files where the folder has such a part beside `train`.

    Raises:
      UserError: missing, no images, one class only, a class without images, parts that disagree on the classes.
    """
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; data.path needs the folder that holds one folder a class")
    if not (root / "train").is_dir():
        return _scan(root), None
    train = _scan(root / "train")
    for name in EVALUATION_FOLDERS:
        if (root / name).is_dir():
            evaluation = _scan(root / name)
            if evaluation.class_names != train.class_names:
                odd = sorted(set(evaluation.class_names) ^ set(train.class_names))
                raise UserError(f"{root}: train and {name} differ in the classes {', '.join(odd)}; both need the same")
            return train, evaluation
    return train, None


def _scan(root: Path) -> FolderSource:
    # Lexical, as torchvision orders; the order is saved with the weights.
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files: list[str] = []
    labels: list[int] = []
    empty = []
    for label, name in enumerate(names):
        found = sorted(_image_files(root, name))
        files += found
        labels += [label] * len(found)
        if not found:
            empty.append(name)
    if not files:
        raise UserError(f"{root}: no {', '.join(EXTENSIONS)} files in folders below it; one folder a class is needed")
    if empty:
        raise UserError(f"{root}: no images in the class folder {empty[0]!r}; fill or remove it")
    if len(names) < 2:
        raise UserError(f"{root}: only one class, {names[0]!r}; a classifier needs two or more class folders")
    return FolderSource(root, files, np.asarray(labels, np.int32), tuple(names))


def _image_files(root: Path, name: str) -> Iterator[str]:
    for folder, folders, entries in os.walk(root / name):
        # Hidden folders hold thumbnails and checkpoints of other programs.
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        for entry in entries:
            if entry.lower().endswith(EXTENSIONS) and not entry.startswith("."):
                yield str(Path(folder, entry).relative_to(root))
