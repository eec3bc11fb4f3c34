"""Clients of `pcls serve` in one process, light enough to leave the cores to the server.

`python _serve_clients.py PORT CLIENTS SECONDS RATE IMAGES GAPS`: each client has one connection and sends its next
request when the last one is answered. With a RATE above 0, requests a second of all clients, each has times of its own
at which its requests are due, with gaps that are `even` or `random` (exponential); a latency counts from then, whatever
the client still waited for. With SECONDS 0 clients go on until the server closes their connections.
Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import random
import sys
import time
from collections.abc import Iterator

import numpy as np
import uvloop
from PIL import Image


def picture() -> bytes:
    """A grey PNG of 28 x 28, about as large as one of Fashion-MNIST."""
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28)).astype(np.uint8)
    pixels[:, :8] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def request(images: int) -> bytes:
    """One image as the body, or several as a form."""
    body, kind = picture(), b"image/png"
    if images > 1:
        kind = b"multipart/form-data; boundary=b0undary"
        head = b'--b0undary\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        body = (head + body + b"\r\n") * images + b"--b0undary--\r\n"
    head = b"POST /v1/predict?top=1 HTTP/1.1\r\nhost: a\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
    return head % (kind, len(body)) + body


class Client(asyncio.Protocol):
    """One connection.

    Args:
      sent: a request.
      told: takes the seconds of each answer.
      dues: when each request is due; None: when the last one is answered.
      until: when it ends.
    """

    def __init__(self, sent: bytes, told: list[float], dues: Iterator[float] | None, until: float):
        self.sent, self.told, self.dues, self.until = sent, told, dues, until
        self.data = b""
        self.failed = self.lost = 0
        self.waits = False
        self.loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self.loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.next()

    def next(self) -> None:
        now = time.perf_counter()
        due = now if self.dues is None else next(self.dues)
        if due >= self.until:
            self.transport.close()
        elif due <= now:
            self.send(due)
        else:
            self.loop.call_later(due - now, self.send, due)

    def send(self, start: float) -> None:
        self.start, self.waits = start, True
        self.transport.write(self.sent)

    def data_received(self, data: bytes) -> None:
        self.data += data
        head = self.data.find(b"\r\n\r\n")
        if head < 0:
            return
        place = self.data.find(b"content-length: ", 0, head) + 16
        if len(self.data) < head + 4 + int(self.data[place : self.data.find(b"\r", place)]):
            return
        self.told.append(time.perf_counter() - self.start)
        self.failed += not self.data.startswith(b"HTTP/1.1 200")
        closes = b"connection: close" in self.data
        self.data, self.waits = b"", False
        if closes:
            self.transport.close()
        else:
            self.next()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost += self.waits
        if not self.over.done():
            self.over.set_result(None)


def due_times(start: float, gap: float, gaps: str, draws: random.Random) -> Iterator[float]:
    """When the requests of a client are due: so many seconds apart, or so many in the mean."""
    due = start + gap * draws.random()
    while True:
        yield due
        due += gap if gaps == "even" else draws.expovariate(1 / gap)


async def main() -> None:
    port, clients, images = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[5])
    seconds, rate, gaps = float(sys.argv[3]), float(sys.argv[4]), sys.argv[6]
    told: list[float] = []
    start = time.perf_counter()
    until = start + seconds if seconds else float("inf")
    loop, sent, draws = asyncio.get_running_loop(), request(images), random.Random(0)

    def client() -> Client:
        return Client(sent, told, due_times(start, clients / rate, gaps, draws) if rate else None, until)

    made = [(await loop.create_connection(client, "127.0.0.1", port))[1] for _ in range(clients)]
    # A pause of the clients would count as one of the server.
    gc.disable()
    print("started", flush=True)
    await asyncio.gather(*(client.over for client in made))
    took = time.perf_counter() - start
    ordered = sorted(told) or [float("nan")]
    failed = sum(client.failed for client in made)
    found = {
        "answers": len(told),
        "images_per_second": images * (len(told) - failed) / took,
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[int(len(ordered) * 0.99)],
        "failed": failed,
        "lost": sum(client.lost for client in made),
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
