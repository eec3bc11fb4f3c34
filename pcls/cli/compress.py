"""`pcls compress`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

import pcls


class Score(StrEnum):
    """Which channels go."""

    l2 = "l2"
    l1 = "l1"
    scale = "scale"


def compress(
    run: Annotated[str, typer.Argument(help="The folder of a finished run.")],
    target: Annotated[
        str,
        typer.Option(
            help="int8 (weights and inputs), or narrower layers: flops=0.5 (the share that stays), size=1MB (of the "
            "file), latency=2ms (of one image, here)."
        ),
    ] = "int8",
    weights_only: Annotated[bool, typer.Option("--weights-only", help="int8: inputs stay as they are.")] = False,
    bits: Annotated[int, typer.Option(help="Of the weights, int8 and size: 8 or 4.")] = 8,
    records: Annotated[
        int,
        typer.Option(help="int8: training records at most for the ranges of inputs, held-out ones for each layer."),
    ] = 256,
    max_loss: Annotated[float, typer.Option(help="Points of top-1 accuracy that it may cost; else refused.")] = 1.0,
    steps: Annotated[int, typer.Option(help="In which layers are narrowed, with some training after each.")] = 3,
    finetune: Annotated[str, typer.Option(help="How long each time, as '2 epochs'; empty: a fifth of the run.")] = "",
    score: Annotated[
        Score, typer.Option(help="Which channels go: of the smallest kernels, or scales of BatchNorm.")
    ] = Score.l2,
    out: Annotated[str, typer.Option(help="Folder of the new bundle; empty: beside the run's own.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Make the model of a finished run smaller; accuracy, size and latency are measured before and after.

    Example: pcls compress runs/first --target int8
    """
    found = pcls.compress(
        run,
        target=target,
        weights_only=weights_only,
        bits=bits,
        records=records,
        max_loss=max_loss,
        steps=steps,
        finetune=finetune,
        score=score.value,
        out=out,
    )

    from pcls.compression.measured import compressed_json
    from pcls.compression.text import sensitivities_text, slower_text, variants_text

    if as_json:
        typer.echo(json.dumps(compressed_json(found)))
        return
    typer.echo(variants_text(found.variants))
    if found.sensitivities:
        typer.echo("")
        typer.echo(sensitivities_text(found.sensitivities))
    if remark := slower_text(found):
        typer.echo(remark)
    typer.echo(f"written: {found.path} ({found.variants[-1].name}); next: pcls predict {found.path} FILES")
