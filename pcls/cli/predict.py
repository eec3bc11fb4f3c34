"""`pcls predict`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

import pcls


class Format(StrEnum):
    """How predictions are printed."""

    table = "table"
    jsonl = "jsonl"


def predict(
    source: Annotated[
        str, typer.Argument(help="The folder of a finished run or of a bundle, or a name of `pcls models search`.")
    ],
    images: Annotated[
        list[str],
        typer.Argument(help="JPEG, PNG or WebP files; WAV or NPY files for models of sequences or of other channels."),
    ],
    output: Annotated[Format, typer.Option("--format", help="A table, or one JSON object a line.")] = Format.table,
) -> None:
    """Classify files of images or sequences; an unreadable one is reported in its place, and the exit code is then 2.

    A model of several labels a record gives those that reach their threshold.

    Example: pcls predict runs/first photos/a.jpg photos/b.png --format jsonl
    """
    failed = 0
    width = max(map(len, images))
    classifier = pcls.load(source)
    for answer in classifier.stream(images):
        of_all = dict(zip(classifier.class_names, answer.probabilities, strict=False))
        given = {name: of_all[name] for name in answer.labels}
        failed += bool(answer.error)
        if output is Format.jsonl:
            row: dict[str, object] = {"path": answer.path}
            one = {"label": answer.label, "probability": answer.probability}
            row |= {"labels": given} if classifier.thresholds else one
            typer.echo(json.dumps(row | {"error": answer.error}, ensure_ascii=False))
        elif answer.error:
            typer.echo(f"{answer.path:<{width}}  cannot be read: {answer.error}")
        elif classifier.thresholds:
            labels = ", ".join(f"{name} {probability:.1%}" for name, probability in given.items())
            typer.echo(f"{answer.path:<{width}}  {labels or 'no label'}")
        else:
            typer.echo(f"{answer.path:<{width}}  {answer.probability:6.1%}  {answer.label}")
    if failed:
        raise pcls.UserError(f"{failed:,} of {len(images):,} files could not be read")
