"""Answers as JSON, of which some are a refusal."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from pcls.deliver.serving.limits import Refusal


def answer_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Plain values, in ASCII."""
    # Escaped to ASCII: names of folders that are not UTF-8 reach Python as lone surrogates.
    text = json.dumps(content, allow_nan=False).encode("ascii")
    return Response(text, status, headers, media_type="application/json")


def refusal(why: Refusal, file: int | None = None) -> Response:
    """As JSON; with what its status asks for, and which file of a form is at fault."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}
    content = {"error": why.text} | ({} if file is None else {"file": file})
    return answer_json(content, why.status, headers.get(why.status))
