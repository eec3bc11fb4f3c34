"""`pcls replay`."""

from __future__ import annotations

from typing import Annotated

import typer

import pcls


def replay(
    run: Annotated[str, typer.Argument(help="The folder of a run.")],
    step: Annotated[int, typer.Argument(help="The step, counted from 1.")],
) -> None:
    """Take a step of a run once more, and tell which records, parameters or gradients are not finite in it.

    The run is trained from its newest checkpoint before the step up to it, in memory; on the same devices every bit is
    that of the run. The losses of all records of the batch go to diagnosis-STEP.json.

    Example: pcls replay runs/first 812
    """
    typer.echo(pcls.replay(run, step).text)
