"""`pcls serve`."""

from __future__ import annotations

from typing import Annotated

import typer

import pcls


def serve(
    source: Annotated[
        str, typer.Argument(help="The folder of a finished run or of a bundle, or a name of `pcls models search`.")
    ],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0: all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0: any that is free.", min=0, max=65535)] = 8000,
    token_file: Annotated[
        str, typer.Option(help="A file with the bearer token to ask for; else the variable PCLS_SERVE_TOKEN, if set.")
    ] = "",
    max_batch: Annotated[int, typer.Option(help="Images that the model is asked about together.")] = 32,
    max_wait: Annotated[float, typer.Option(help="Milliseconds that a batch's first image waits for others.")] = 0.0,
    queue: Annotated[int, typer.Option(help="Images that may wait; more are refused (429).")] = 256,
    max_body: Annotated[str, typer.Option(help="The largest request, as 10MB or 500KB.")] = "10MB",
    timeout: Annotated[float, typer.Option(help="Seconds until a request must have its answer.")] = 30.0,
) -> None:
    """Answer for images over HTTP: POST /v1/predict, a page at /, a description at /openapi.json; SIGTERM ends it.

    Example: pcls serve runs/first --port 8000
    """
    pcls.serve(
        source,
        host=host,
        port=port,
        token_file=token_file,
        max_batch=max_batch,
        max_wait=max_wait,
        queue=queue,
        max_body=max_body,
        timeout=timeout,
    )
