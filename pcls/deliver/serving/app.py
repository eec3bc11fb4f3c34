"""The paths of the server, and what holds for each of them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from pcls.deliver.serving.body import files_of, read_body
from pcls.deliver.serving.guard import Guard
from pcls.deliver.serving.limits import (
    BAD_LABEL,
    BAD_QUERY,
    BAD_TOP,
    BUG,
    MANY_FILES,
    MOST_TOP,
    OF_STATUS,
    SLOW_ANSWER,
    SLOW_BODY,
    TOP,
    Refused,
)
from pcls.deliver.serving.openapi import description
from pcls.deliver.serving.replies import answer_json, refusal
from pcls.deliver.serving.service import Service


def application(service: Service, token: bytes = b"") -> Guard:
    """The whole of it, as an ASGI application.

    Args:
      service: what answers.
      token: asked for by the paths under /v1 and by /metrics; empty: by none.
    """

    async def predict(request: Request) -> Response:
        top = _whole_number(_query(request, "top").get("top", str(TOP)), MOST_TOP)
        start = time.perf_counter()
        async with _Deadline(service.limits.seconds) as deadline, _files(request, service, deadline) as files:
            answered = await service.answer(files)
        return answer_json(
            {
                "predictions": [_prediction(service, row, top) for row in answered.rows],
                "milliseconds": {
                    "read": _milliseconds(answered.read),
                    "model": _milliseconds(answered.model),
                    "total": _milliseconds(time.perf_counter() - start),
                },
            }
        )

    async def explain(request: Request) -> Response:
        number = _class_number(_query(request, "label").get("label"), service.classifier.class_names)
        async with _Deadline(service.limits.seconds) as deadline, _files(request, service, deadline) as files:
            if len(files) != 1:
                raise Refused(MANY_FILES)
            picture = await service.explain(files[0], number)
        return Response(picture, media_type="image/png")

    async def model(request: Request) -> Response:
        return answer_json(service.facts())

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def healthz(request: Request) -> Response:
        return answer_json({"status": "ok"})

    async def readyz(request: Request) -> Response:
        if service.is_ready and not service.is_draining:
            return answer_json({"status": "ready"})
        return answer_json({"status": "draining" if service.is_draining else "compiling"}, 503)

    routes = {
        "/": _asset("page.html", "text/html"),
        "/page.css": _asset("page.css", "text/css"),
        "/page.js": _asset("page.js", "text/javascript"),
        "/openapi.json": _constant(json.dumps(description(service.limits, bool(token))).encode(), "application/json"),
        "/healthz": healthz,
        "/readyz": readyz,
        "/metrics": metrics,
        "/v1/model": model,
    }
    posted = {"/v1/predict": predict, "/v1/explain": explain}
    app = Starlette(
        routes=[
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in routes.items()),
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in posted.items()),
        ],
        exception_handlers={
            Refused: _refused,
            HTTPException: _not_found,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )
    # A path with a slash too many is unknown; its redirection would repeat the Host header.
    app.router.redirect_slashes = False
    return Guard(app, service, {*routes, *posted}, token)


class _Deadline:
    """`asyncio.timeout` that says whether the body or the answer was slow."""

    def __init__(self, seconds: float):
        self._timeout = asyncio.timeout(seconds)
        self.has_body = False

    async def __aenter__(self) -> _Deadline:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        try:
            await self._timeout.__aexit__(*raised)
        except TimeoutError as error:
            raise Refused(SLOW_ANSWER if self.has_body else SLOW_BODY) from error


@asynccontextmanager
async def _files(request: Request, service: Service, deadline: _Deadline) -> AsyncIterator[list[bytes]]:
    """The files of the body, which is held until the end of the block."""
    with service.room.for_body() as body:
        service.check_ready()
        await read_body(request, body, service.room, service.limits)
        deadline.has_body = True
        yield files_of(bytes(body), request.headers.get("content-type", ""), service.limits.batch)


def _query(request: Request, name: str) -> Mapping[str, str]:
    """The query; Refused where it has more than one value of that name."""
    if [key for key, _ in request.query_params.multi_items()] not in ([], [name]):
        raise Refused(BAD_QUERY)
    return request.query_params


def _whole_number(text: str, most: int) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= most:
        raise Refused(BAD_TOP)
    return int(text)


def _class_number(name: str | None, names: Sequence[str]) -> int | None:
    if name is not None and name not in names:
        raise Refused(BAD_LABEL)
    return None if name is None else names.index(name)


def _prediction(service: Service, row: np.ndarray, top: int) -> dict[str, Any]:
    found = service.classifier.prediction("", row)
    names = service.classifier.class_names
    return {
        "label": found.label,
        "probability": found.probability,
        "labels": list(found.labels),
        "classes": [
            {"label": names[place], "probability": float(row[place])}
            for place in np.argsort(-row, kind="stable")[:top].tolist()
        ],
    }


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 2)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal(error.why, error.file)


def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = refusal(OF_STATUS.get(error.status_code, BUG))
    answer.headers.update(error.headers or {})
    return answer


def _gone(request: Request, error: Exception) -> Response:
    # Nobody reads it; nginx's number for a client that closed the connection, for the metrics.
    return Response(status_code=499)


def _failed(request: Request, error: Exception) -> Response:
    # Starlette raises it again after the answer, for the server's log.
    return refusal(BUG)


def _asset(name: str, kind: str) -> Callable[[Request], Any]:
    content = resources.files("pcls.deliver.serving").joinpath(name).read_bytes()
    if kind == "text/css":
        # The house's look is the report's.
        content = resources.files("pcls.evaluation.sections").joinpath("style.css").read_bytes() + content
    return _constant(content, f"{kind}; charset=utf-8")


def _constant(content: bytes, kind: str) -> Callable[[Request], Any]:
    async def send(request: Request) -> Response:
        return Response(content, headers={"Content-Type": kind})

    return send
