"""`pcls sweep`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import pcls


def sweep(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with pcls.")],
    folder: Annotated[Path, typer.Option(help="Of the sweep; give it to as many processes as you like.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="key=value; tried are log:a..b, a..b and lists a,b,c; train.seed repeats each."),
    ] = None,
    strategy: Annotated[str, typer.Option(help="random, grid (all combinations) or halving.")] = "random",
    trials: Annotated[int, typer.Option(help="Settings drawn by random and halving; 0: 10.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Of the draws.", min=0)] = 0,
    metric: Annotated[
        str, typer.Option(help="top1, top5, balanced, macro_f1, loss; of several labels map, micro_f1.")
    ] = "top1",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a recipe with several settings and compare them; processes with one folder share the work.

    Example: pcls sweep digits_cnn optimizer.lr=log:1e-4..1e-1 train.seed=0..2 --trials 8 --folder runs/sweep
    """
    found = pcls.sweep(recipe, arguments or [], folder, strategy=strategy, trials=trials, seed=seed, metric=metric)

    from pcls.run.sweep import sweep_json, sweep_text

    typer.echo(json.dumps(sweep_json(found), indent=2) if as_json else sweep_text(found))
