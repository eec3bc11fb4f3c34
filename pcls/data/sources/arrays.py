"""Sets of uint8 arrays: the embedded digits, the idx files of the MNIST family, and those that NumPy saved."""

from __future__ import annotations

import gzip
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, NoReturn, TypeVar

import numpy as np
from PIL import Image

from pcls.data.decode import convertible, image_of
from pcls.data.preprocessing import GREY, MAX_CHANNELS, RGB, Preprocessing
from pcls.data.sources.source import ImageSource, Records, Source, Stored, Unreadable
from pcls.data.sources.targets import check_size, rarest_labels
from pcls.errors import UserError

IDX_UINT8 = 0x08
MAX_IDX_BYTES = 1 << 34

# The arrays of an archive or a folder; the first two it must have.
ARRAYS = ("images", "labels", "class_names", "eval_images", "eval_labels")
PARTS = (("images", "labels"), ("eval_images", "eval_labels"))
MAX_NPZ_BYTES = 1 << 34
# Deflate packs no tighter: what claims more is damaged.
MAX_DEFLATE_RATIO = 1032
PIECE_BYTES = 1 << 24
# What NumPy raises beside ValueError where the header of a .npy file is no text of Python.
DAMAGED_HEADER = (tokenize.TokenError, SyntaxError)

S = TypeVar("S", bound=Source)
T = TypeVar("T")


class ArraySource:
    """Images in memory, all of one size.

    Args:
      images: [n, height, width, channels] uint8.
      labels: [n] int32; where records carry several [n, classes] uint8 of 0 and 1.
      class_names: in label order.
      title: what `name` puts before a record's number.
    """

    groups = None

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], title: str):
        self.images = images
        self.targets = labels if labels.ndim > 1 else None
        self.labels = labels.astype(np.int32) if labels.ndim == 1 else rarest_labels(labels)
        self.class_names = class_names
        self._title = title

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, records: Sequence[int]) -> list[Stored]:
        """The pixels, without a copy."""
        return [Stored(self.images[record], int(self.labels[record])) for record in records]

    def name(self, record: int) -> str:
        """`<title> #<record>`."""
        return f"{self._title} #{record}"

    def read(self, records: np.ndarray, preprocessing: Preprocessing, draws: np.ndarray | None) -> Records:
        """Copies the records out; the array was brought to the model's size when the set was opened."""
        return Records(self.images[records], self._answers[records], np.ones(len(records), bool))

    def failure(self, record: int, preprocessing: Preprocessing) -> str:
        """Never asked: pixels in memory are always decoded."""
        raise ValueError(f"record {record} is in memory")

    def chosen(self, records: np.ndarray) -> ArraySource:
        """Some of the records; numbered anew."""
        return ArraySource(self.images[records], self._answers[records], self.class_names, self._title)

    def resized(self, height: int, width: int, channels: int) -> ArraySource:
        """The same records at another size (bilinear); of grey ones RGB and back, other channels stay as they are."""
        stored = self.images.shape[-1]
        if self.images.shape[1:] == (height, width, channels):
            return self
        assert convertible(stored, channels)
        mode = "RGB" if channels == RGB else "L"
        # Of other numbers each channel by itself: Pillow resizes no more than four.
        parts = [slice(None)] if stored in (GREY, RGB) else [slice(c, c + 1) for c in range(stored)]
        images = np.empty((len(self), height, width, channels), np.uint8)
        for index, pixels in enumerate(self.images):
            for part in parts:
                image = image_of(pixels[..., part]).convert(mode).resize((width, height), Image.Resampling.BILINEAR)
                images[index, ..., part] = np.asarray(image).reshape(height, width, -1)
        return ArraySource(images, self._answers, self.class_names, self._title)

    @property
    def _answers(self) -> np.ndarray:
        return self.labels if self.targets is None else self.targets


def pixel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of x / 255 by channel, exact.

    Args:
      images: [n, height, width, channels] uint8.
    """
    values = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[-1]):
        shares = np.bincount(images[..., channel].ravel(), minlength=256) / images[..., channel].size
        mean = float(shares @ values)
        means.append(mean)
        # A set of one grey value has no deviation; 1 leaves it as it is instead of dividing by 0.
        deviations.append(math.sqrt(float(shares @ (values - mean) ** 2)) or 1.0)
    return tuple(means), tuple(deviations)


def open_digits() -> ArraySource:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey; they come with the package, so need no download."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return ArraySource(images, digits.target, tuple(map(str, range(10))), "digits")


def open_idx(folder: Path, split: str, class_names: tuple[str, ...] = ()) -> ArraySource:
    """Reads one split of an MNIST-like folder.

    Args:
      folder: holds `<split>-images-idx3-ubyte` and `<split>-labels-idx1-ubyte`, gzipped or not.
      split: `train` or `t10k`.
      class_names: of the first classes, of which this split may lack some; further ones are called by their numbers.

    Raises:
      UserError: missing, cut short, wrong magic number, or counts that disagree.
    """
    images_path = _idx_file(folder, f"{split}-images", "idx3")
    labels_path = _idx_file(folder, f"{split}-labels", "idx1")
    images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise UserError(f"{labels_path}: {len(labels):,} labels for {len(images):,} images in {images_path.name}")
    if not len(labels):
        raise UserError(f"{images_path}: holds no images")
    names = (*class_names, *map(str, range(len(class_names), int(labels.max()) + 1)))
    return ArraySource(images[..., None], labels, names, f"{folder.name} {split}")


def _idx_file(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{joint}{kind}-ubyte{ending}" for joint in "-." for ending in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: no file {names[0]} (or .gz); data.path needs the folder of the four idx files")


def read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """Reads a uint8 idx file, gzipped or not; the size is checked before memory is taken.

    Returns:
      An array with as many dimensions as the header must state.

    Raises:
      UserError: the file, and what is wrong with it.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            return _read_idx_body(file, path, dimensions)
    except EOFError as error:
        raise UserError(f"{path}: is cut short inside its gzip stream; copy it again") from error
    except (OSError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _read_idx_body(file: BinaryIO | gzip.GzipFile, path: Path, dimensions: int) -> np.ndarray:
    head = file.read(4 + 4 * dimensions)
    magic = bytes([0, 0, IDX_UINT8, dimensions])
    if head[:4] != magic:
        raise UserError(f"{path}: magic number {head[:4].hex()} instead of {magic.hex()}: this is no such idx file")
    if len(head) < 4 + 4 * dimensions:
        raise UserError(f"{path}: is cut short inside its header; copy it again")
    shape = struct.unpack(f">{dimensions}I", head[4:])
    size = math.prod(shape)
    if size > MAX_IDX_BYTES:
        raise UserError(f"{path}: its header claims {size:,} bytes, more than {MAX_IDX_BYTES:,}: it is damaged")
    # Read in pieces: a header that claims gigabytes must not take them before the bytes are seen to exist.
    body = bytearray()
    while len(body) <= size and (piece := file.read(min(1 << 24, size + 1 - len(body)))):
        body += piece
    if len(body) != size:
        found = f"more than {size:,}" if len(body) > size else f"only {len(body):,}"
        raise UserError(f"{path}: {found} of {size:,} bytes follow the header: cut short or damaged; copy it again")
    return np.frombuffer(body, np.uint8).reshape(shape)


class Header(NamedTuple):
    """What an .npy file says of its array.

    Attributes:
      shape: its sizes.
      dtype: of one value.
      start: bytes before the values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int

    @property
    def end(self) -> int:
        """Bytes of the whole file."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    @property
    def pixels(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        height, width, channels = (*self.shape[1:], 1)[:3]
        return height, width, channels


class PixelStore:
    """Images of one size in an .npy file; read when asked for, so that the file may be larger than memory.

    Args:
      path: the file.
      header: its own.
      labels: [n] int32.
    """

    def __init__(self, path: Path, header: Header, labels: np.ndarray):
        self._path = path
        self._header = header
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(self, records: Sequence[int]) -> list[Stored]:
        """Reads the pixels at their places in the file."""
        try:
            # By reading, not by a memory map: a file that is cut short under a map kills the process.
            with self._path.open("rb", buffering=0) as file:
                images: list[np.ndarray | Unreadable] = [self._pixels(file.fileno(), record) for record in records]
        except OSError as error:
            images = [Unreadable(error.strerror or str(error))] * len(records)
        return [Stored(image, int(self._labels[record])) for image, record in zip(images, records, strict=True)]

    def name(self, record: int) -> str:
        """`<file> #<record>`."""
        return f"{self._path} #{record}"

    def _pixels(self, descriptor: int, record: int) -> np.ndarray | Unreadable:
        size = math.prod(self._header.pixels)
        data = os.pread(descriptor, size, self._header.start + record * size)
        if len(data) < size:
            return Unreadable("the file was cut short")
        return np.frombuffer(data, np.uint8).reshape(self._header.pixels)


def open_arrays(
    path: Path, *, several: bool = False
) -> tuple[ArraySource | ImageSource, ArraySource | ImageSource | None]:
    """Opens arrays that NumPy saved: an .npz archive, held in memory; or a folder of .npy files, read when asked for.

    Their names: `images` ([n, height, width] or [n, height, width, channels] uint8) and `labels` ([n] integers); at
    choice `class_names` ([classes] text), and `eval_images` with `eval_labels`. Without names the classes are 0 to the
    largest label.

    Args:
      path: the archive or the folder.
      several: whether records carry several labels, or none: `labels` is then [n, classes], of 0 and 1.

    Returns:
      The records to train on, and those of `eval_images` where there are such.

    Raises:
      UserError: the file, the array, and what is wrong with it.
    """
    return _open_folder(path, several) if path.is_dir() else _open_npz(path, several)


def _open_npz(path: Path, several: bool) -> tuple[ArraySource, ArraySource | None]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; an .npz archive or a folder with images.npy is needed")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _known_arrays(path, {name.removesuffix(".npy"): name for name in archive.namelist()})
            headers = {name: member_header(path, archive, name, member) for name, member in members.items()}
            _check_headers(path, headers, several)
            arrays = {name: member_array(archive, members[name], header) for name, header in headers.items()}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason}); a whole .npz archive is needed") from error

    def source(images: str, labels: np.ndarray, names: tuple[str, ...]) -> ArraySource:
        pixels = arrays[images].reshape(-1, *headers[images].pixels)
        return ArraySource(pixels, labels, names, f"{path.name} {images}")

    return _sources(path, shaped(arrays, headers), source)


def _open_folder(folder: Path, several: bool) -> tuple[ImageSource, ImageSource | None]:
    files = _known_arrays(folder, {file.stem: file for file in sorted(folder.glob("*.npy"))})
    headers = {name: _file_header(file, name) for name, file in files.items()}
    _check_headers(folder, headers, several)
    arrays = {
        name: np.fromfile(files[name], header.dtype, offset=header.start)
        for name, header in headers.items()
        if not name.endswith("images")
    }

    def source(images: str, labels: np.ndarray, names: tuple[str, ...]) -> ImageSource:
        own = labels if labels.ndim == 1 else rarest_labels(labels)
        targets = None if labels.ndim == 1 else labels
        return ImageSource(PixelStore(files[images], headers[images], own), names, own, targets=targets)

    return _sources(folder, shaped(arrays, headers), source)


def shaped(arrays: Mapping[str, np.ndarray], headers: Mapping[str, Header]) -> dict[str, np.ndarray]:
    """The arrays of numbers in the shapes of their headers; images as they are."""
    return {
        name: array if name.endswith("images") else array.reshape(headers[name].shape) for name, array in arrays.items()
    }


def _sources(
    path: Path, arrays: Mapping[str, np.ndarray], source: Callable[[str, np.ndarray, tuple[str, ...]], S]
) -> tuple[S, S | None]:
    """The training part, and that for evaluation, made by `source` from the name of its images, labels, and classes."""
    names = class_names_of(path, arrays)
    checked = checked_targets if arrays["labels"].ndim > 1 else checked_labels
    train, *evaluation = (
        source(images, checked(path, labels, arrays[labels], len(names)), names)
        for images, labels in PARTS
        if labels in arrays
    )
    return train, evaluation[0] if evaluation else None


def _known_arrays(path: Path, found: Mapping[str, T]) -> dict[str, T]:
    if missing := [name for name in PARTS[0] if name not in found]:
        holds = ", ".join(list(found)[:20]) or "nothing"
        raise UserError(f"{path}: no array {missing[0]!r}; images and labels are needed, and it holds: {holds}")
    for name, other in (PARTS[1], PARTS[1][::-1]):
        if name in found and other not in found:
            raise UserError(f"{path}: {name} without {other}; add it, or leave both out")
    return {name: found[name] for name in ARRAYS if name in found}


def _file_header(path: Path, name: str) -> Header:
    try:
        with path.open("rb") as file:
            header = _header(path, name, file)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    _check_bytes(path, name, header, size)
    return header


def member_header(path: Path, archive: zipfile.ZipFile, name: str, member: str) -> Header:
    """What one array of an `.npz` archive holds, before memory is taken for it.

    Args:
      path: of the archive, for messages.
      archive: opened.
      name: of the array, for messages.
      member: of the archive.

    Raises:
      UserError: it is no array, holds objects, or claims more than the archive can hold or is read.
    """
    about = archive.getinfo(member)
    with archive.open(about) as file:
        header = _header(path, name, file)
    if header.end > MAX_NPZ_BYTES:
        way = "save the arrays as .npy files in a folder, which are read when asked for"
        raise UserError(f"{path}: {name} claims {header.end:,} bytes, more than {MAX_NPZ_BYTES:,}; {way}")
    # The archive's word on sizes is no better than the header's: the bytes that are there bound both.
    bound = min(about.compress_size, path.stat().st_size) * MAX_DEFLATE_RATIO
    _check_bytes(path, name, header, min(about.file_size, bound))
    return header


def _header(path: Path, name: str, file: IO[bytes]) -> Header:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
    except (ValueError, *DAMAGED_HEADER) as error:
        raise UserError(f"{path}: {name} is no .npy array ({' '.join(str(error).split())[:120]})") from error
    if min(shape, default=0) < 0:
        raise UserError(f"{path}: {name} is no .npy array (its header claims the shape {list(shape)})")
    if dtype.hasobject:
        raise UserError(f"{path}: {name} holds Python objects, which are never loaded; save it as numbers or text")
    if is_fortran and len(shape) > 1:
        raise UserError(f"{path}: {name} is in Fortran order; save numpy.ascontiguousarray({name})")
    return Header(shape, dtype, file.tell())


def _check_bytes(path: Path, name: str, header: Header, size: int) -> None:
    if size != header.end:
        raise UserError(
            f"{path}: {name} has {size:,} bytes and its header claims {header.end:,}: "
            "cut short or damaged; save it again"
        )


def member_array(archive: zipfile.ZipFile, member: str, header: Header) -> np.ndarray:
    """The numbers of one array, without its shape: [values] of the header's type."""
    # Pages of an empty array are taken only as bytes arrive.
    array = np.empty(header.end - header.start, np.uint8)
    filled = 0
    with archive.open(member) as file:
        file.read(header.start)
        # To its end, where the archive's checksum is compared.
        while piece := file.read(PIECE_BYTES):
            array[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
    return array.view(header.dtype)


def _check_headers(path: Path, headers: Mapping[str, Header], several: bool = False) -> None:
    def fail(name: str, what: str) -> NoReturn:
        raise UserError(f"{path}: {name} {what}")

    for images, labels in PARTS:
        if images in headers:
            _check_images(headers[images], partial(fail, images))
            check = _check_label_sets if several else _check_labels
            check(headers[labels], headers[images].shape[0], partial(fail, labels))
            if several:
                check_size(f"{path}: {labels}", *headers[labels].shape)
    names = headers.get("class_names")
    if names and (names.dtype.kind != "U" or not names.dtype.itemsize or len(names.shape) != 1):
        fail("class_names", f"is {names.dtype} of shape {list(names.shape)}; text of shape [classes] is needed")


def _check_images(header: Header, fail: Callable[[str], NoReturn]) -> None:
    if header.dtype != np.uint8:
        fail(f"is {header.dtype}; uint8, from 0 to 255, is needed")
    if len(header.shape) not in (3, 4):
        fail(f"has the shape {list(header.shape)}; [n, height, width] or [n, height, width, channels] is needed")
    if not all(header.shape):
        fail(f"has the shape {list(header.shape)}: it holds no images")
    if header.shape[1] in (GREY, RGB) and header.pixels[2] > RGB:
        fail(f"has the shape {list(header.shape)}; channels come last: save images.transpose(0, 2, 3, 1)")
    if header.pixels[2] > MAX_CHANNELS:
        fail(f"has the shape {list(header.shape)}; the last size is that of the channels, {MAX_CHANNELS} at most")


def _check_labels(header: Header, images: int, fail: Callable[[str], NoReturn]) -> None:
    if header.dtype.kind not in "iu":
        fail(f"is {header.dtype}; whole numbers are needed")
    if len(header.shape) != 1:
        more = "; where records carry several labels write data.labels=several" if len(header.shape) == 2 else ""
        fail(f"has the shape {list(header.shape)}; [n] is needed{more}")
    if header.shape[0] != images:
        fail(f"has {header.shape[0]:,} values for {images:,} images")


def _check_label_sets(header: Header, images: int, fail: Callable[[str], NoReturn]) -> None:
    if header.dtype.kind not in "iub":
        fail(f"is {header.dtype}; whole numbers, 0 or 1, or bool are needed")
    if len(header.shape) != 2:
        fail(f"has the shape {list(header.shape)}; [n, classes] is needed with data.labels=several")
    if header.shape[1] < 2:
        fail(f"has the shape {list(header.shape)}; two classes or more are needed: yes or no is data.labels=one")
    if header.shape[0] != images:
        fail(f"has {header.shape[0]:,} rows for {images:,} images")


def class_names_of(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Those of the array `class_names`; without it 0 to the largest of `labels`, or to the last of their columns.

    Raises:
      UserError: a name is empty or comes twice, or the largest label is not below the number of records.
    """
    if "class_names" not in arrays:
        labels = arrays["labels"]
        if labels.ndim > 1:
            return tuple(map(str, range(labels.shape[1])))
        record = int(labels.argmax())
        if int(labels[record]) >= len(labels):
            raise UserError(
                f"{path}: labels has {labels[record]:,} at record {record:,}, and only {len(labels):,} records; "
                "classes are numbered from 0 without gaps"
            )
        return tuple(map(str, range(int(labels[record]) + 1)))
    names: tuple[str, ...] = tuple(arrays["class_names"].tolist())
    if len(set(names)) < len(names) or not all(map(str.strip, names)):
        raise UserError(f"{path}: class_names has an empty name, or one twice; each class needs a name of its own")
    return names


def checked_labels(path: Path, name: str, labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels as [n] int32.

    Raises:
      UserError: one is not in 0 to classes - 1.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        label, record = int(labels[wrong[0]]), int(wrong[0])
        raise UserError(f"{path}: {name} has {label:,} at record {record:,}; the classes are 0 to {classes - 1:,}")
    return labels.astype(np.int32)


def checked_targets(path: Path, name: str, labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels of records that carry several, as [n, classes] uint8.

    Raises:
      UserError: there are not as many columns as classes, or a value is not 0 or 1.
    """
    if labels.shape[1] != classes:
        raise UserError(f"{path}: {name} has {labels.shape[1]:,} columns for {classes:,} classes; one each is needed")
    wrong = np.argwhere((labels != 0) & (labels != 1))
    if len(wrong):
        record, column = map(int, wrong[0])
        raise UserError(f"{path}: {name} has {labels[record, column]:,} at record {record:,}, class {column:,}; 0 or 1")
    return labels.astype(np.uint8)
