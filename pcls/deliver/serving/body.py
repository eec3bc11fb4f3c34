"""From the body of a request to the files in it."""

from __future__ import annotations

import re

from PIL import Image
from starlette.requests import Request

from pcls.data.decode import FORMATS, DecodeError, open_image
from pcls.data.preprocessing import GREY, RGB, Preprocessing
from pcls.deliver.serving.limits import (
    BAD_FORM,
    DAMAGED,
    EMPTY,
    LARGE_BODY,
    LARGE_PICTURE,
    MANY_FILES,
    MAX_PIXELS,
    NO_PICTURE,
    NO_TYPE,
    Limits,
    Refused,
    Room,
)

FORM = "multipart/form-data"
# Whatever it is, its first bytes decide.
BYTES = "application/octet-stream"
IMAGES = tuple(f"image/{name.lower()}" for name in FORMATS)
NPY, PNG, HEADER = b"\x93NUMPY", b"\x89PNG\r\n\x1a\n", b"IHDR"

BOUNDARY = re.compile(r';\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))', re.IGNORECASE)
FILE = re.compile(rb"^content-disposition:[ \t]*form-data;.*\bfilename\*?=", re.IGNORECASE | re.MULTILINE)


async def read_body(request: Request, body: bytearray, room: Room, limits: Limits) -> None:
    """Reads the body into one of `Room.for_body`; Refused once it is too large, where it says so before it is read."""
    if int(request.headers.get("content-length", 0)) > limits.body:
        raise Refused(LARGE_BODY)
    async for chunk in request.stream():
        if len(body) + len(chunk) > limits.body:
            raise Refused(LARGE_BODY)
        room.add(body, chunk)
    if not body:
        raise Refused(EMPTY)


def files_of(body: bytes, content_type: str, most: int) -> list[bytes]:
    """The files of a body, which is one itself or a form of some.

    Args:
      body: bytes of the request.
      content_type: its header.
      most: files that are allowed.

    Raises:
      Refused: another type, a form that cannot be read, too many files.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in (*IMAGES, BYTES):
        return [body]
    if kind != FORM:
        raise Refused(NO_TYPE)
    found = BOUNDARY.search(content_type)
    if found is None:
        raise Refused(BAD_FORM)
    return form_files(body, (found[1] or found[2]).encode("latin-1"), most)


def form_files(body: bytes, boundary: bytes, most: int) -> list[bytes]:
    """The files of a multipart form. Source: RFC 7578.

    Args:
      body: bytes of the request.
      boundary: from its content type.
      most: files that are allowed.

    Raises:
      Refused: it is no such form, has a part that is no file, or too many files.
    """
    # What stands before the first boundary, the parts, and what follows the last one.
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary, most + 2)
    if len(parts) == most + 3:
        raise Refused(MANY_FILES)
    if len(parts) < 3 or not parts[-1].startswith(b"--"):
        raise Refused(BAD_FORM)
    files = []
    for part in parts[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        if not FILE.search(head):
            raise Refused(BAD_FORM)
        files.append(content)
    return files


def check_picture(data: bytes, preprocessing: Preprocessing) -> None:
    """Refused where the first bytes are of nothing that the model reads, or tell of too many pixels."""
    if preprocessing.channels not in (GREY, RGB):
        if not data.startswith(NPY):
            raise Refused(NO_PICTURE)
        return
    if not (data.startswith((b"\xff\xd8\xff", PNG)) or (data[:4], data[8:12]) == (b"RIFF", b"WEBP")):
        raise Refused(NO_PICTURE if data else EMPTY)
    width, height = png_size(data) or _size(data)
    if width * height > MAX_PIXELS:
        raise Refused(LARGE_PICTURE)


def png_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG file whose one header is where it belongs; None: ask Pillow, which takes longer."""
    # Of several headers the last would count.
    if not data.startswith(PNG) or data[12:16] != HEADER or data.count(HEADER) != 1 or len(data) < 24:
        return None
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def _size(data: bytes) -> tuple[int, int]:
    try:
        return open_image(data).size
    # Of what is not empty a DecodeError says only this.
    except (DecodeError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(LARGE_PICTURE) from error
    # Whatever Pillow's parsers meet.
    except Exception as error:
        raise Refused(DAMAGED) from error
