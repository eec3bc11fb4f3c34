"""The process: a socket, a model, an end in good order."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import resource
import signal
import socket
import warnings
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from pcls.deliver.classifier import Classifier
from pcls.deliver.serving.app import application
from pcls.deliver.serving.limits import Limits
from pcls.deliver.serving.protocol import LimitedProtocol
from pcls.deliver.serving.service import Service
from pcls.errors import UserError

# After SIGTERM requests are still taken on for so many seconds, each with the last answer of its connection: so long
# a load balancer, and a client with an open connection, may take to hear of it.
GRACE = 0.5
KEEP_ALIVE = 30
BACKLOG = 2048


def serve_classifier(
    classifier: Classifier, listener: socket.socket, limits: Limits, token: bytes, say: Callable[[str], None]
) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers what was accepted, and returns.

    Args:
      classifier: of images.
      listener: bound, and not yet listening.
      limits: what is taken on.
      token: that is asked for; empty: none.
      say: hears of the start and of the end.

    Raises:
      UserError: a model of sequences.
      Exception: whatever the model's compilation raised.
    """
    if classifier.preprocessing.sequence is not None:
        raise UserError("pcls serve answers for images, and this is a model of sequences: pcls predict takes those")
    _allow_connections()
    service = Service(classifier, limits)
    config = uvicorn.Config(
        application(service, token),
        http=type("Protocol", (LimitedProtocol,), {"seconds": limits.seconds}),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(limits.seconds) + 1,
    )
    # What a client sends that is no HTTP is the client's matter; only a failure of ours is told.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    # Pillow's word for damaged EXIF data, and for pictures near its own limit; ours is the one that holds.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    server = _Server(config, service, _url(listener), say)
    # uvicorn hands a signal on once it has ended, which would be the process's end by that signal.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        service.close()
        for number, old in before.items():
            signal.signal(number, old)
    if server.failure is not None:
        raise server.failure
    say(f"ended; {service.metrics.answered:,} requests were answered")


class _Server(uvicorn.Server):
    """uvicorn's, which compiles when it listens, and tells before it ends."""

    def __init__(self, config: uvicorn.Config, service: Service, url: str, say: Callable[[str], None]):
        super().__init__(config)
        self._service, self._url, self._say = service, url, say
        self.failure: BaseException | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and begins to compile."""
        await super().startup(sockets)
        classifier = self._service.classifier
        self._say(f"{self._url}: compiling {classifier.bundle.model}, {len(classifier.class_names):,} classes")
        self._running = asyncio.create_task(self._service.run(self._tell_ready))
        self._running.add_done_callback(self._ended)

    def _tell_ready(self) -> None:
        # What lives as long as the process is not looked at again: a pass over all of jax takes longer than an answer.
        gc.collect()
        gc.freeze()
        self._say(f"{self._url}: ready, for batches of {', '.join(map(str, self._service.limits.sizes))}")

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.failure = task.exception()
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes requests on for a moment longer, then answers what was accepted, and lets the model go."""
        self._service.is_draining = True
        self._service.metrics.ready.set(0)
        if self.failure is None and not self.force_exit:
            self._say("answering what was accepted, then ending")
            await asyncio.sleep(GRACE)
        await super().shutdown(sockets)
        self._running.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await self._running


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _allow_connections() -> None:
    """As many open files as this process may have: a connection takes one, and 1,024 is customary."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
