"""One look at one record: what is kept of it is of fixed size, so that any number of records can be compared."""

from __future__ import annotations

import hashlib
from enum import IntFlag
from pathlib import PurePath

import numpy as np
from PIL import Image

from pcls.data.decode import FORMATS, SIDEWAYS, DecodeError, decode, fit, image_of, open_image, turn_of
from pcls.data.doctor.near import HASH_SIDE, perceptual_hash
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.source import Stored, Unreadable

MODES = ("other", "1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I", "I;16", "I;16B")
# Pixels in memory have the last.
KINDS = (*FORMATS, "pixels")
EXTENSION_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
# Grey levels between the darkest and the brightest pixel; JPEG may add one to a single colour.
FLAT = 2
# In the header chunk of a PNG file: bits a channel.
PNG_DEPTH_AT = 24
SMALL = Preprocessing(HASH_SIDE, HASH_SIDE, 1, (), (), crop_mode="squash")

LOOK = np.dtype(
    [
        ("decoded", "?"),
        ("digest", "<u8", (2,)),
        ("hash", "<u8"),
        ("grey", "u1", (HASH_SIDE // 2, HASH_SIDE // 2)),
        ("width", "<i4"),
        ("height", "<i4"),
        ("label", "<i4"),
        ("mode", "u1"),
        ("kind", "u1"),
        ("marks", "u1"),
    ]
)


class Mark(IntFlag):
    """What is unusual about an image, beside its size."""

    CMYK = 1
    DEEP = 2  # 16 bits a channel
    ANIMATED = 4
    ALPHA = 8
    TURNED = 16
    MISNAMED = 32
    FLAT = 64


def look_at(stored: Stored, name: str, row: np.void) -> str:
    """Fills in a row of LOOK.

    Args:
      stored: the record.
      name: of it; its ending may promise a format.
      row: where to write. `digest` are the first 128 bits of SHA-256 of the bytes, `grey` is 16 x 16, `width` and
        `height` are those of the upright picture.

    Returns:
      Why the record cannot be decoded; empty where it can.
    """
    image = stored.image
    row["label"] = stored.label
    if isinstance(image, Unreadable):
        return f"cannot be read: {image.reason}"
    row["digest"] = np.frombuffer(_digest(image), "<u8")
    try:
        _describe(image, name, row)
    # PIL's parsers raise whatever a damaged file makes them meet.
    except Exception as error:
        return _reason(image, error)
    row["decoded"] = True
    return ""


def open_picture(image: bytes | np.ndarray) -> Image.Image:
    """Opens a stored image, as `open_image` does; its pixels are not decoded yet."""
    if isinstance(image, np.ndarray):
        return image_of(image)
    return open_image(image)


def shrunk(picture: Image.Image, side: int, mode: str) -> Image.Image:
    """The picture upright and decoded, with `side` pixels a side or more: of a JPEG an eighth is cheap to decode."""
    turn = turn_of(picture)
    picture.draft(mode, (side, side))
    picture.load()
    return picture if turn is None else picture.transpose(turn)


def _digest(image: bytes | np.ndarray) -> bytes:
    data = image if isinstance(image, bytes) else repr(image.shape).encode() + image.tobytes()
    return hashlib.sha256(data).digest()[:16]


def _describe(image: bytes | np.ndarray, name: str, row: np.void) -> None:
    picture = open_picture(image)
    # A second picture in a JPEG (a preview, a depth map) makes it an MPO to PIL.
    kind = KINDS[-1] if isinstance(image, np.ndarray) else {"MPO": "JPEG"}.get(str(picture.format), picture.format)
    row["kind"] = KINDS.index(str(kind))
    row["mode"] = MODES.index(picture.mode) if picture.mode in MODES else 0
    row["width"], row["height"] = picture.size[::-1] if turn_of(picture) in SIDEWAYS else picture.size
    marks = _marks(image, picture, name)
    # Twice the size: straight from an eighth, a JPEG and its copy as PNG differ more than a copy may.
    grey = fit(shrunk(picture, 2 * HASH_SIDE, "L"), SMALL)[..., 0]
    row["hash"] = perceptual_hash(grey)
    row["grey"] = np.round(grey.reshape(HASH_SIDE // 2, 2, HASH_SIDE // 2, 2).mean((1, 3)))
    row["marks"] = marks | (Mark.FLAT if np.ptp(grey) <= FLAT and _is_flat(image) else 0)


def _marks(image: bytes | np.ndarray, picture: Image.Image, name: str) -> int:
    if isinstance(image, np.ndarray):
        return 0
    kind = "JPEG" if picture.format == "MPO" else picture.format
    promised = EXTENSION_FORMATS.get(PurePath(name).suffix.lower(), kind)
    # PIL reads a colour PNG of 16 bits as one of 8; its header says which it is.
    deep = picture.mode.startswith("I") or (kind == "PNG" and image[PNG_DEPTH_AT] == 16)
    found = {
        Mark.CMYK: picture.mode == "CMYK",
        Mark.DEEP: deep,
        Mark.ANIMATED: kind != "JPEG" and bool(getattr(picture, "is_animated", False)),
        Mark.ALPHA: picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info,
        Mark.TURNED: turn_of(picture) is not None,
        Mark.MISNAMED: promised != kind,
    }
    return sum(mark for mark, holds in found.items() if holds)


def _is_flat(image: bytes | np.ndarray) -> bool:
    """Whether all pixels have one colour, at full size: a fine pattern may be one grey when it is shrunk."""
    picture = open_picture(image)
    pixels = fit(picture, Preprocessing(picture.height, picture.width, 3, (), (), crop_mode="squash"))
    return int(np.ptp(pixels, axis=(0, 1)).max()) <= FLAT


def _reason(image: bytes | np.ndarray, error: Exception) -> str:
    """In the words that a run would use."""
    if isinstance(image, np.ndarray):
        return f"pixels of the shape {list(image.shape)}"
    try:
        decode(image, SMALL)
    except DecodeError as reason:
        return str(reason)
    return " ".join(str(error).split())[:120] or type(error).__name__
