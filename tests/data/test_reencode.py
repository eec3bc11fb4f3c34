"""What becomes of an image on its way into a converted set."""

import io

import numpy as np
import pytest
from PIL import Image

from pcls.data.reencode import as_file
from pcls.data.sources.arrayrecord import Reencoding
from pcls.data.sources.source import Unreadable

TO_40 = Reencoding(longest_side=40, quality=90)


def picture(width, height, mode="RGB"):
    """Dark at the left, light at the right."""
    ramp = np.linspace(0, 255, width * height * 3).reshape(width, height, 3).transpose(1, 0, 2)
    return Image.fromarray(ramp.astype(np.uint8)).convert(mode)


def encoded(image, form="JPEG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def opened(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def turned(width, height, orientation, form="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(width, height), form, exif=exif)


@pytest.mark.parametrize("data", [encoded(picture(90, 60)), b"<html>", b""], ids=["JPEG", "HTML", "empty"])
def test_without_reencoding_bytes_stay_as_they_are_and_nothing_is_decoded(data):
    assert as_file(data, None) == data


@pytest.mark.parametrize("channels", [1, 3])
def test_without_reencoding_pixels_come_back_out_of_a_png(channels):
    pixels = np.random.default_rng(0).integers(256, size=(5, 7, channels), dtype=np.uint8)
    image = opened(as_file(pixels, None))
    assert image.format == "PNG"
    assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


@pytest.mark.parametrize(
    ("size", "expected"), [((80, 60), (40, 30)), ((60, 80), (30, 40)), ((41, 41), (40, 40)), ((1, 8000), (1, 40))]
)
def test_the_longer_side_is_brought_to_the_limit(size, expected):
    image = opened(as_file(encoded(picture(*size)), TO_40))
    assert (image.format, image.size) == ("JPEG", expected)


def test_a_jpeg_that_is_small_enough_keeps_its_bytes():
    data = turned(40, 30, orientation=6)
    assert as_file(data, TO_40) == data


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_a_small_image_of_another_format_becomes_a_jpeg_of_its_size(form):
    image = opened(as_file(encoded(picture(40, 30), form), TO_40))
    assert (image.format, image.size, image.mode) == ("JPEG", (40, 30), "RGB")


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_large_image_is_turned_upright_and_its_exif_data_are_dropped(form):
    image = opened(as_file(turned(80, 60, orientation=6, form=form), TO_40))
    assert image.size == (30, 40)
    assert not image.getexif()
    # Turned clockwise: what was dark at the left is dark at the top.
    grey = np.asarray(image.convert("L"), float)
    assert grey[:4].mean() < 60
    assert grey[-4:].mean() > 190


@pytest.mark.parametrize(
    ("mode", "form", "expected"),
    [
        ("L", "JPEG", "L"),
        ("CMYK", "JPEG", "RGB"),
        ("RGBA", "PNG", "RGB"),
        ("LA", "PNG", "L"),
        ("P", "PNG", "RGB"),
        ("1", "PNG", "L"),
        ("I;16", "PNG", "L"),
    ],
)
def test_grey_stays_grey_and_all_else_becomes_rgb(mode, form, expected):
    source = picture(80, 60, "L" if mode == "I;16" else mode)
    if mode == "I;16":
        source = Image.fromarray(np.asarray(source, np.uint16) * 257)
    image = opened(as_file(encoded(source, form), TO_40))
    assert image.mode == expected
    wanted = np.asarray(picture(80, 60, "L").resize((40, 30)), float)
    # Black and white alone only come near a grey.
    assert np.abs(np.asarray(image.convert("L"), float) - wanted).mean() < (12 if mode == "1" else 6)


def test_the_resized_picture_is_that_of_a_resize_of_all_its_pixels():
    data = encoded(picture(400, 300), quality=95)
    found = np.asarray(opened(as_file(data, TO_40)), float)
    wanted = np.asarray(opened(data).resize((40, 30), Image.Resampling.LANCZOS), float)
    # The decoder halves it first where that leaves twice the size: less than a grey level of difference.
    assert np.abs(found - wanted).mean() < 2


def test_a_lower_quality_takes_fewer_bytes():
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(256, size=(80, 80, 3), dtype=np.uint8)), "PNG")
    sizes = [len(as_file(data, Reencoding(longest_side=80, quality=quality))) for quality in (50, 90)]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "cannot be decoded (the file is empty)"),
        (b"<html></html>", "cannot be decoded (not a JPEG, PNG or WebP image, 13 bytes)"),
        (encoded(picture(90, 60))[:900], "cannot be decoded (truncated after 900 bytes)"),
        (encoded(picture(39, 39))[:700], "cannot be decoded (truncated after 700 bytes)"),
        (Unreadable("Permission denied"), "cannot be read (Permission denied)"),
    ],
    ids=["empty", "HTML", "cut", "cut and small", "unreadable"],
)
def test_an_image_that_cannot_be_decoded_says_why(image, reason):
    assert as_file(image, TO_40) == Unreadable(reason)


def test_an_image_that_cannot_be_read_says_why_without_reencoding_too():
    assert as_file(Unreadable("Permission denied"), None) == Unreadable("cannot be read (Permission denied)")
