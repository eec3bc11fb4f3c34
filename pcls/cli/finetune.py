"""`pcls finetune`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

import pcls


class Way(StrEnum):
    """The named recipes."""

    auto = "auto"
    probe = "probe"
    gradual = "gradual"
    full = "full"
    scratch = "scratch"


def finetune(
    data: Annotated[
        str, typer.Argument(help="A folder with one folder of images a class, idx:FOLDER, tfds:NAME[:split] or digits.")
    ],
    model: Annotated[
        str, typer.Option(help="The folder of a finished run or of a bundle, or a name of `pcls models search`.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in run.dir=runs/mine")] = None,
    recipe: Annotated[
        Way,
        typer.Option(
            help="probe: the head alone; gradual: the head, then the layers from the top; full: all at once, the lower "
            "the slower; scratch: from random weights; auto: by the number of images."
        ),
    ] = Way.auto,
    keep_head: Annotated[
        bool, typer.Option("--keep-head", help="Refuse other classes than those of the weights: no new head.")
    ] = False,
) -> None:
    """Fine-tune pretrained weights on your own data, in a new run folder.

    Example: pcls finetune photos --model runs/first run.dir=runs/photos
    """
    pcls.finetune(data, model, overrides or [], recipe=recipe.value, keep_head=keep_head)
