"""Sets that fit in memory as one uint8 array: the embedded digits, and the idx files of the MNIST family."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.source import CropRng, Records
from pcls.errors import UserError

IDX_UINT8 = 0x08
MAX_IDX_BYTES = 1 << 34


class ArraySource:
    """Images in memory.

    Args:
      images: [n, height, width, channels] uint8.
      labels: [n] int32.
      class_names: in label order.
      title: what `name` puts before a record's number.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], title: str):
        self.images = images
        self.labels = labels.astype(np.int32)
        self.class_names = class_names
        self._title = title

    def __len__(self) -> int:
        return len(self.images)

    def name(self, record: int) -> str:
        """`<title> #<record>`."""
        return f"{self._title} #{record}"

    def read(self, records: np.ndarray, preprocessing: Preprocessing, rng: CropRng) -> Records:
        """Copies the records out; the array was brought to the model's size when the set was opened."""
        return Records(self.images[records], self.labels[records], np.ones(len(records), bool))

    def failure(self, record: int, preprocessing: Preprocessing) -> str:
        """Never asked: pixels in memory are always decoded."""
        raise ValueError(f"record {record} is in memory")

    def resized(self, height: int, width: int, channels: int) -> ArraySource:
        """The same records at another size (bilinear) and channel count."""
        if self.images.shape[1:] == (height, width, channels):
            return self
        mode = "L" if channels == 1 else "RGB"
        images = np.empty((len(self), height, width, channels), np.uint8)
        for index, pixels in enumerate(self.images):
            image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
            resized = image.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
            images[index] = np.asarray(resized).reshape(height, width, channels)
        return ArraySource(images, self.labels, self.class_names, self._title)


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


def open_idx(folder: Path, split: str, known_classes: int = 0) -> ArraySource:
    """Reads one split of an MNIST-like folder.

    Args:
      folder: holds `<split>-images-idx3-ubyte` and `<split>-labels-idx1-ubyte`, gzipped or not.
      split: `train` or `t10k`.
      known_classes: how many another split has; this one may lack the last of them.

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
    names = tuple(map(str, range(max(known_classes, int(labels.max()) + 1))))
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
