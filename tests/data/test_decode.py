"""Image files to pixels: every form that people have, and every damage, each with its pixels or its reason."""

import io
import math
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from pcls.data.crops import ATTEMPTS, crop_draws, random_box
from pcls.data.decode import (
    UPRIGHT,
    DecodeError,
    _whole_pixels,
    decode,
    evaluation_size,
    fit_pixels,
    resized,
)
from pcls.data.jpeg import jpeg_header
from pcls.data.preprocessing import CROP_MODES, Preprocessing

PHOTO = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


def target(height: int, width: int, channels: int = 3, crop_pct: float = 1.0) -> Preprocessing:
    return Preprocessing(height, width, channels, (0.0,) * channels, (1.0,) * channels, crop_pct)


def draws(seed: int) -> np.ndarray:
    """Of one random crop."""
    return crop_draws(seed, np.zeros(1, int), np.zeros(1, int))[0]


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, form, **options)
    return stream.getvalue()


def one_pixel(mode: str, value, **options) -> np.ndarray:
    """A picture of one colour in a mode, as RGB."""
    image = decode(encoded(Image.new(mode, (3, 2), value), **options), target(2, 3))
    assert (image == image[0, 0]).all()
    return image[0, 0].tolist()


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG file whose header says any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def reason(data: bytes) -> str:
    with pytest.raises(DecodeError) as raised:
        decode(data, target(4, 6))
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


# Forms


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_a_lossless_image_of_the_target_size_comes_out_as_it_is(form, options):
    assert np.array_equal(decode(encoded(PHOTO, form, **options), target(4, 6)), PHOTO)


def test_a_jpeg_of_the_target_size_comes_out_as_its_decoder_gives_it():
    data = encoded(PHOTO, "JPEG", quality=95)
    assert np.array_equal(decode(data, target(4, 6)), np.asarray(Image.open(io.BytesIO(data))))


def test_a_large_jpeg_shrunk_while_decoding_shows_the_same_picture():
    rows, columns = np.mgrid[:600, :800]
    picture = np.stack([rows * 255 // 600, columns * 255 // 800, np.full_like(rows, 128)], -1).astype(np.uint8)
    fine = Image.fromarray(picture).resize((40, 30), Image.Resampling.BILINEAR)
    found = decode(encoded(picture, "JPEG", quality=95), target(30, 40))
    assert np.abs(found.astype(int) - np.asarray(fine)).max() <= 3


@pytest.mark.parametrize(
    ("mode", "value", "pixel"),
    [
        ("1", 1, [255, 255, 255]),
        ("1", 0, [0, 0, 0]),
        ("L", 77, [77, 77, 77]),
        ("LA", (77, 255), [77, 77, 77]),
        ("LA", (77, 0), [255, 255, 255]),  # what is transparent shows white
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("RGBA", (1, 2, 3, 255), [1, 2, 3]),
        ("RGBA", (0, 0, 0, 0), [255, 255, 255]),
        ("RGBA", (200, 100, 0, 128), [227, 177, 127]),
        ("I;16", 0x1234, [0x12, 0x12, 0x12]),  # the high byte; Pillow alone would clip at 255
        ("I;16", 255, [0, 0, 0]),
        ("I;16", 0xFFFF, [255, 255, 255]),
    ],
)
def test_every_mode_of_png_becomes_rgb(mode, value, pixel):
    assert one_pixel(mode, value) == pytest.approx(pixel, abs=1)


def test_a_palette_becomes_rgb_and_its_transparent_entry_white():
    image = Image.new("P", (3, 2), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    assert decode(encoded(image), target(2, 3))[0, 0].tolist() == [10, 20, 30]
    assert decode(encoded(image, transparency=1), target(2, 3))[0, 0].tolist() == [255, 255, 255]


def test_a_transparent_colour_of_rgb_becomes_white():
    assert one_pixel("RGB", (5, 6, 7), transparency=(5, 6, 7)) == [255, 255, 255]


def test_cmyk_becomes_rgb():
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert decode(data, target(8, 8))[4, 4].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_colour_becomes_grey_by_luma_where_one_channel_is_wanted():
    grey = decode(encoded(PHOTO), target(4, 6, channels=1))
    assert grey.shape == (4, 6, 1)
    np.testing.assert_allclose(grey[..., 0], PHOTO @ [0.299, 0.587, 0.114], atol=1)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})])
def test_a_turned_camera_gives_an_upright_picture(form, options, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PHOTO, form, exif=exif, **options)
    expected = upright(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.array_equal(decode(data, target(*expected.shape[:2])), expected)


@pytest.mark.parametrize(("place", "value"), [(17, 0), (17, 26), (17, 84), (19, 4), (13, 1), (10, 1)])
def test_damaged_exif_data_spoil_no_pixel(place, value):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = bytearray(encoded(PHOTO, "JPEG", exif=exif, quality=95))
    data[data.index(b"Exif") + place] = value
    assert np.array_equal(decode(bytes(data), target(4, 6)), decode(encoded(PHOTO, "JPEG", quality=95), target(4, 6)))


@pytest.mark.parametrize("size", [(1, 1), (1, 8000), (8000, 1)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_extreme_shapes_decode(size, crop_pct):
    data = encoded(Image.new("RGB", size, (10, 20, 30)))
    for drawn in (None, draws(0)):
        image = decode(data, target(8, 8, crop_pct=crop_pct), drawn)
        assert (image == np.array([10, 20, 30])).all()


# Damage


def test_an_empty_file_is_refused():
    assert reason(b"") == "the file is empty"


def test_a_web_page_with_a_picture_s_name_is_refused():
    page = b"<!DOCTYPE html><html><body>404</body></html>"
    assert reason(page) == "not a JPEG, PNG or WebP image, 44 bytes"


def test_a_format_outside_the_list_is_refused():
    assert reason(encoded(PHOTO, "GIF")).startswith("not a JPEG, PNG or WebP image")


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_half_a_picture_is_refused(form):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(noise, form)
    assert reason(data[: len(data) // 2]) == f"truncated after {len(data) // 2:,} bytes"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_first_bytes_of_a_picture_are_refused(form):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for length in (1, 12, 30, 200):
        assert reason(encoded(noise, form)[:length])


def test_a_header_that_claims_billions_of_pixels_is_refused():
    assert reason(png(60_000, 60_000)) == "more than 100,000,000 pixels"
    assert reason(png(10_000, 10_001)) == "10,000 x 10,001 pixels, more than 100,000,000"
    assert reason(png(0, 5))


def test_a_header_without_its_pixels_is_refused():
    # Larger than Pillow warns about and within our limit: no warning, but the truth.
    assert reason(png(9_500, 9_500)).startswith("truncated")
    assert reason(png(6, 4)).startswith("truncated")


@settings(max_examples=300, deadline=None)
@given(
    form=st.sampled_from(["JPEG", "PNG", "WEBP", "EXIF"]),
    cut=st.integers(0, 2000),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=5),
)
def test_a_damaged_file_gives_pixels_or_a_reason(form, cut, changes):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    data = bytearray(
        encoded(PHOTO, *(["JPEG"] if form == "EXIF" else [form]), **({"exif": exif} if form == "EXIF" else {}))
    )
    for place, value in changes:
        data[place % len(data)] = value
    if cut < 1000:
        data = data[: max(1, cut % len(data))]
    try:
        assert decode(bytes(data), target(4, 6)).shape == (4, 6, 3)
    except DecodeError as error:
        assert str(error)
        assert len(str(error).splitlines()) == 1


# Boxes

SIZES = st.integers(1, 20_000)


@given(SIZES, SIZES, st.integers(1, 512), st.integers(1, 512), st.floats(0.1, 1), st.sampled_from(CROP_MODES))
def test_the_evaluation_resizes_to_what_its_mode_says(width, height, w, h, crop_pct, mode):
    resized = evaluation_size((width, height), replace(target(h, w, crop_pct=crop_pct), crop_mode=mode))
    scaled = math.floor(w / crop_pct), math.floor(h / crop_pct)
    if mode == "squash":
        assert resized == scaled
    elif mode == "border":
        assert resized[0] <= scaled[0] and resized[1] <= scaled[1]
        assert resized[0] == scaled[0] or resized[1] == scaled[1]
    else:
        assert resized[0] >= scaled[0] and resized[1] >= scaled[1]
        assert resized[0] == scaled[0] or resized[1] == scaled[1]


def test_a_border_is_of_the_mean_and_a_squashed_picture_whole():
    picture = encoded(np.full((20, 40, 3), 200, np.uint8))
    sized = replace(target(16, 16), mean=(0.1, 0.2, 0.3))
    bordered = decode(picture, replace(sized, crop_mode="border"))
    assert bordered[0, 0].tolist() == [26, 51, 76]
    assert (bordered[4:12] == 200).all() and (bordered[:4, :, 0] == 26).all() and (bordered[12:, :, 2] == 76).all()
    assert (decode(picture, replace(sized, crop_mode="squash")) == 200).all()


# The fast way of training crops


def photo(form: str = "JPEG", size=(320, 240), mode: str = "RGB", **options) -> bytes:
    picture = Image.fromarray(load_sample_image("china.jpg")).resize(size, Image.Resampling.LANCZOS).convert(mode)
    return encoded(picture, form, **({"quality": 90} | options if form == "JPEG" else options))


@pytest.fixture
def no_pillow(monkeypatch):
    monkeypatch.setattr("pcls.data.decode._by_pillow", lambda *_: pytest.fail("Pillow was asked"))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"mode": "L"}])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_random_crop_of_a_jpeg_is_the_one_that_pillow_would_cut(no_pillow, options, channels):
    data = photo(**options)
    whole = Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
    for seed in range(5):
        box = _whole_pixels(random_box(320, 240, draws(seed)))
        # Enlarged, so that antialiasing has no part in it.
        expected = np.asarray(whole.crop(box).resize((400, 400), Image.Resampling.BILINEAR))
        found = decode(data, target(400, 400, channels), draws(seed))
        assert np.abs(found.squeeze().astype(int) - expected).mean() < 2.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_random_crops_of_turned_cameras_are_upright(no_pillow, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Dark above, red on the left: seen upright whatever part is cut out.
    upright = np.zeros((240, 320, 3), np.uint8)
    upright[120:] = 200
    upright[:, :160, 0] = 250
    stored = Image.fromarray(upright)
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    if orientation in UPRIGHT:
        stored = stored.transpose(undo.get(orientation, UPRIGHT[orientation]))
    middle = np.tile([0.6, 0.5, 0.5, 0.5], (ATTEMPTS, 1))
    found = decode(encoded(stored, "JPEG", exif=exif), target(32, 32), middle).astype(int)
    assert found[-1, :, 1].mean() - found[0, :, 1].mean() > 150
    assert found[:, 0, 0].mean() - found[:, -1, 0].mean() > 100


def test_a_crop_of_a_large_photograph_is_decoded_at_a_fraction_and_shows_the_same(no_pillow, monkeypatch):
    sizes = []
    monkeypatch.setattr("pcls.data.decode.resized", lambda part, *to: sizes.append(part.shape) or resized(part, *to))
    data = photo(size=(1600, 1200))
    for seed in range(6):
        found = decode(data, target(64, 64), draws(seed))
        box = random_box(1600, 1200, draws(seed))
        fine = Image.open(io.BytesIO(data)).resize((64, 64), Image.Resampling.BILINEAR, box=box)
        assert np.abs(found.astype(int) - np.asarray(fine)).mean() < 10
    assert all(min(height, width) >= 64 and max(height, width) <= 1600 / 4 for height, width, _ in sizes)


def test_what_the_fast_way_cannot_decode_pillow_explains():
    whole = photo()
    for data, words in [
        (whole[: len(whole) // 2], f"truncated after {len(whole) // 2:,} bytes"),
        (whole[:200], "truncated|broken|JPEG"),
        (b"<html>" + b" " * 100, "not a JPEG, PNG or WebP image, 106 bytes"),
    ]:
        with pytest.raises(DecodeError, match=words):
            decode(data, target(8, 8), draws(0))
    cmyk = encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=100)
    assert decode(cmyk, target(8, 8), draws(0))[4, 4].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_a_jpeg_header_that_claims_billions_of_pixels_is_refused_before_they_are_decoded():
    bomb = bytearray(photo())
    header = jpeg_header(bytes(bomb))
    bomb[header.height_at : header.height_at + 4] = struct.pack(">HH", 60_000, 60_000)
    for drawn in (None, draws(0)):
        with pytest.raises(DecodeError, match="more than 100,000,000"):
            decode(bytes(bomb), target(8, 8), drawn)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("seed", [None, 1])
def test_pixels_are_written_where_they_are_wanted(channels, form, seed):
    data, size, drawn = photo(form), target(20, 30, channels), None if seed is None else draws(seed)
    batch = np.zeros((3, 20, 30, channels), np.uint8)
    found = decode(data, size, drawn, batch[1])
    assert np.shares_memory(found, batch)
    assert np.array_equal(batch[1], decode(data, size, drawn))
    assert not batch[0].any() and not batch[2].any()
    again = np.zeros((20, 30, channels), np.uint8)
    pixels = np.asarray(Image.open(io.BytesIO(photo())))
    assert np.array_equal(fit_pixels(pixels, size, drawn, again), fit_pixels(pixels, size, drawn))
    assert again.any()


def test_raw_pixels_are_cut_and_resized():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    assert np.array_equal(fit_pixels(pixels, target(40, 60)), pixels)
    crops = [fit_pixels(pixels, target(16, 16), draws(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(crops[0], crops[1]) and not np.array_equal(crops[0], crops[2])
    assert fit_pixels(pixels, target(16, 16, 1), draws(1)).shape == (16, 16, 1)
    assert fit_pixels(pixels[..., :1], target(16, 16, 1), draws(1)).shape == (16, 16, 1)


def test_the_evaluation_crop_is_exact_and_a_random_crop_follows_its_generator():
    data = encoded(np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8))
    size = target(16, 16, crop_pct=0.875)
    assert np.array_equal(decode(data, size), decode(data, size))
    crops = [decode(data, size, draws(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(crops[0], crops[1])
    assert not np.array_equal(crops[0], crops[2])
