"""`pcls probe`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

import pcls
from pcls.errors import UserError


def probe(
    model: Annotated[
        str, typer.Argument(help="The folder of a finished run or of a bundle, or a name of `pcls models search`.")
    ],
    data: Annotated[
        str, typer.Option(help="A folder of images, a file or folder of another source, SOURCE:PATH or digits.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="data.*=value, as in data.validation=0.3")] = None,
    kind: Annotated[str, typer.Option(help="knn, mean, lda, linear, several of them as in knn,lda, or all.")] = "all",
    shots: Annotated[str, typer.Option(help="Records a class to fit to, as in 1,5,20,all.")] = "1,5,20,100,all",
    seeds: Annotated[int, typer.Option(help="Draws of these records.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Fit simple classifiers to what enters a model's head, from few records a class to all.

    Example: pcls probe runs/first --data photos --kind knn,linear
    """
    kinds = [] if kind == "all" else kind.split(",")
    found = pcls.probe(model, data, overrides or [], kinds=kinds, shots=shots_of(shots), seeds=seeds)
    if as_json:
        typer.echo(json.dumps(found.summary()))
        return

    from pcls.transfer.probe import probes_text

    typer.echo(probes_text(found))


def shots_of(text: str) -> list[int | None]:
    """`1,5,all` as numbers, None for all; UserError for anything else."""
    words = [word.strip() for word in text.split(",")]
    if not all(word == "all" or (word.isdecimal() and word.isascii() and int(word)) for word in words):
        raise UserError(f"--shots {text!r}: numbers of records a class, or all, are needed, as in 1,5,20,all")
    return [None if word == "all" else int(word) for word in words]
