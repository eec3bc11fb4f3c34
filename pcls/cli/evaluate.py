"""`pcls eval`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

import pcls


class Views(StrEnum):
    """Views of an image whose logits are averaged."""

    none = "none"
    mirror = "mirror"
    shift = "shift"


def evaluate(
    run: Annotated[
        str, typer.Argument(help="The run's folder; with --data also a bundle's, or a name of models search.")
    ],
    data: Annotated[str, typer.Option(help="Another set with the model's classes, or some of them.")] = "",
    labels: Annotated[str, typer.Option(help="With --data: JSON with lists of right answers, as real.json.")] = "",
    by: Annotated[str, typer.Option(help="A column of the manifest: accuracy for each of its values.")] = "",
    tta: Annotated[Views | None, typer.Option(help="Views of an image, instead of the recipe's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with everything instead of text.")] = False,
) -> None:
    """Evaluate the newest checkpoint of a run on its held-out records, each counted once; or its bundle on other data.

    Example: pcls eval runs/first --json
    """
    evaluation = pcls.evaluate(run, data=data, labels=labels, by=by, tta=tta or "")

    from pcls.evaluation.text import evaluation_json, evaluation_text

    typer.echo(json.dumps(evaluation_json(evaluation)) if as_json else evaluation_text(evaluation))
