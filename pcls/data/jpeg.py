"""JPEG files by libjpeg-turbo: the part of a picture that a random crop wants, and not much more.

Pillow decodes a whole picture, converts it to four bytes a pixel, and is what the evaluation uses. Here rows below the
crop are not decoded, and a crop of twice the wanted size or more is decoded at half of it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import simplejpeg

START = b"\xff\xd8"
END = b"\xff\xd9"
# Of the frame headers SOF0 to SOF15 these are other markers.
NO_FRAMES = (0xC4, 0xC8, 0xCC)
STAND_ALONE = (0x01, *range(0xD0, 0xD8))
# Rows are coded in stripes of 8, or 16 where colour is stored at half the height: the rest of one costs nothing.
STRIPE = 16


class JpegHeader(NamedTuple):
    """What the markers ahead of the pixels say.

    Attributes:
      height, width: pixels.
      components: 1 (grey), 3 (colour), 4 (CMYK).
      height_at: where in the file the height stands.
      exif: the EXIF block, empty where there is none.
    """

    height: int
    width: int
    components: int
    height_at: int
    exif: bytes


def jpeg_header(data: bytes) -> JpegHeader | None:
    """Reads the markers up to the frame header; None: damaged, or no JPEG at all."""
    place, exif = 2, b""
    if data[:2] != START:
        return None
    while place + 9 < len(data):
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF or marker in STAND_ALONE:
            place += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in NO_FRAMES:
            height = int.from_bytes(data[place + 5 : place + 7], "big")
            width = int.from_bytes(data[place + 7 : place + 9], "big")
            return JpegHeader(height, width, data[place + 9], place + 5, exif)
        if marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            exif = data[place + 4 : place + 2 + length]
        place += 2 + length
    return None


def is_whole(data: bytes, header: JpegHeader) -> bool:
    """Whether the end marker follows the pixels; within them it cannot occur."""
    return data.rfind(END, header.height_at) >= 0


def decode_part(
    data: bytes, header: JpegHeader, box: tuple[int, int, int, int], least: tuple[int, int], channels: int
) -> np.ndarray:
    """Decodes a box of a picture, at its own size or at 1/2, 1/4 or 1/8 of it.

    Args:
      data: the file, whole.
      header: of it; 1 or 3 components.
      box: left, top, right, bottom in pixels of the full size.
      least: width and height that the part must keep where it has them.
      channels: 1 or 3.

    Returns:
      [height, width, channels] uint8.

    Raises:
      ValueError: libjpeg-turbo cannot decode it.
    """
    left, top, right, bottom = box
    factor = _shrinking(right - left, bottom - top, least)
    rows = min(header.height, math.ceil(bottom / STRIPE) * STRIPE)
    pixels = simplejpeg.decode_jpeg(
        _cut_to(data, header, rows),
        "RGB" if channels == 3 else "GRAY",
        # Up to 1 and a few grey levels of error, 3 and 5 % of the time: for crops of a training, not for evaluation.
        fastdct=True,
        fastupsample=True,
        min_height=math.ceil(rows / factor),
        min_width=math.ceil(header.width / factor),
        # A file that is cut to fewer rows than it holds is damaged by the book.
        strict=False,
    )
    part: np.ndarray = pixels[top // factor : math.ceil(bottom / factor), left // factor : math.ceil(right / factor)]
    return part


def _shrinking(width: int, height: int, least: tuple[int, int]) -> int:
    # Other fractions than these have no fast transform in libjpeg-turbo, and cost more than they save.
    return next(f for f in (8, 4, 2, 1) if f == 1 or (width >= f * least[0] and height >= f * least[1]))


def _cut_to(data: bytes, header: JpegHeader, rows: int) -> bytes | bytearray:
    """The same file with a header that claims fewer rows: the decoder stops after them."""
    if rows == header.height:
        return data
    cut = bytearray(data)
    cut[header.height_at : header.height_at + 2] = rows.to_bytes(2, "big")
    return cut
