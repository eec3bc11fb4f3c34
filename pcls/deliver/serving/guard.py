"""What holds for every request: the token, headers of safety, counting, an end in good order."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pcls.deliver.serving.limits import NO_TOKEN
from pcls.deliver.serving.replies import refusal
from pcls.deliver.serving.service import Service

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = [
    (b"content-security-policy", POLICY.encode("ascii")),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
CLOSE = (b"connection", b"close")
# A client that is still sending reads no answer, and a connection that is closed on it may take the answer along.
LINGER = 2.0


class Guard:
    """Stands before the application."""

    def __init__(self, app: ASGIApp, service: Service, paths: Collection[str], token: bytes):
        """Makes it.

        Args:
          app: the application.
          service: whose end is asked about, and whose metrics count.
          paths: that are counted by name.
          token: empty: none is asked for.
        """
        self._app, self._service, self._paths = app, service, paths
        self._token = hashlib.sha256(token).digest() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, path = time.perf_counter(), scope["path"]
        headers = dict(scope["headers"])
        # Of a request without a body nothing remains to be read.
        is_read = int(headers.get(b"content-length", 0)) == 0 and b"transfer-encoding" not in headers
        status = 500

        async def guarded_receive() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = not message.get("more_body", False)
            return message

        async def guarded_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *SAFE]}
                if self._service.is_draining or not is_read:
                    message["headers"].append(CLOSE)
            elif not message.get("more_body", False) and not is_read:
                await send({**message, "more_body": True})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LINGER):
                        while not is_read:
                            await guarded_receive()
                message = {"type": "http.response.body"}
            await send(message)

        try:
            if self._is_allowed(path, headers):
                await self._app(scope, guarded_receive, guarded_send)
            else:
                await refusal(NO_TOKEN)(scope, guarded_receive, guarded_send)
        finally:
            known = path if path in self._paths else "other"
            self._service.metrics.request(known, status, time.perf_counter() - start)

    def _is_allowed(self, path: str, headers: dict[bytes, bytes]) -> bool:
        # Whatever is unknown is told to nobody either.
        if not self._token or not (path.startswith("/v1/") or path == "/metrics"):
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Of digests: they are of one length, whatever was sent.
        return scheme.lower() == b"bearer" and hmac.compare_digest(hashlib.sha256(given).digest(), self._token)
