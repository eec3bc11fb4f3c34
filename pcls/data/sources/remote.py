"""Images in object stores (`gs://`, `s3://`) and whatever else fsspec opens by a URL, kept on the node once fetched."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
import numpy as np

from pcls.data.sources.cache import cache_key, kept, not_writable
from pcls.data.sources.folder import (
    EVALUATION_FOLDERS,
    MAX_FILE_BYTES,
    check_same_classes,
    class_files,
    is_image,
    shown,
)
from pcls.data.sources.source import ImageSource, Stored, Unreadable
from pcls.data.sources.targets import LabelSets
from pcls.errors import UserError

T = TypeVar("T")

# The extra of pcls that brings what fsspec needs for a protocol.
EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}

# Few, for gcsfs and s3fs make about six of their own each time: without a network three of ours take 110 s on gs://.
ATTEMPTS = 3
FIRST_WAIT = 0.5
# What another attempt would not change.
NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
PERMANENT = (*NOT_THERE, UserError, ValueError, TypeError)

# Object stores answer after 20 to 100 ms, however small the image: many requests have to be under way.
AT_ONCE = 16
# Large files fill the line sooner.
DOWNLOADS = 4
PIECE = 8 << 20
UNKNOWN = -1


class ShortRead(Exception):
    """Fewer or more bytes came than the file has."""


def is_url(text: str) -> bool:
    """Whether this names a place that fsspec opens, rather than a path."""
    return "://" in text


def without_secrets(text: str) -> str:
    """A text that may hold URLs, fit to be shown: no user, password, query (signatures travel there) or line break."""
    return shown("::".join(map(_bare, text.split("::"))))


def _bare(text: str) -> str:
    # A secret key may hold a slash, which then does not end it.
    text = re.sub(r"://[^\s/@]*:[^\s@]*@|://[^\s/@]*@", "://", text)
    return re.sub(r"(://[^\s?#]*)[?#]\S*", r"\1", text)


def local_file(url: str, cache: Path) -> Path:
    """A file, downloaded unless the cache has it in the version that is there now.

    Args:
      url: any that fsspec knows.
      cache: the node's own; every process and thread may ask at once, and one of them downloads.

    Returns:
      The local file; its name ends as that of the URL.

    Raises:
      UserError: it is not there, cannot be fetched, or the disk is full; nothing half-written is left.
    """
    fs, path = file_system(url)
    about = _asked(url, lambda: {**fs.info(path), "version": fs.ukey(path)})
    if about["type"] == "directory":
        raise UserError(f"{without_secrets(url)}: is a folder; a file is needed")
    size = UNKNOWN if about["size"] is None else int(about["size"])
    name = re.sub(r"[^\w.-]", "_", path.rsplit("/", 1)[-1])[-80:]
    target = cache / "files" / f"{cache_key(url, size, about['version'])}-{name}"
    return kept(target, lambda part: _asked(url, partial(_download, fs, path, size, part)))


def local_folder(url: str, cache: Path, suffixes: tuple[str, ...]) -> Path:
    """A folder with the files of a remote one, each downloaded unless the cache has it in its present version.

    For sets of few large files that are read at random: shards, and what lies beside them.

    Args:
      url: of the folder.
      cache: the node's own.
      suffixes: endings of the files that are wanted, at any depth.

    Returns:
      A folder of the cache that holds links to the files.

    Raises:
      UserError: there are no such files, they cannot be fetched, or the disk is full.
    """
    root = url.rstrip("/")
    fs, path = file_system(root)
    names = [name[len(path) + 1 :] for name in _asked(root, lambda: fs.find(path))]
    wanted = sorted(name for name in names if name.endswith(suffixes))
    if not wanted:
        raise UserError(f"{without_secrets(root)}: holds no files that end in {', '.join(suffixes)}")
    if odd := next((name for name in wanted if ".." in name.split("/")), None):
        raise UserError(f"{without_secrets(root)}: {shown(odd)!r} leads out of the folder; rename it")
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        files = list(pool.map(lambda name: local_file(f"{root}/{name}", cache), wanted))
    # Another version of a file has another name in the cache, and makes another folder.
    target = cache / "folders" / cache_key(*wanted, *files)
    return kept(target, partial(_link, dict(zip(wanted, files, strict=True))))


def _link(files: Mapping[str, Path], folder: Path) -> None:
    for name, file in files.items():
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())


def open_remote_manifest(
    url: str, cache: Path, sets: LabelSets | None = None
) -> tuple[ImageSource, ImageSource | None]:
    """Opens a manifest by its URL; the paths in it start at its folder.

    Args:
      url: of a .csv, .tsv or .parquet file.
      cache: where the manifest and its images are kept.
      sets: as `open_manifest` takes it.

    Raises:
      UserError: it cannot be fetched; or the row, and what is wrong with it.
    """
    # Here: the worker processes that read the images need no Arrow.
    from pcls.data.sources.manifest import read_manifest

    manifest = read_manifest(local_file(url, cache), without_secrets(url), cache, absolute=False, sets=sets)
    root = url.partition("?")[0].rpartition("/")[0]
    return manifest.sources(lambda part: RemoteFileStore(root, part.files, part.labels, cache))


def open_remote_folder(url: str, cache: Path) -> tuple[ImageSource, ImageSource | None]:
    """Opens a folder of classes by its URL, with the layouts of a local one.

    It is listed once; the list stays in the cache (`lists/`), also when images are added later: remove it then.

    Args:
      url: of the folder.
      cache: where the list and the images are kept.

    Returns:
      The training files, and the evaluation files where the folder has such a part beside `train`.

    Raises:
      UserError: it cannot be listed, or holds no classes to learn.
    """
    root = url.rstrip("/")
    parts = json.loads(kept(cache / "lists" / f"{cache_key(root)}.json", partial(_write_list, root)).read_text())
    train, *evaluation = (_part_source(root, name, found, cache) for name, found in parts.items())
    return train, evaluation[0] if evaluation else None


# Part ("" where there is one only) -> class -> path below the part -> size.
Listing = Mapping[str, Mapping[str, Mapping[str, int]]]


def _write_list(url: str, target: Path) -> None:
    """Lists a folder and checks that it can be learned from: a list is kept only of one that can."""
    parts = _listing(url)
    where = without_secrets(url)
    classes = {part: class_files(_joined(where, part), _names(found)).class_names for part, found in parts.items()}
    for part, names in classes.items():
        check_same_classes(where, next(iter(classes.values())), part, names)
    target.write_text(json.dumps(parts))


def _part_source(url: str, part: str, found: Mapping[str, Mapping[str, int]], cache: Path) -> ImageSource:
    root = _joined(url, part)
    names, files, labels = class_files(without_secrets(root), _names(found))
    sizes = {file: size for of_class in found.values() for file, size in of_class.items()}
    store = RemoteFileStore(root, files, labels, cache, np.array([sizes[file] for file in files], np.int64))
    return ImageSource(store, names, labels)


def _names(found: Mapping[str, Mapping[str, int]]) -> dict[str, list[str]]:
    return {name: list(files) for name, files in found.items()}


def _joined(root: str, part: str) -> str:
    return f"{root}/{part}" if part else root


def _listing(url: str) -> Listing:
    fs, root = file_system(url)
    folders = _folders(url, fs, root)
    if "train" not in folders:
        return {"": _classes(url, fs, root, folders)}
    evaluation = next((name for name in EVALUATION_FOLDERS if name in folders), None)
    parts = ["train", evaluation] if evaluation else ["train"]
    return {part: _classes(url, fs, f"{root}/{part}", _folders(url, fs, f"{root}/{part}")) for part in parts}


def _folders(url: str, fs: Any, path: str) -> list[str]:
    entries = _asked(url, lambda: fs.ls(path, detail=True))
    names = [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory"]
    return sorted(name for name in names if not name.startswith("."))


def _classes(url: str, fs: Any, root: str, names: list[str]) -> dict[str, dict[str, int]]:
    """Class -> path of an image below `root` -> its size."""

    def images(name: str) -> dict[str, int]:
        found = _asked(url, lambda: fs.find(f"{root}/{name}", detail=True))
        sizes = {path[len(root) + 1 :]: info["size"] for path, info in found.items()}
        return {
            path: UNKNOWN if size is None else int(size)
            for path, size in sizes.items()
            if is_image(path.rsplit("/", 1)[-1]) and "/." not in path
        }

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(names, pool.map(images, names), strict=True))


class RemoteFileStore:
    """Image files below a URL, fetched when first asked for and kept on the node.

    Args:
      url: of the folder.
      files: paths below it.
      labels: [n] int32.
      cache: where images are kept.
      sizes: [n] int64 bytes, -1 where unknown; a file that comes in another size is fetched again. None: unknown.
    """

    def __init__(
        self, url: str, files: Sequence[str], labels: np.ndarray, cache: Path, sizes: np.ndarray | None = None
    ):
        self.url = url
        self.files = files
        self._labels = labels
        self._cache = cache
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, records: Sequence[int]) -> list[Stored]:
        """Reads what the cache has, and fetches the rest, many at a time."""
        images: dict[int, bytes | Unreadable] = {}
        for record in records:
            if (data := self._kept_image(record)) is not None:
                images[record] = data
        if missing := sorted(set(records) - images.keys()):
            with ThreadPoolExecutor(min(AT_ONCE, len(missing))) as pool:
                images.update(zip(missing, pool.map(self._fetched, missing), strict=True))
        return [Stored(images[record], int(self._labels[record])) for record in records]

    def name(self, record: int) -> str:
        """The file's URL, without secrets."""
        return without_secrets(f"{self.url}/{self.files[record]}")

    def _size(self, record: int) -> int:
        return UNKNOWN if self._sizes is None else int(self._sizes[record])

    def _place(self, record: int) -> Path:
        # By number, not by name: names of objects may be longer than a file's, or lead out of the folder.
        key = cache_key(self.url, self.files[record], self._size(record))
        return self._cache / "images" / key[:2] / key[2:]

    def _kept_image(self, record: int) -> bytes | None:
        try:
            data = self._place(record).read_bytes()
        except OSError:
            return None
        return data if self._size(record) in (UNKNOWN, len(data)) else None

    def _fetched(self, record: int) -> bytes | Unreadable:
        try:
            fs, root = file_system(self.url)
            data = _persistently(partial(_whole, fs, f"{root}/{self.files[record]}", self._size(record)))
        # Each file system has its own exceptions; whichever it is, this image is not to be had.
        except Exception as error:
            return Unreadable(_reason(error))
        _keep_image(self._place(record), data)
        return data


def _keep_image(target: Path, data: bytes) -> None:
    """Writes an image to the cache; if that fails, it is fetched anew the next time, which only takes longer."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", delete=False) as part:
            try:
                part.write(data)
                part.flush()
                Path(part.name).rename(target)
            except OSError:
                Path(part.name).unlink()
                raise
    except OSError as error:
        warnings.warn(f"{not_writable(target.parent.parent, error)}; images are fetched in every epoch", stacklevel=2)


def _whole(fs: Any, path: str, size: int) -> bytes:
    # Asked for once, for the image then stays in the cache: whole, or it would be spoilt for good.
    size = fs.info(path)["size"] if size == UNKNOWN else size
    if size is not None and size > MAX_FILE_BYTES:
        raise ValueError(f"{size:,} bytes, more than {MAX_FILE_BYTES:,}")
    data: bytes = fs.cat_file(path)
    _check_size(len(data), size)
    return data


def _download(fs: Any, path: str, size: int, target: Path) -> None:
    try:
        _check_room(target.parent, size)
        file = target.open("wb")
    except OSError as error:
        raise not_writable(target.parent, error) from error
    with file, fs.open(path, "rb") as remote:
        written = 0
        while piece := remote.read(PIECE):
            _write(file, piece, target.parent)
            written += len(piece)
    _check_size(written, size)


def _check_room(folder: Path, size: int) -> None:
    if (free := shutil.disk_usage(folder).free) < size:
        raise UserError(
            f"{folder}: {size:,} bytes are to be written and {free:,} are free; "
            "make room there, or set PCLS_CACHE to another folder"
        )


def _write(file: BinaryIO, piece: bytes, folder: Path) -> None:
    try:
        file.write(piece)
        file.flush()
    except OSError as error:
        raise not_writable(folder, error) from error


def _check_size(found: int, size: int | None) -> None:
    if size not in (None, UNKNOWN, found):
        raise ShortRead(f"{found:,} of {size:,} bytes came")


def _persistently(ask: Callable[[], T]) -> T:
    """Asks up to three times, with longer and longer waits."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return ask()
        except PERMANENT:
            raise
        # Those of the network have no common type: aiohttp's, botocore's and gcsfs's are plain exceptions.
        except Exception:
            time.sleep(FIRST_WAIT * 2**attempt * random.uniform(0.5, 1.5))
    return ask()


def _asked(url: str, ask: Callable[[], T]) -> T:
    """The answer about a URL, or a UserError."""
    try:
        return _persistently(ask)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{without_secrets(url)}: cannot be fetched ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "No such file or directory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(without_secrets(str(error)).split())[:160]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
      UserError: the protocol is unknown, or its package is not installed.
    """
    return _file_system_of(url, os.getpid())


# One for all threads of a process (fsspec makes one for each thread, and keeps it), and never one from before a fork.
@lru_cache(16)
def _file_system_of(url: str, process: int) -> tuple[Any, str]:
    protocol = url.partition(":")[0]
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        way = f"pip install 'pcls[{extra}]'" if extra else str(error)
        what = f"{protocol}:// needs a package that is not installed"
        raise UserError(f"{without_secrets(url)}: {what}; {way}") from error
    except Exception as error:
        raise UserError(f"{without_secrets(url)}: cannot be opened ({_reason(error)})") from error
    return fs, path.rstrip("/")
