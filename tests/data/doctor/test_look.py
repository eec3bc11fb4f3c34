"""One look at one record: size, format, oddities, and why it cannot be decoded."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from pcls.data.doctor.look import KINDS, LOOK, MODES, Mark, look_at
from pcls.data.sources.source import Stored, Unreadable


def scene(seed: int = 0, size: tuple[int, int] = (80, 60)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def look(image, name: str = "a.jpg") -> tuple[np.void, str]:
    rows = np.zeros(1, LOOK)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        reason = look_at(Stored(image, 3), name, rows[0])
    return rows[0], reason


def test_a_picture_is_described():
    row, reason = look(encoded(scene()))
    assert reason == ""
    assert (row["decoded"], row["width"], row["height"], row["label"], row["marks"]) == (True, 80, 60, 3, 0)
    assert (KINDS[row["kind"]], MODES[row["mode"]]) == ("JPEG", "RGB")
    small = np.asarray(scene().convert("L").resize((16, 16), Image.Resampling.BILINEAR), int)
    assert np.abs(row["grey"] - small).max() < 12


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    upright = scene()
    lying = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    return encoded(upright.transpose(lying), exif=exif.tobytes())


def sixteen_bits() -> bytes:
    return encoded(Image.fromarray(np.asarray(scene().convert("L"), np.uint16) * 257), "PNG")


def colour_of_16_bits() -> bytes:
    import cv2

    return cv2.imencode(".png", np.asarray(scene(), np.uint16) * 257)[1].tobytes()


def transparent(mode: str) -> bytes:
    picture = scene().convert(mode)
    picture.putalpha(128)
    return encoded(picture, "PNG")


def animated(kind: str) -> bytes:
    return encoded(scene(), kind, save_all=True, append_images=[scene(1)])


FLAT = Image.new("RGB", (40, 40), (200, 10, 10))


@pytest.mark.parametrize(
    ("image", "name", "marks"),
    [
        (encoded(scene(), "PNG"), "a.png", 0),
        (encoded(scene(), "WEBP"), "a.WEBP", 0),
        (encoded(scene(), "PNG"), "a.jpg", Mark.MISNAMED),
        (encoded(scene()), "a.webp", Mark.MISNAMED),
        (encoded(scene()), "set.tar #4", 0),
        (encoded(scene().convert("CMYK")), "a.jpeg", Mark.CMYK),
        (sixteen_bits(), "a.png", Mark.DEEP),
        (colour_of_16_bits(), "a.png", Mark.DEEP),
        (transparent("RGB"), "a.png", Mark.ALPHA),
        (transparent("L"), "a.png", Mark.ALPHA),
        (encoded(scene().convert("P"), "PNG", transparency=3), "a.png", Mark.ALPHA),
        (animated("PNG"), "a.png", Mark.ANIMATED),
        (animated("WEBP"), "a.webp", Mark.ANIMATED),
        (turned(3), "a.jpg", Mark.TURNED),
        (turned(6), "a.jpg", Mark.TURNED),
        (encoded(FLAT), "a.jpg", Mark.FLAT),
        (encoded(FLAT, "PNG"), "a.png", Mark.FLAT),
        (np.full((28, 28, 1), 7, np.uint8), "set #0", Mark.FLAT),
        (np.eye(28, dtype=np.uint8)[..., None] * 200, "set #0", 0),
    ],
)
def test_what_is_unusual_is_marked(image, name, marks):
    row, reason = look(image, name)
    assert reason == ""
    assert Mark(int(row["marks"])) == marks


def test_a_fine_pattern_is_not_flat():
    # Every second pixel: one grey at an eighth of the size.
    board = np.indices((128, 128)).sum(0) % 2 * 255
    row, _ = look(encoded(Image.fromarray(board.astype(np.uint8)), "PNG"), "a.png")
    assert (np.ptp(row["grey"]), row["marks"]) == (0, 0)


def test_a_turned_picture_is_compared_upright():
    upright, _ = look(encoded(scene(), quality=95))
    for orientation in (3, 6):
        row, _ = look(turned(orientation))
        assert (row["width"], row["height"]) == (80, 60)
        assert np.bitwise_count(row["hash"] ^ upright["hash"]) <= 4


def test_the_digest_is_of_the_bytes_and_of_the_shape_of_pixels():
    digests = [
        look(image)[0]["digest"].tolist()
        for image in (
            encoded(scene()),
            encoded(scene()),
            encoded(scene(), quality=80),
            np.zeros((2, 8, 1), np.uint8),
            np.zeros((4, 4, 1), np.uint8),
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(map(tuple, digests))) == 4


def header_bomb() -> bytes:
    data = bytearray(encoded(scene()))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = b"\xea\x60\xea\x60"
    return bytes(data)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", "not a JPEG, PNG or WebP image, 16 bytes"),
        (encoded(scene())[:200], "truncated after 200 bytes"),
        (encoded(scene(), "PNG")[:3000], "truncated after 3,000 bytes"),
        (encoded(scene(), "GIF"), "not a JPEG, PNG or WebP image"),
        (Unreadable("Permission denied"), "cannot be read: Permission denied"),
        (np.zeros((4, 0, 5), np.uint8), "pixels of the shape [4, 0, 5]"),
    ],
)
def test_what_cannot_be_decoded_has_a_reason(image, reason):
    row, found = look(image)
    assert found.startswith(reason)
    assert (row["decoded"], row["label"]) == (False, 3)


def test_a_header_that_claims_gigabytes_is_refused_at_once():
    row, reason = look(header_bomb())
    assert not row["decoded"]
    assert "more than 100,000,000 pixels" in reason
