"""`pcls train`."""

from __future__ import annotations

import re
from typing import Annotated

import typer

import pcls
from pcls.errors import UserError

PROFILE = Annotated[str, typer.Option(help="Trace these steps, FIRST:LAST, for XProf or TensorBoard.")]


def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with pcls.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in optimizer.lr=1e-3")] = None,
    profile: PROFILE = "",
    seeds: Annotated[int, typer.Option(help="Runs of so many seeds from train.seed on, in folders of their own.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with this recipe's run where run.dir has it.")
    ] = False,
) -> None:
    """Train a recipe in a new run folder.

    Example: pcls train digits_cnn train.duration='5 epochs' run.dir=runs/first
    """
    if seeds == 1:
        pcls.train(recipe, overrides or [], profile=profiled_steps(profile), resume=resume)
        return
    if profile or resume:
        raise UserError(f"{'--profile traces' if profile else '--resume goes on with'} one run; leave out --seeds")
    pcls.train_seeds(recipe, overrides or [], seeds=seeds)


def profiled_steps(text: str) -> range | None:
    """`10:15` to the steps 10 to 15, counted from 1, both included; nothing to None.

    Raises:
      UserError: not of that form, or the last comes before the first.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile {text!r}: two steps are needed, FIRST:LAST, counted from 1, as in 10:15")
    return range(first, last + 1)
