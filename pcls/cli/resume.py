"""`pcls resume`."""

from __future__ import annotations

from typing import Annotated

import typer

import pcls
from pcls.cli.train import PROFILE, profiled_steps


def resume(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in train.duration='20 epochs'")] = None,
    profile: PROFILE = "",
) -> None:
    """Go on with a stopped run from its newest valid checkpoint.

    Example: pcls resume runs/first
    """
    pcls.resume(run, overrides or [], profile=profiled_steps(profile))
