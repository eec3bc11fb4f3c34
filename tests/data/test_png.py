"""Plain PNG files by the fast decoder: to the pixel what Pillow gives, and Pillow's matter where there is any doubt."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pcls.data import decode as decoding
from pcls.data.crops import ATTEMPTS, DRAWS
from pcls.data.decode import DecodeError, decode
from pcls.data.png import HARMLESS, MAX_PIXELS, SIGNATURE, plain_png
from pcls.data.preprocessing import Preprocessing

RNG = np.random.default_rng(0)
EXIF = Image.Exif()
EXIF[0x0112] = 6


def file_of(pixels, form="PNG", **options):
    """The bytes of [height, width, channels] or [height, width]."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, form, **options)
    return content.getvalue()


def drawn(height, width, channels):
    pixels = RNG.integers(0, 256, (height, width, channels), np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(file, kind, content):
    """The file with a chunk more, behind its header."""
    return file[:33] + chunk(kind, content) + file[33:]


def by_pillow(data, preprocessing):
    return decoding._by_pillow(lambda: decoding.open_image(data), len(data), preprocessing, None)


def outcome(function, *arguments):
    """Pixels, or that there are none."""
    try:
        return function(*arguments)
    except DecodeError:
        return None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (28, 28), (5, 40), (40, 5), (2, 300)])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"compress_level": 0}])
def test_pixels_are_those_that_were_written(height, width, channels, options):
    pixels = drawn(height, width, channels)
    np.testing.assert_array_equal(plain_png(file_of(pixels, **options)), pixels.reshape(height, width, channels))


@pytest.mark.parametrize("wanted", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", [{}, {"crop_pct": 0.5}, {"crop_mode": "border"}, {"crop_mode": "squash"}])
def test_what_evaluation_sees_is_what_pillow_would_show(wanted, channels, crop):
    preprocessing = Preprocessing(12, 12, wanted, (0.5,) * wanted, (0.5,) * wanted, **crop)
    for height, width in ((12, 12), (12, 30), (31, 7), (1, 700)):
        file = file_of(drawn(height, width, channels))
        np.testing.assert_array_equal(decode(file, preprocessing), by_pillow(file, preprocessing))


def test_a_random_crop_is_the_one_that_pillow_would_cut():
    preprocessing = Preprocessing(9, 9, 3, (0.5,) * 3, (0.5,) * 3)
    file, draws = file_of(drawn(20, 24, 3)), RNG.random((ATTEMPTS, DRAWS))
    expected = decoding._by_pillow(lambda: decoding.open_image(file), len(file), preprocessing, draws)
    np.testing.assert_array_equal(decode(file, preprocessing, draws), expected)


# Of one channel.
CONTENT = {
    b"bKGD": b"\0\5",
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
    b"gAMA": struct.pack(">I", 45455),
    b"pHYs": struct.pack(">IIB", 1, 2, 1),
    b"sBIT": b"\5",
    b"sRGB": b"\0",
    b"tIME": struct.pack(">HBBBBB", 2026, 11, 30, 12, 0, 0),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_chunks_change_no_pixel(kind, channels):
    pixels = drawn(6, 5, channels)
    content = CONTENT[kind] * (channels if HARMLESS[kind][1] else 1)
    file = with_chunk(file_of(pixels), kind, content)
    np.testing.assert_array_equal(plain_png(file), pixels.reshape(6, 5, channels))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), pixels)
    # Too long, too short, twice, behind the pixels: Pillow's matter.
    assert plain_png(with_chunk(file_of(pixels), kind, content + b"\0")) is None
    assert plain_png(with_chunk(file_of(pixels), kind, content[:-1])) is None
    assert plain_png(with_chunk(file, kind, content)) is None
    assert plain_png(file_of(pixels)[:-12] + chunk(kind, content) + END) is None


END = chunk(b"IEND", b"")


def test_pixels_may_come_in_pieces():
    pixels = drawn(20, 20, 3)
    file = file_of(pixels)
    stream = file[41:-16]
    assert zlib.decompress(stream)
    pieces = b"".join(chunk(b"IDAT", stream[place : place + 100]) for place in range(0, len(stream), 100))
    np.testing.assert_array_equal(plain_png(file[:33] + pieces + END), pixels)
    text = chunk(b"tEXt", b"a\0b")
    assert plain_png(file[:33] + pieces[:112] + text + pieces[112:] + END) is None


PILLOWS = {
    "palette": lambda: file_of(np.zeros((4, 4), np.uint8), bits=1),
    "alpha": lambda: file_of(RNG.integers(0, 256, (4, 4, 4), np.uint8)),
    "16 bits": lambda: file_of(RNG.integers(0, 65536, (4, 4)).astype(np.uint16)),
    "a transparent grey": lambda: with_chunk(file_of(drawn(4, 4, 1)), b"tRNS", b"\0\7"),
    "an orientation": lambda: file_of(drawn(4, 4, 3), exif=EXIF),
    "text": lambda: with_chunk(file_of(drawn(4, 4, 1)), b"tEXt", b"Comment\0hello"),
    "another format": lambda: file_of(drawn(4, 4, 3), "JPEG"),
    "something behind the end": lambda: file_of(drawn(4, 4, 1)) + b"more",
    "a second header": lambda: with_chunk(file_of(drawn(4, 4, 1)), b"IHDR", file_of(drawn(9, 9, 1))[16:29]),
    "two ends": lambda: file_of(drawn(4, 4, 1)) + END,
    "an end that holds something": lambda: file_of(drawn(4, 4, 1))[:-12] + chunk(b"IEND", b"more"),
    "pixels behind the end": lambda: file_of(drawn(4, 4, 1))[:33] + END + file_of(drawn(4, 4, 1))[33:],
    "no pixels": lambda: file_of(drawn(4, 4, 1))[:33] + END,
    "nothing": lambda: b"",
    "a signature": lambda: SIGNATURE,
    "more pixels than allowed": lambda: file_of(drawn(1, MAX_PIXELS + 1, 1)),
}


@pytest.mark.parametrize("what", PILLOWS)
def test_anything_else_is_pillows(what):
    assert plain_png(PILLOWS[what]()) is None


def test_an_interlaced_file_is_pillows():
    file = bytearray(file_of(drawn(4, 4, 1)))
    file[28] = 1
    file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    assert plain_png(bytes(file)) is None


@pytest.mark.faults
@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_of_which_any_byte_is_lost_or_changed_is_judged_as_pillow_does(channels):
    preprocessing = Preprocessing(6, 5, channels, (0.5,) * channels, (0.5,) * channels)
    file = file_of(drawn(6, 5, channels))
    damaged = [file[:length] for length in range(len(file))]
    for place, value in enumerate(file):
        damaged += [file[:place] + bytes([value ^ bit]) + file[place + 1 :] for bit in (1, 128)]
    for data in damaged:
        assert plain_png(data) is None
        expected, found = outcome(by_pillow, data, preprocessing), outcome(decode, data, preprocessing)
        assert (expected is None) == (found is None)
        if expected is not None:
            np.testing.assert_array_equal(found, expected)


@pytest.mark.faults
@pytest.mark.parametrize("what", ["half", "few rows", "a filter that is none", "no stream", "a wrong sum", "nothing"])
def test_pixels_that_are_wrong_under_right_checksums_are_pillows(what, capfd):
    rows = b"".join(b"\0" + row.tobytes() for row in drawn(6, 5, 1))
    stream = zlib.compress(rows)
    wrong = {
        "half": stream[: len(stream) // 2],
        "few rows": zlib.compress(rows[:12]),
        "a filter that is none": zlib.compress(b"\x09" + rows[1:]),
        "no stream": b"hello",
        "a wrong sum": stream[:-4] + b"abcd",
        "nothing": b"",
    }[what]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 8, 0, 0, 0, 0))
    file = SIGNATURE + header + chunk(b"IDAT", wrong) + chunk(b"IEND", b"")
    assert plain_png(file) is None
    preprocessing = Preprocessing(6, 5, 1, (0.5,), (0.5,))
    found = outcome(decode, file, preprocessing)
    # Of too few rows Pillow makes black ones.
    assert (found is None) == (what != "few rows")
    np.testing.assert_equal(found, outcome(by_pillow, file, preprocessing))
    # libpng tells a terminal what it met, and no path.
    assert "/" not in capfd.readouterr().err
