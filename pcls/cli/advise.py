"""`pcls advise`."""

from __future__ import annotations

import re
from typing import Annotated

import typer

import pcls
from pcls.errors import UserError

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def advise(
    data: Annotated[
        str, typer.Argument(help="A folder of images, a file or folder of another source, SOURCE:PATH or digits.")
    ],
    device: Annotated[
        str, typer.Option(help="cpu, or a chip as v6e, h100 sxm, t4; without it the first that jax finds.")
    ] = "",
    budget: Annotated[str, typer.Option(help="Time that training may take, as in 30m, 2h or 1d.")] = "1h",
    probe: Annotated[
        str, typer.Option(help="A run, a bundle or weights by name: say how far its features go on a sample.")
    ] = "",
    run: Annotated[bool, typer.Option("--run", help="Start what is proposed.")] = False,
) -> None:
    """Propose weights, size, batch and length for some data, with the reason for each.

    Example: pcls advise photos --budget 30m
    """
    seconds = budget_seconds(budget)

    from pcls.parallel.tuning import tune_process
    from pcls.transfer.advise import advice_text

    tune_process()
    advice = pcls.advise(data, device=device, budget=seconds, probe=probe or None)
    typer.echo(advice_text(advice, data))
    if run and advice.verb == "finetune":
        pcls.finetune(data, advice.source, advice.overrides)
    elif run:
        pcls.train(advice.source, advice.overrides)


def budget_seconds(text: str) -> float:
    """`90s`, `30m`, `2h` or `1d`; UserError otherwise."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|m|min|h|d)", text)
    if found is None or not float(found[1]):
        raise UserError(f"--budget {text!r}: a number and a unit are needed, as in 90s, 30m, 2h or 1d")
    return float(found[1]) * _SECONDS[found[2]]
