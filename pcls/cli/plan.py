"""`pcls plan`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

import pcls


def plan(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that comes with pcls.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in train.batch_size=4096")] = None,
    topology: Annotated[str, typer.Option(help="Devices: v5e:16x16, v6e:4x4, v4:2x2x4, v5p, cpu-8 ...")] = "cpu-1",
    slices: Annotated[int, typer.Option(help="TPU slices of that shape, joined by the data center network.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Do not look for the largest batch that fits.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a recipe fits some devices, what bounds it and how fast it may be; the devices need not be here.

    Example: pcls plan imagenet_resnet50 --topology v6e:4x4
    """
    plan = pcls.plan(recipe, overrides or [], topology=topology, slices=slices, largest=not quick)

    from pcls.planning.text import plan_json, plan_text, require_fit

    typer.echo(json.dumps(plan_json(plan), indent=2) if as_json else plan_text(plan))
    require_fit(plan)
