"""`pcls finetune`."""

from __future__ import annotations

from typing import Annotated

import typer

import pcls


def finetune(
    source: Annotated[
        str, typer.Argument(help="The folder of a finished run or of a bundle, or a name of `pcls models search`.")
    ],
    data: Annotated[
        str, typer.Option(help="A folder with one folder of images a class, idx:FOLDER, tfds:NAME[:split] or digits.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in run.dir=runs/mine")] = None,
    keep_head: Annotated[
        bool, typer.Option("--keep-head", help="Refuse other classes than those of the weights: no new head.")
    ] = False,
) -> None:
    """Fine-tune pretrained weights on other data, in a new run folder.

    Example: pcls finetune runs/first --data photos run.dir=runs/photos
    """
    pcls.finetune(source, data, overrides or [], keep_head=keep_head)
