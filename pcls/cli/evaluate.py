"""`pcls eval`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

import pcls


def evaluate(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Evaluate the newest checkpoint of a run on its held-out records, each counted once.

    Example: pcls eval runs/first --json
    """
    summary = pcls.evaluate(run).summary()
    if as_json:
        typer.echo(json.dumps(summary))
        return
    for name, value in summary.items():
        typer.echo(f"{name:<12} {value:,}" if isinstance(value, int) else f"{name:<12} {value:.4f}")
