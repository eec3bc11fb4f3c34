"""From the bytes of an image file to uint8 pixels of a fixed size."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pcls.data.crops import random_box
from pcls.data.jpeg import decode_part, is_whole, jpeg_header
from pcls.data.png import plain_png
from pcls.data.preprocessing import GREY, RGB, Preprocessing

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 100_000_000
# Of the longer side to the shorter, in evaluation.
MAX_ASPECT = 50

# OpenCV resizes no more together.
CV_CHANNELS = 4

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
# Those that exchange width and height.
SIDEWAYS = tuple(UPRIGHT[orientation] for orientation in (5, 6, 7, 8))


class DecodeError(Exception):
    """An image that cannot be decoded; the text says why, without its name."""


def decode(
    data: bytes, preprocessing: Preprocessing, draws: np.ndarray | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """Decodes a JPEG, PNG or WebP image and cuts it to size.

    Args:
      data: the file's bytes.
      preprocessing: the size and channels wanted.
      draws: of a random crop, from `crop_draws`; None: the exact evaluation crop.
      out: where to write the pixels; None: a new array.

    Returns:
      [height, width, channels] uint8, `out` if given.

    Raises:
      DecodeError: the reason, in a few words.
    """
    if preprocessing.channels not in (GREY, RGB):
        raise DecodeError(f"an image file has no {preprocessing.channels} channels; they come as an array")
    part = None if draws is None else random_part(data, preprocessing, draws)
    if part is not None:
        return resized(part, preprocessing, out)
    pixels = plain_png(data)
    if pixels is not None:
        return _into(out, _fit_pixels(pixels, preprocessing, draws))
    return _into(out, _by_pillow(lambda: open_image(data), len(data), preprocessing, draws))


def random_part(data: bytes, preprocessing: Preprocessing, draws: np.ndarray) -> np.ndarray | None:
    """The part of a picture that a random crop wants, upright, by the fast JPEG decoder.

    Returns:
      [height, width, channels] uint8 of any size; None where Pillow must see the file, if only to say what ails it.
    """
    header = jpeg_header(data)
    if header is None or header.components not in (1, 3) or not is_whole(data, header):
        return None
    if not 0 < header.width * header.height <= MAX_PIXELS:
        return None
    turn, least = UPRIGHT.get(_orientation(header.exif)), (preprocessing.width, preprocessing.height)
    # Drawn in the file as it lies: areas, aspects and places are as likely in a turned picture.
    box = _whole_pixels(random_box(header.width, header.height, draws))
    try:
        part = decode_part(data, header, box, least[::-1] if turn in SIDEWAYS else least, preprocessing.channels)
    except ValueError:
        return None
    return part if turn is None else np.asarray(image_of(part).transpose(turn))


def _orientation(exif: bytes) -> int | None:
    if not exif:
        return None
    tags = Image.Exif()
    try:
        tags.load(exif)
        return tags.get(ExifTags.Base.Orientation)
    # Damaged EXIF data spoil no pixel; its parser raises whatever they make it meet.
    except Exception:
        return None


def fit_pixels(
    pixels: np.ndarray, preprocessing: Preprocessing, draws: np.ndarray | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """The same for pixels [height, width, channels] uint8; DecodeError where these are others than the model sees.

    Grey and RGB are the exception: one becomes the other.
    """
    stored, wanted = pixels.shape[2], preprocessing.channels
    if not convertible(stored, wanted):
        raise DecodeError(f"{stored} channels, and the model sees {wanted}")
    if draws is None or stored != wanted:
        if stored in (GREY, RGB):
            return _into(out, _fit_pixels(pixels, preprocessing, draws))
        # Pillow resizes no more than four.
        planes = (fit(image_of(pixels[..., [c]]), preprocessing.of_channel(c)) for c in range(stored))
        return _into(out, np.concatenate(list(planes), -1))
    left, top, right, bottom = _whole_pixels(random_box(pixels.shape[1], pixels.shape[0], draws))
    return resized(pixels[top:bottom, left:right], preprocessing, out)


def _fit_pixels(pixels: np.ndarray, preprocessing: Preprocessing, draws: np.ndarray | None) -> np.ndarray:
    """Grey or RGB pixels cut to size, as they are where evaluation would change nothing."""
    if draws is None and pixels.shape == preprocessing.shape:
        size = (preprocessing.width, preprocessing.height)
        if max(size) <= MAX_ASPECT * min(size) and evaluation_size(size, preprocessing) == size:
            return pixels
    return fit(image_of(pixels), preprocessing, draws)


def convertible(stored: int, wanted: int) -> bool:
    """Whether pixels of so many channels can be shown to a model that sees so many."""
    return stored == wanted or {stored, wanted} == {GREY, RGB}


def _into(out: np.ndarray | None, pixels: np.ndarray) -> np.ndarray:
    if out is None:
        return pixels
    out[...] = pixels
    return out


def image_of(pixels: np.ndarray) -> Image.Image:
    """Pixels [height, width, channels] uint8 as a picture: grey or RGB; of two channels the first, of more three."""
    shown = visible(pixels)
    return Image.fromarray(shown[..., 0] if shown.shape[2] == GREY else shown)


def visible(pixels: np.ndarray) -> np.ndarray:
    """What of [..., channels] a person can be shown: all of 1 or 3, the first of two, the first three of more."""
    return pixels[..., : RGB if pixels.shape[-1] >= RGB else GREY]


def _whole_pixels(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)


def resized(pixels: np.ndarray, preprocessing: Preprocessing, out: np.ndarray | None = None) -> np.ndarray:
    """Pixels [height, width, channels] uint8 at the size of the model, in `out` if given."""
    if out is None:
        out = np.empty(preprocessing.shape, np.uint8)
    size = (preprocessing.width, preprocessing.height)
    # Two taps: five times as fast as areas. A JPEG comes within a factor of two by its decoder, others may not.
    shrinks = pixels.shape[0] >= 2 * size[1] and pixels.shape[1] >= 2 * size[0]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    if out.shape[2] <= CV_CHANNELS:
        cv2.resize(pixels, size, dst=out[..., 0] if out.shape[2] == GREY else out, interpolation=interpolation)
        return out
    for channel in range(out.shape[2]):
        out[..., channel] = cv2.resize(pixels[..., channel], size, interpolation=interpolation)
    return out


def fit_opened(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """The evaluation crop of what Pillow has opened, which may not be decoded yet; DecodeError as `decode`."""
    if preprocessing.channels not in (GREY, RGB):
        raise DecodeError(f"a picture has no {preprocessing.channels} channels; they come as an array")
    return _by_pillow(lambda: image, None, preprocessing, None)


def _by_pillow(
    opened: Callable[[], Image.Image], length: int | None, preprocessing: Preprocessing, draws: np.ndarray | None
) -> np.ndarray:
    """What is opened, upright and cut to size; it comes from so many bytes, None: nobody knows."""
    try:
        # Warnings are PIL's word for damaged EXIF data, which spoils no pixel, and for pictures between once and twice
        # its own limit; ours is the one that holds.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            return fit(upright(opened()), preprocessing, draws)
    except DecodeError:
        raise
    # PIL's parsers raise whatever a damaged file makes them meet: struct.error, TypeError, a bomb's error.
    except Exception as error:
        raise DecodeError(reason(error, length)) from error


def open_image(data: bytes) -> Image.Image:
    """Opens a file without decoding its pixels.

    Raises:
      DecodeError: it is empty, or has more than `MAX_PIXELS`.
      Exception: whatever Pillow's parsers meet.
    """
    if not data:
        raise DecodeError("the file is empty")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise DecodeError(f"{image.width:,} x {image.height:,} pixels, more than {MAX_PIXELS:,}")
    return image


def upright(image: Image.Image) -> Image.Image:
    """Turns the picture as its EXIF orientation says.

    Not by `ImageOps.exif_transpose`: it also writes the EXIF data anew, and fails where any part of them is damaged.
    """
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What brings a picture upright, by its EXIF data; None: it is."""
    return UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))


def fit(image: Image.Image, preprocessing: Preprocessing, draws: np.ndarray | None = None) -> np.ndarray:
    """Cuts an opened image to size: a random crop with draws, else what evaluation sees.

    Returns:
      [height, width, channels] uint8.
    """
    image = in_mode(image, "L" if preprocessing.channels == 1 else "RGB")
    if draws is None:
        return np.asarray(evaluation_crop(image, preprocessing), np.uint8).reshape(preprocessing.shape)
    box = random_box(image.width, image.height, draws)
    size = (preprocessing.width, preprocessing.height)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box), np.uint8).reshape(preprocessing.shape)


def evaluation_crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """What evaluation sees of a picture; to the pixel what timm shows its models for the same settings.

    Args:
      image: upright, L or RGB.
      preprocessing: its size, crop_pct, crop_mode and interpolation.
    """
    image = _without_ends(image)
    size = evaluation_size(image.size, preprocessing)
    if size != image.size:
        image = image.resize(size, Image.Resampling[preprocessing.interpolation.upper()])
    wanted = (preprocessing.width, preprocessing.height)
    if image.width < wanted[0] or image.height < wanted[1]:
        image = _padded(image, wanted, preprocessing)
    if image.size == wanted:
        return image
    left, top = (round((has - wants) / 2) for has, wants in zip(image.size, wanted, strict=True))
    return image.crop((left, top, left + wanted[0], top + wanted[1]))


def evaluation_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Width and height that evaluation brings a picture of `size` to before it cuts the middle out."""
    width, height = size
    to = tuple(math.floor(side / preprocessing.crop_pct) for side in (preprocessing.width, preprocessing.height))
    match preprocessing.crop_mode:
        case "squash":
            return to[0], to[1]
        case "border":
            ratio = max(width / to[0], height / to[1])
        case _ if to[0] == to[1]:
            # Whole numbers, rounded down, as torchvision has it; the two others round to the nearest.
            short = min(width, height)
            return int(to[0] * width / short), int(to[1] * height / short)
        case _:
            ratio = min(width / to[0], height / to[1])
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _without_ends(image: Image.Image) -> Image.Image:
    """The middle of a picture that is extremely long; resized whole, one of 1 x 8000 pixels would take gigabytes."""
    width, height = image.size
    keep = min(width, height * MAX_ASPECT), min(height, width * MAX_ASPECT)
    if keep == image.size:
        return image
    left, top = (width - keep[0]) // 2, (height - keep[1]) // 2
    return image.crop((left, top, left + keep[0], top + keep[1]))


def _padded(image: Image.Image, wanted: tuple[int, int], preprocessing: Preprocessing) -> Image.Image:
    """The picture in the middle of a canvas that is large enough; of the mean with `border`, else black."""
    level = [round(255 * mean) if preprocessing.crop_mode == "border" else 0 for mean in preprocessing.mean]
    size = max(image.width, wanted[0]), max(image.height, wanted[1])
    canvas = Image.new(image.mode, size, tuple(level) if image.mode == "RGB" else level[0])
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture as `L` or `RGB`: what is transparent shows white, of 16 bits the upper 8 remain."""
    if image.mode.startswith("I"):
        # Pillow clips 16 bits at 255; the high byte is what a viewer shows.
        image = Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)


def reason(error: Exception, length: int | None) -> str:
    """What Pillow met in a file of so many bytes, None: of an unknown number, in a few words."""
    if length is None:
        return " ".join(str(error).split())[:120] or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        return f"not a JPEG, PNG or WebP image, {length:,} bytes"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS:,} pixels"
    if "truncated" in str(error).lower():
        return f"truncated after {length:,} bytes"
    return " ".join(str(error).split())[:120] or type(error).__name__
