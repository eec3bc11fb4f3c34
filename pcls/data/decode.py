"""From the bytes of an image file to uint8 pixels of a fixed size."""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pcls.data.preprocessing import Preprocessing

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 100_000_000

# What undoes each EXIF orientation.
UPRIGHT: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The area and aspect ratio of a random crop, relative to the image. Source: Szegedy et al. 2015.
CROP_AREA = (0.08, 1.0)
CROP_LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))


class DecodeError(Exception):
    """An image that cannot be decoded; the text says why, without its name."""


def decode(data: bytes, preprocessing: Preprocessing, rng: np.random.Generator | None = None) -> np.ndarray:
    """Decodes a JPEG, PNG or WebP image and cuts it to size.

    Args:
      data: the file's bytes.
      preprocessing: the size and channels wanted.
      rng: draws a random crop; None: the exact evaluation crop.

    Returns:
      [height, width, channels] uint8.

    Raises:
      DecodeError: the reason, in a few words.
    """
    if not data:
        raise DecodeError("the file is empty")
    try:
        # Warnings are PIL's word for damaged EXIF data, which spoils no pixel, and for pictures between once and twice
        # its own limit; ours is the one that holds.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            return fit(_upright(_open(data)), preprocessing, rng)
    except DecodeError:
        raise
    # PIL's parsers raise whatever a damaged file makes them meet: struct.error, TypeError, a bomb's error.
    except Exception as error:
        raise DecodeError(_reason(error, len(data))) from error


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise DecodeError(f"{image.width:,} x {image.height:,} pixels, more than {MAX_PIXELS:,}")
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Turns the picture as its EXIF orientation says.

    Not by `ImageOps.exif_transpose`: it also writes the EXIF data anew, and fails where any part of them is damaged.
    """
    turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if turn is None else image.transpose(turn)


def fit(image: Image.Image, preprocessing: Preprocessing, rng: np.random.Generator | None = None) -> np.ndarray:
    """Cuts an opened image to size: a random crop with a generator, else resize and centre crop.

    Returns:
      [height, width, channels] uint8.
    """
    image = _as_mode(image, "L" if preprocessing.channels == 1 else "RGB")
    size = (preprocessing.width, preprocessing.height)
    box = random_box(image.width, image.height, rng) if rng is not None else center_box(image.size, preprocessing)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box), np.uint8)
    return pixels.reshape(preprocessing.height, preprocessing.width, preprocessing.channels)


def center_box(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[float, float, float, float]:
    """The part of an image that evaluation sees: the largest centred box of the target's aspect, times crop_pct."""
    width, height = size
    scale = min(width / preprocessing.width, height / preprocessing.height) * preprocessing.crop_pct
    box_width, box_height = scale * preprocessing.width, scale * preprocessing.height
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A random part of an image: 8 to 100 % of its area, aspect 3/4 to 4/3. Source: Szegedy et al. 2015."""
    for _ in range(10):
        area = rng.uniform(*CROP_AREA) * width * height
        aspect = math.exp(rng.uniform(*CROP_LOG_ASPECT))
        box_width, box_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if box_width <= width and box_height <= height:
            left, top = rng.uniform(0, width - box_width), rng.uniform(0, height - box_height)
            return left, top, left + box_width, top + box_height
    # A very long image fits no such crop: take its largest centred square.
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16 bits at 255; the high byte is what a viewer shows.
        image = Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)


def _reason(error: Exception, length: int) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not a JPEG, PNG or WebP image, {length:,} bytes"
    if "truncated" in str(error).lower():
        return f"truncated after {length:,} bytes"
    return " ".join(str(error).split())[:120] or type(error).__name__
