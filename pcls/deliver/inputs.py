"""From a file, its bytes or an array to what a model is shown of it."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pcls.data.decode import DecodeError, convertible, decode, fit_opened, fit_pixels
from pcls.data.preprocessing import GREY, RGB, Preprocessing, SequenceFeatures
from pcls.data.sources.arrays import DAMAGED_HEADER
from pcls.data.sources.audio import check_audio, log_mel
from pcls.data.sources.folder import read_file
from pcls.data.sources.source import Unreadable
from pcls.data.workers import usable_cores
from pcls.errors import first_line

# The path of a file, the content of one, numbers, or what Pillow has opened.
Picture = str | Path | bytes | np.ndarray | Image.Image

# Of files that small, and a model of images that small, reading is mostly Python, which two threads do not do at once:
# two read 0.8 times as many as one. Of larger ones they read up to twice as many.
TINY_BYTES, TINY_PIXELS = 2_048, 64 * 64


def reading_threads(pictures: Sequence[Picture], preprocessing: Preprocessing) -> int:
    """How many threads read such inputs fastest.

    Args:
      pictures: some of them, one or more.
      preprocessing: of the model.
    """
    if preprocessing.sequence is not None or preprocessing.height * preprocessing.width > TINY_PIXELS:
        return usable_cores()
    return 1 if np.mean([_size(picture) for picture in pictures]) <= TINY_BYTES else usable_cores()


def _size(picture: Picture) -> int:
    """Bytes of an input; 0 where there is no file, of which reading will tell."""
    if isinstance(picture, np.ndarray | Image.Image):
        return math.prod(picture.size) if isinstance(picture, Image.Image) else picture.nbytes
    if isinstance(picture, bytes):
        return len(picture)
    try:
        return os.stat(picture).st_size  # noqa: PTH116
    except (OSError, ValueError):
        return 0


def read_pixels(picture: Picture, preprocessing: Preprocessing) -> np.ndarray:
    """A picture at the size that a model sees.

    Args:
      picture: the path or the content of a JPEG, PNG or WebP file, a Pillow image, or uint8 [height, width] or [height,
        width, 1 or 3].
        For a model that sees other channels: the path or the content of a NPY file, or [height, width, channels].
      preprocessing: of the model.

    Returns:
      [height, width, channels] uint8.

    Raises:
      DecodeError: why it cannot be had, in a few words and without a path.
    """
    wanted = preprocessing.channels
    needed = f"uint8 [height, width{'] or [height, width, 1 or 3' if wanted in (GREY, RGB) else f', {wanted}'}]"
    if isinstance(picture, Image.Image):
        return fit_opened(picture, preprocessing)
    if not isinstance(picture, np.ndarray):
        data = _content(picture)
        if wanted in (GREY, RGB):
            return decode(data, preprocessing)
        picture = _npy_array(data, needed)
    pixels = picture[..., None] if picture.ndim == 2 else picture
    if pixels.dtype != np.uint8 or not pixels.size or pixels.ndim != 3 or not convertible(pixels.shape[2], wanted):
        raise DecodeError(f"{picture.dtype}{list(picture.shape)}; {needed}")
    return fit_pixels(pixels, preprocessing)


def read_steps(picture: Picture, features: SequenceFeatures, width: int, longest: int) -> np.ndarray:
    """A sequence as a model sees it.

    Args:
      picture: numbers [steps, width]; or the path or the content of a WAV file where the model was trained with sound,
        else of a NPY file.
      features: of the model.
      width: features of a step.
      longest: steps that it may have.

    Returns:
      [steps, width] float32, finite.

    Raises:
      DecodeError: why it cannot be had, in a few words and without a path.
    """
    if isinstance(picture, np.ndarray):
        values = picture
    elif isinstance(picture, Image.Image):
        raise DecodeError("a picture, and the model sees sequences")
    elif features.kind == "log_mel":
        check_audio(features)
        values = log_mel(_content(picture), features)
    else:
        values = _npy_array(_content(picture), f"numbers [steps, {width}]")
    if values.dtype.kind not in "fiu" or values.ndim != 2 or values.shape[1] != width or not len(values):
        raise DecodeError(f"{values.dtype}{list(values.shape)}; numbers [steps, {width}] are needed")
    if len(values) > longest:
        raise DecodeError(f"{len(values):,} steps; a prediction takes {longest:,} at most")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise DecodeError("holds a value that is not finite")
    return values


def _content(file: str | Path | bytes) -> bytes:
    if isinstance(file, bytes):
        return file
    try:
        data = read_file(str(file), within=None)
    # ValueError: a path with a zero byte in it.
    except (OSError, ValueError) as error:
        # The text of the error itself names the path.
        raise DecodeError(getattr(error, "strerror", "") or "cannot be read") from error
    if isinstance(data, Unreadable):
        raise DecodeError(data.reason)
    return data


def _npy_array(data: bytes, needed: str) -> np.ndarray:
    """The array of a NPY file; a view of its bytes, so that a header that claims more takes no memory."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
        start, claimed = file.tell(), math.prod(shape) * dtype.itemsize
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError("its numbers are objects" if dtype.hasobject else f"shape {list(shape)}")
        if len(data) - start != claimed:
            raise ValueError(f"{len(data) - start:,} bytes of numbers, and {claimed:,} claimed")
    except (ValueError, EOFError, *DAMAGED_HEADER) as error:
        raise DecodeError(f"no .npy file, in which numpy.save puts {needed} ({first_line(error)})") from error
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if is_fortran else "C")
