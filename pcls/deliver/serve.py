"""`pcls serve`, up to the point where the model is loaded: what can be wrong is said before that takes its time."""

from __future__ import annotations

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

    from pcls.deliver.serving.server import open_listener, serve_classifier

    with open_listener(host, port) as listener:
        serve_classifier(load(), listener, limits, token, say)
