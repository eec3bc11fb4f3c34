"""`pcls export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import pcls


class Format(StrEnum):
    """What is written."""

    stablehlo = "stablehlo"
    onnx = "onnx"
    litert = "litert"
    safetensors = "safetensors"


def export(
    source: Annotated[
        str, typer.Argument(help="The folder of a finished run or of a bundle, or a name of `pcls models search`.")
    ],
    to: Annotated[
        Format,
        typer.Option(
            "--to", help="A program (StableHLO for JAX, ONNX, LiteRT for phones), or weights by timm's names."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="A new file; else the source's name with the format's.")] = None,
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="The program takes uint8 at the model's size and normalises.")
    ] = False,
    platforms: Annotated[
        str, typer.Option(help="Of StableHLO: some of cpu, cuda, rocm, tpu, by commas; else cpu,cuda,tpu.")
    ] = "",
    images: Annotated[
        str, typer.Option(help="A folder of files to compare on; else held-out ones of the run, or random ones.")
    ] = "",
) -> None:
    """Write a classifier as a file that other programs run; refused where its logits are not those of pcls.

    Example: pcls export runs/first --to onnx --with-preprocessing
    """
    chosen = [name.strip() for name in platforms.split(",")] if platforms else ()
    done = pcls.export(
        source,
        to=to.value,
        out=out or "",
        with_preprocessing=with_preprocessing,
        platforms=chosen,
        images=images,
    )
    typer.echo(done.summary())
