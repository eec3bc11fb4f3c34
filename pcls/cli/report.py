"""`pcls report`."""

from __future__ import annotations

from typing import Annotated

import typer

import pcls


def report(run: Annotated[str, typer.Argument(help="The run's folder.")]) -> None:
    """Write a run's report, one HTML page that needs nothing else, and print its path.

    Example: pcls report runs/first
    """
    typer.echo(pcls.report(run))
