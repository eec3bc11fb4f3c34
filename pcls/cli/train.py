"""`pcls train`."""

from __future__ import annotations

from typing import Annotated

import typer

import pcls


def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with pcls.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in optimizer.lr=1e-3")] = None,
) -> None:
    """Train a recipe in a new run folder.

    Example: pcls train digits_cnn train.duration='5 epochs' run.dir=runs/first
    """
    pcls.train(recipe, overrides or [])
