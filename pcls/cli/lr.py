"""`pcls lr`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import pcls


def lr(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with pcls.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in optimizer.name=sgd")] = None,
    steps: Annotated[int, typer.Option(help="Rates that are tried, a batch each.")] = 100,
    lowest: Annotated[float, typer.Option("--from", help="The lowest rate.")] = 1e-7,
    highest: Annotated[float, typer.Option("--to", help="The highest rate.")] = 10.0,
    out: Annotated[Path | None, typer.Option(help="Draw the curve too: a file .png, .svg or .html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find a learning rate: raise it from batch to batch and look at the loss; nothing is kept.

    Example: pcls lr digits_cnn --out lr.svg
    """
    from pcls.run.rate_finder import checked_ending, curve_json, curve_text, write_picture

    if out is not None:
        checked_ending(out)
    found = pcls.find_rate(recipe, overrides or [], steps=steps, lowest=lowest, highest=highest)
    typer.echo(json.dumps(curve_json(found), indent=2) if as_json else curve_text(found))
    if out is not None:
        write_picture(found, out)
        typer.echo(f"drawn: {out}", err=True)
