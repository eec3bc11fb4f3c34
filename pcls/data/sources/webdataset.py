"""Tar shards, as WebDataset writes them: indexed once, then read at random by offset, never unpacked.

A sample is an image and its label under one stem (`0001.jpg` and `0001.cls`); or an image in a folder of its class
(`cat/0001.jpg`). Source of the convention: https://github.com/webdataset/webdataset.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcls.data.sources.cache import cache_folder
from pcls.data.sources.folder import EVALUATION_FOLDERS, shown
from pcls.data.sources.source import ImageSource, Stored, Unreadable
from pcls.data.sources.tar_index import BY_NAME, BY_NUMBER, SPLITS, Index, cached_index, compressed
from pcls.errors import UserError

SPLIT_IN_NAME = re.compile(rf"(?:^|[-_.])({'|'.join(SPLITS)})(?=[-_.]|$)")
COMPRESSED = re.compile(r"\.(tgz|tbz2?|txz|tzst|tar\.\w+)$")
CLASS_FILES = ("classes.txt", "classes.json")
# Of a thousand that a process may have, by default.
MAX_OPEN_SHARDS = 128


class OpenShard:
    """A file descriptor that is closed when nobody holds it any more: no thread can be left with another's file."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardStore:
    """The images of indexed shards. Shards are opened when first read, anew in each process.

    Args:
      shards: the files.
      index: of them.
      labels: [n] int32.
    """

    def __init__(self, shards: Sequence[Path], index: Index, labels: np.ndarray):
        self._shards = shards
        self._index = index
        self._labels = labels
        self._open = functools.lru_cache(MAX_OPEN_SHARDS)(OpenShard)

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes no open file; mapped arrays go as plain ones."""
        index = Index(np.array(self._index.samples), np.array(self._index.names), self._index.classes)
        return ShardStore, (self._shards, index, self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(self, records: Sequence[int]) -> list[Stored]:
        """One `pread` a record: no position is shared, so threads read side by side."""
        return [Stored(self._bytes(record), int(self._labels[record])) for record in records]

    def name(self, record: int) -> str:
        """`<shard>/<member>`; fit to be shown."""
        return shown(f"{self._shards[self._index.samples['shard'][record]]}/{self._index.name(record)}")

    def _bytes(self, record: int) -> bytes | Unreadable:
        number, _, offset, size, _ = self._index.samples[record].tolist()
        try:
            # Held by name while it is read: of two threads that open a shard at once, the cache keeps one's.
            shard = self._open(self._shards[number])
            data = os.pread(shard.descriptor, size, offset)
        except OSError as error:
            return Unreadable(error.strerror or str(error))
        return data if len(data) == size else Unreadable("its shard was cut short after it was indexed")


def open_webdataset(path: Path, cache: Path | None = None) -> tuple[ImageSource, ImageSource | None]:
    """Opens a folder of tar shards, or one tar file.

    Args:
      path: a `.tar`; or a folder of them, whose names may say the split (`train-0001.tar`, `set-val-0001.tar`), or
        which has a folder a split. `classes.txt` (a name a line) or `classes.json` (a list) beside them names classes.
      cache: where indices are kept; None: $PCLS_CACHE, else ~/.cache/pcls.

    Returns:
      The training images, and those of the first of the splits val, validation, valid and test that is there.

    Raises:
      UserError: no shards, compressed or damaged ones, members that no shard should have, labels missing or wrong.
    """
    parts = _splits(path)
    cache = cache_folder() if cache is None else cache
    named = _named_classes([path, path / "train"] if path.is_dir() else [path.parent])
    index = cached_index(parts["train"], cache)
    train = _source(parts["train"], index, named, ())
    held_out = next((parts[split] for split in EVALUATION_FOLDERS if split in parts), None)
    if held_out is None:
        return train, None
    other = cached_index(held_out, cache)
    if (other.classes is None) != (index.classes is None):
        raise UserError(f"{held_out[0]}: {_said(other)}, and {_said(index)} in {parts['train'][0]}; one kind is needed")
    return train, _source(held_out, other, named, train.class_names)


def _said(index: Index) -> str:
    return BY_NUMBER if index.classes is None else BY_NAME


def _source(shards: list[Path], index: Index, named: tuple[str, ...], known: tuple[str, ...]) -> ImageSource:
    """`named` comes from a file beside the shards; `known` are the training set's classes, for another split."""
    labels = np.array(index.samples["label"])
    if index.classes is None:
        classes = named or tuple(map(str, range(max(len(known), int(labels.max()) + 1))))
        if labels.max() >= len(classes):
            sample = int(labels.argmax())
            where = f"{shards[index.samples['shard'][sample]]}: {index.name(sample)!r} has the label {labels[sample]}"
            raise UserError(f"{where}, and the classes file names {len(classes)} classes: 0 to {len(classes) - 1}")
    else:
        classes = named or known or index.classes
        unknown = sorted(set(index.classes) - set(classes))
        if unknown:
            place = "the classes file" if named else "the training shards"
            raise UserError(f"{shards[0]}: class {unknown[0]!r} is none of {place}; correct the label or add the class")
        label_of = {name: label for label, name in enumerate(classes)}
        labels = np.asarray([label_of[name] for name in index.classes], np.int32)[labels]
    return ImageSource(ShardStore(shards, index, labels), classes, labels)


def _named_classes(folders: list[Path]) -> tuple[str, ...]:
    """The names in the classes file; () where there is none."""
    files = [folder / name for folder in folders for name in CLASS_FILES if (folder / name).is_file()]
    if not files:
        return ()
    if len(files) > 1:
        raise UserError(f"{files[0]} and {files[1].name} both name classes; remove one")
    try:
        text = files[0].read_text(encoding="utf-8-sig")
        names = json.loads(text) if files[0].suffix == ".json" else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{files[0]}: cannot be read ({error}); a name a line, or a JSON list, is needed") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f"{files[0]}: is no list of class names, all of them text; they are needed in label order")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{files[0]}: names the class {twice!r} twice; each needs a name of its own")
    return tuple(names)


# Which shards.


def _splits(path: Path) -> dict[str, list[Path]]:
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path}: there is no such folder of .tar shards, nor such a .tar file")
        return {"train": _checked([path])}
    if (path / "train").is_dir():
        folders = {split: path / split for split in SPLITS if (path / split).is_dir()}
        return {split: _checked(_tar_files(folder)) for split, folder in folders.items()}
    shards = _checked(_tar_files(path))
    splits = [_split_of(shard) for shard in shards]
    if not any(splits):
        return {"train": shards}
    if "" in splits:
        odd = shards[splits.index("")]
        raise UserError(f"{odd}: its name says no split ({', '.join(SPLITS)}), and other shards' names do; rename it")
    if "train" not in splits:
        raise UserError(
            f"{path}: no shard has train in its name, as in train-0001.tar, and {shards[0].name} has another split's"
        )
    parts: dict[str, list[Path]] = {}
    for shard, split in zip(shards, splits, strict=True):
        parts.setdefault(split, []).append(shard)
    return parts


def _split_of(shard: Path) -> str:
    found = SPLIT_IN_NAME.search(shard.stem.lower())
    return found[1] if found else ""


def _tar_files(folder: Path) -> list[Path]:
    files = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".") and file.is_file()]
    shards = [file for file in files if file.suffix == ".tar" or COMPRESSED.search(file.name)]
    if not shards:
        raise UserError(f"{folder}: no .tar files in it; data.path needs the folder of the shards, or one .tar")
    return shards


def _checked(shards: list[Path]) -> list[Path]:
    for shard in shards:
        if COMPRESSED.search(shard.name):
            raise compressed(shard)
        if shard.suffix != ".tar":
            raise UserError(f"{shard}: is no .tar file; data.path needs the folder of the shards, or one .tar")
    return shards
