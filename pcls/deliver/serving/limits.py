"""What the server takes on, and how it says no."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pcls.errors import UserError

# A camera of 24 million pixels, and what is twice as large on a screen; four times their bytes are held while decoding.
MAX_PIXELS = 40_000_000
# Of a request's line and headers together, and of its headers in number.
MAX_HEAD_BYTES, MAX_HEADERS = 32_768, 100
MAX_CONNECTIONS = 2_048
# Bodies that are held at one time, of all requests: slow senders hold little, and large bodies few.
HELD_BODIES = 32
# Classes that an answer names: customarily, and at most.
TOP, MOST_TOP = 5, 1_000

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "KIB": 2**10, "MIB": 2**20}


@dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Attributes:
      batch: images that the model is asked about at one time.
      wait: seconds that the first image of a batch waits for others.
      queue: images that are held, from when they are accepted until they are answered.
      body: bytes of a request.
      seconds: from a request's first byte to its answer.
    """

    batch: int = 32
    wait: float = 0.0
    queue: int = 256
    body: int = 10_000_000
    seconds: float = 30.0

    def __post_init__(self) -> None:
        checks = (
            ("--max-batch", self.batch, 1 <= self.batch <= 1024, "1 to 1024"),
            ("--max-wait", self.wait * 1000, 0 <= self.wait <= 10, "0 to 10,000 milliseconds"),
            ("--queue", self.queue, self.batch <= self.queue <= 100_000, "--max-batch to 100,000"),
            ("--max-body", self.body, 1_000 <= self.body <= 10**9, "1KB to 1000MB"),
            ("--timeout", self.seconds, 0.1 <= self.seconds <= 3600, "0.1 to 3,600 seconds"),
        )
        for name, value, fits, allowed in checks:
            # NaN fits nothing.
            if not fits or not math.isfinite(value):
                raise UserError(f"{name} is {value:g}; {allowed} is allowed")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batches that the model is compiled for: 1, 2, 4 and so on, and the largest."""
        return *(2**n for n in range((self.batch - 1).bit_length())), self.batch


def bytes_of(text: str) -> int:
    """Bytes of `10MB`, `500KB`, `2MiB` or `1000000`; UserError for anything else."""
    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    if match is None or match[2].upper() not in UNITS:
        raise UserError(f"--max-body is {text!r}; a size such as 10MB, 500KB or 2MiB is needed")
    return int(float(match[1]) * UNITS[match[2].upper()])


@dataclass(frozen=True)
class Refusal:
    """No answer but a status and a text, which is one of these few whatever was sent."""

    status: int
    text: str


class Refused(Exception):
    """Raised anew each time: one exception raised again and again would hold every frame that it went through."""

    def __init__(self, why: Refusal, file: int | None = None):
        """`file` counts from 1: which file of a form is at fault."""
        super().__init__(why.text)
        self.why, self.file = why, file


BAD_HTTP = Refusal(400, "this is no HTTP request")
DAMAGED = Refusal(400, "the image is damaged")
EMPTY = Refusal(400, "the body is empty")
BAD_FORM = Refusal(400, "this is no multipart form of files")
BAD_QUERY = Refusal(400, "the query takes one parameter, once: top of predict, label of explain; see /openapi.json")
BAD_TOP = Refusal(400, "top is a whole number from 1 to 1000; see /openapi.json")
BAD_LABEL = Refusal(400, "label is a class of the model, by its name; /v1/model lists them")
NO_TOKEN = Refusal(401, "a bearer token is needed")
NO_PAGE = Refusal(404, "nothing is here")
NO_METHOD = Refusal(405, "this method is not for this path")
SLOW_BODY = Refusal(408, "the request took too long to arrive")
LARGE_BODY = Refusal(413, "the body is too large")
LARGE_PICTURE = Refusal(413, "the image has too many pixels")
MANY_FILES = Refusal(413, "the form has more files than this path takes: predict a batch, explain one")
NO_TYPE = Refusal(
    415,
    "the header Content-Type is missing or names none of image/jpeg, image/png, image/webp, application/octet-stream "
    "and multipart/form-data; see /openapi.json",
)
NO_PICTURE = Refusal(415, "the body is no image that this model reads")
FULL = Refusal(429, "too many images are waiting; send again later")
LARGE_HEAD = Refusal(431, "the headers are too large")
BUG = Refusal(500, "the server failed")
STARTING = Refusal(503, "the model is being compiled; send again later")
BUSY = Refusal(503, "the server is busy; send again later")
SLOW_ANSWER = Refusal(504, "the answer took too long")

# What the router finds.
OF_STATUS = {refusal.status: refusal for refusal in (BAD_HTTP, NO_PAGE, NO_METHOD)}


class Room:
    """How many images and bytes are held, of all requests together."""

    def __init__(self, limits: Limits):
        self._most_images, self._most_bytes = limits.queue, limits.body * HELD_BODIES
        self.images = 0
        self.bytes = 0

    @contextmanager
    def for_images(self, count: int) -> Iterator[None]:
        """Holds them until the end of the block; FULL where there is no room."""
        if self.images + count > self._most_images:
            raise Refused(FULL)
        self.images += count
        try:
            yield
        finally:
            self.images -= count

    @contextmanager
    def for_body(self) -> Iterator[bytearray]:
        """An empty body to which `add` adds; what it holds is given back at the end of the block."""
        body = bytearray()
        try:
            yield body
        finally:
            self.bytes -= len(body)

    def add(self, body: bytearray, chunk: bytes) -> None:
        """Adds to a body of `for_body`; BUSY where there is no room."""
        if self.bytes + len(chunk) > self._most_bytes:
            raise Refused(BUSY)
        body += chunk
        self.bytes += len(chunk)
