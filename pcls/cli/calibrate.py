"""`pcls calibrate`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

import pcls


class Method(StrEnum):
    """What is fitted."""

    auto = "auto"
    temperature = "temperature"
    vector = "vector"
    none = "none"


def calibrate(
    run: Annotated[str, typer.Argument(help="The folder of a finished run.")],
    method: Annotated[
        Method, typer.Option(help="One temperature, a scale and bias a class, what does best, or nothing any more.")
    ] = Method.auto,
    records: Annotated[int, typer.Option(help="Held-out records to take at most; 0: all.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Calibrate the probabilities of a finished run on its held-out records; its bundle predicts with it from then on.

    Example: pcls calibrate runs/first
    """
    found = pcls.calibrate(run, method=method, records=records)

    from pcls.evaluation.text import fit_json, fit_text

    if as_json:
        typer.echo(json.dumps(fit_json(found.fit)))
        return
    typer.echo(fit_text(found.fit))
    if found.loss != "softmax":
        typer.echo(f"the model was trained with {found.loss}; its probabilities are the softmax of its logits")
    typer.echo(f"kept in the bundle: {found.calibration or 'no calibration'}")
    if found.fit.worse:
        typer.echo(
            f"it makes probabilities worse (NLL {found.fit.before.quality.nll:.4f} -> "
            f"{found.fit.after.quality.nll:.4f}); take it away: pcls calibrate {run} --method none"
        )
