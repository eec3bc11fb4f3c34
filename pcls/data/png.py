"""Plain PNG files by OpenCV: a quarter of the time that Pillow takes for small ones, whose Python is what costs."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np

from pcls.data.preprocessing import GREY, RGB

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Channels of the colour types that hold values as they are shown: grey and RGB.
CHANNELS_OF = {0: GREY, 2: RGB}
# Beside the header and the end, what changes no pixel that Pillow gives.
HARMLESS = (b"IDAT", b"bKGD", b"cHRM", b"gAMA", b"pHYs", b"sBIT", b"sRGB", b"tIME")


def plain_png(data: bytes, most: int) -> np.ndarray | None:
    """Decodes a PNG file of 8 bits a channel, grey or RGB, that is whole and holds nothing but pixels.

    Args:
      data: the file's bytes.
      most: pixels that it may have.

    Returns:
      [height, width, 1 or 3] uint8; None where Pillow must see the file, if only to say what ails it: palettes,
      transparency, other depths, an orientation, text, damage.
    """
    if not data.startswith(SIGNATURE) or data[12:16] != b"IHDR" or not _is_whole(data):
        return None
    width, height, depth, colour, interlaced = struct.unpack(">IIBBxxB", data[16:29])
    channels = CHANNELS_OF.get(colour)
    if depth != 8 or interlaced or channels is None or not 0 < width * height <= most:
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if pixels is None or pixels.size != width * height * channels:
        return None
    return pixels[..., None] if channels == GREY else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _is_whole(data: bytes) -> bool:
    """Whether the header is followed by harmless chunks and by the end, and every checksum is right."""
    view, place, kind = memoryview(data), len(SIGNATURE), b""
    while place + 12 <= len(data):
        length, kind = int.from_bytes(view[place : place + 4], "big"), data[place + 4 : place + 8]
        end = place + 12 + length
        known = kind == b"IHDR" and length == 13 if place == len(SIGNATURE) else kind in HARMLESS or kind == b"IEND"
        if not known or end > len(data):
            return False
        if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            return False
        place = end
    return kind == b"IEND" and place == len(data)
