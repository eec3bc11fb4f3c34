"""The bearer token: from a file or from the environment, never from the command line, where every process reads it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from pcls.errors import UserError

VARIABLE = "PCLS_SERVE_TOKEN"
# Of a bearer token. Source: RFC 6750.
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]{16,1024}=*")
_ALLOWED = "16 to 1,024 letters, digits or any of . _ ~ + / - are needed"


def read_token(path: str, warn: Callable[[str], None]) -> bytes:
    """The token that clients must send; empty: none was set.

    Args:
      path: of a file that holds it; empty: the environment variable PCLS_SERVE_TOKEN does.
      warn: hears where others may read the file.

    Raises:
      UserError: the file cannot be read, or holds no token.
    """
    if not path:
        value = os.environ.get(VARIABLE)
        if value is None:
            return b""
        return _checked(value.encode("utf-8", "surrogateescape"), VARIABLE)
    file = Path(path)
    try:
        if not file.is_file():
            raise UserError(f"--token-file {path}: is no file; write the token into one that only you can read")
        if file.stat().st_mode & stat.S_IROTH:
            warn(f"--token-file {path}: every user of this machine can read it; chmod 600 {path}")
        with file.open("rb") as opened:
            return _checked(opened.read(2048), f"--token-file {path}")
    except OSError as error:
        raise UserError(f"--token-file {path}: {error.strerror}") from error


def _checked(text: bytes, place: str) -> bytes:
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        # What it holds is not repeated: it may be a token with a slip.
        raise UserError(f"{place}: holds no token; {_ALLOWED}")
    return token
