"""HTTP/1.1 with limits on what comes before a request is whole: time, bytes, headers, connections.

uvicorn's own protocol has none of these: a client that never ends its headers would be waited for without end.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pcls.deliver.serving.limits import (
    BAD_HTTP,
    BUSY,
    LARGE_HEAD,
    MAX_CONNECTIONS,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    SLOW_BODY,
    Refusal,
)

# A request may be on its way when a server that ends closes a connection that looks idle.
LINGER = 0.25


class LimitedProtocol(HttpToolsProtocol):
    """One connection.

    Attributes:
      seconds: for a request's headers to arrive, and for the first request after the connection is made.
    """

    seconds = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock; refuses one connection too many."""
        super().connection_made(transport)
        self._in_head = False
        self._head_bytes = self._headers_seen = 0
        # Bytes since the parser was last done with something.
        self._silent = 0
        self._bad = BAD_HTTP
        self._clock: asyncio.TimerHandle | None = self.loop.call_later(self.seconds, self._too_slow)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(BUSY)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses; refuses headers, or what else is no part of a body, that do not end."""
        self._silent += len(data)
        super().data_received(data)
        if self._silent > MAX_HEAD_BYTES:
            self._refuse(LARGE_HEAD)

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._headers_seen = 0
        if self._clock is None:
            self._clock = self.loop.call_later(self.seconds, self._too_slow)

    def on_url(self, url: bytes) -> None:
        """A part of the path."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        self._headers_seen += 1
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request is handed to the application, which has its own clock."""
        self._in_head = False
        self._silent = 0
        self._stop_clock()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body, whose length the application limits."""
        self._silent = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        self._silent = 0
        super().on_message_complete()

    def shutdown(self) -> None:
        """Ends the connection after what is in flight; gives what may be on its way a moment."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LINGER, super().shutdown)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """In place of uvicorn's text, the one of the reason."""
        self._refuse(self._bad)

    def _count(self, added: int) -> None:
        self._head_bytes += added
        if self._head_bytes > MAX_HEAD_BYTES or self._headers_seen > MAX_HEADERS:
            self._bad = LARGE_HEAD
            raise ValueError(LARGE_HEAD.text)

    def _too_slow(self) -> None:
        self._clock = None
        if self._in_head:
            self._refuse(SLOW_BODY)
        else:
            self.transport.close()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _refuse(self, refusal: Refusal) -> None:
        if self.transport.is_closing():
            return
        # In the middle of an answer there is no place for another.
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            content = json.dumps({"error": refusal.text}).encode()
            head = (
                f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(content)}\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode("ascii") + content)
        self.transport.close()
