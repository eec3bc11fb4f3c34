"""`pcls compare`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

import pcls


def compare(
    first: Annotated[str, typer.Argument(help="The folder of a finished run, called A.")],
    second: Annotated[str, typer.Argument(help="That of another on the same held-out records, called B.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Say whether one of two runs is better than the other by more than chance, and at which classes.

    Example: pcls compare runs/first runs/second
    """
    comparison = pcls.compare(first, second)

    from pcls.evaluation.text import comparison_json, comparison_text

    text = json.dumps(comparison_json(comparison, (first, second))) if as_json else ""
    typer.echo(text or comparison_text(comparison, (first, second)))
