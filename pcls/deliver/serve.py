"""`pcls serve`, up to the point where the model is loaded: what can be wrong is said before that takes its time."""

from __future__ import annotations

import socket
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pcls.deliver.serving.bearer import read_token
from pcls.deliver.serving.limits import Limits
from pcls.errors import UserError

if TYPE_CHECKING:
    from pcls.deliver.classifier import Classifier

PACKAGES = ("httptools", "prometheus_client", "starlette", "uvicorn")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    load: Callable[[], Classifier],
    *,
    host: str,
    port: int,
    token_file: str,
    limits: Limits,
    say: Callable[[str], None],
) -> None:
    """Serves a classifier over HTTP until SIGTERM or Ctrl-C.

    Args:
      load: loads it.
      host, port: to listen on.
      token_file: with the bearer token to ask for; empty: the environment variable PCLS_SERVE_TOKEN, if it is set.
      limits: what is taken on.
      say: hears of warnings, of the start and of the end.

    Raises:
      UserError: packages are missing, the token or the address cannot be had, or `load` says so.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"pcls serve needs {', '.join(missing)}: pip install 'pcls[serve]'")
    token = read_token(token_file, say)
    if host not in LOOPBACK and not token:
        say(f"--host {host}: whoever reaches this address may ask; --token-file FILE asks for a token")

    with open_listener(host, port) as listener:
        from pcls.deliver.serving.server import serve_classifier

        serve_classifier(load(), listener, limits, token, say)


def open_listener(host: str, port: int) -> socket.socket:
    """A socket that is bound, and does not listen yet; UserError where it cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: is no address of this machine") from error
    try:
        # A port that an ended server has left is free at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # uvicorn listens when it is ready to; until then others must not take the port.
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise UserError(f"--host {host} --port {port}: {error.strerror}; choose another port, or 0 for any") from error
    return listener
