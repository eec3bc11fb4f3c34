"""`pcls finetune`."""

from __future__ import annotations

from typing import Annotated

import typer

import pcls


def finetune(
    source: Annotated[str, typer.Argument(help="The folder of a finished run, or of a bundle.")],
    data: Annotated[
        str, typer.Option(help="A folder with one folder of images a class, idx:FOLDER, tfds:NAME[:split] or digits.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in run.dir=runs/mine")] = None,
) -> None:
    """Fine-tune pretrained weights on other data, in a new run folder.

    Example: pcls finetune runs/first --data photos run.dir=runs/photos
    """
    pcls.finetune(source, data, overrides or [])
