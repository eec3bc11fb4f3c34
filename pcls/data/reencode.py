"""The file that stands for a stored image: its own bytes, or a smaller JPEG."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from pcls.data.decode import DecodeError, image_of, in_mode, open_image, reason, upright
from pcls.data.preprocessing import GREY, RGB
from pcls.data.sources.arrayrecord import Reencoding
from pcls.data.sources.source import Unreadable

# One channel, whatever their depth.
GREY_MODES = ("1", "L", "LA", "I", "I;16")
# A JPEG is decoded at a half, a quarter or an eighth where that still leaves this many times the wanted size.
SPARE = 2


def as_file(image: bytes | np.ndarray | Unreadable, reencoding: Reencoding | None) -> bytes | Unreadable:
    """An image as it is put into a converted set.

    Args:
      image: as its source stores it.
      reencoding: None: files keep their bytes, undecoded, and pixels become PNG.

    Returns:
      The bytes of a JPEG, PNG or WebP file; or why there are none, as in `cannot be decoded (truncated ...)`.
    """
    if isinstance(image, Unreadable):
        return Unreadable(f"cannot be read ({image.reason})")
    if isinstance(image, np.ndarray) and image.shape[2] not in (GREY, RGB):
        return Unreadable(f"has {image.shape[2]} channels, which no image file holds; train on the arrays themselves")
    if reencoding is None:
        return image if isinstance(image, bytes) else _png(image)
    try:
        return reencoded(image if isinstance(image, bytes) else _png(image), reencoding)
    except DecodeError as error:
        return Unreadable(f"cannot be decoded ({error})")


def reencoded(data: bytes, reencoding: Reencoding) -> bytes:
    """A JPEG whose longer side is at most that of `reencoding`; one that is small enough keeps its bytes.

    The new file is upright, has no EXIF data, and is grey where the old one was.

    Raises:
      DecodeError: the reason, in a few words.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            return _reencoded(data, reencoding)
    except DecodeError:
        raise
    # PIL's parsers raise whatever a damaged file makes them meet.
    except Exception as error:
        raise DecodeError(reason(error, len(data))) from error


def _reencoded(data: bytes, reencoding: Reencoding) -> bytes:
    image = open_image(data)
    side = reencoding.longest_side
    small_enough = max(image.size) <= side
    if not small_enough:
        image.draft(None, _within(image.size, SPARE * side))
    # Decoded in any case: what a re-encoded set holds can be decoded.
    image.load()
    if small_enough and image.format == "JPEG":
        return data
    picture = in_mode(upright(image), "L" if image.mode in GREY_MODES else "RGB")
    if not small_enough:
        picture = picture.resize(_within(picture.size, side), Image.Resampling.LANCZOS)
    return _jpeg(picture, reencoding.quality)


def _within(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """A size in proportion, whose longer side is `longest`."""
    width, height = (max(1, round(length * longest / max(size))) for length in size)
    return width, height


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    # Its profile, EXIF data and comments would be written along.
    image.info = {}
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    image_of(pixels).save(file, "PNG")
    return file.getvalue()
