"""`pcls demo`."""

from __future__ import annotations

from typing import Annotated

import typer

import pcls


def demo(folder: Annotated[str, typer.Option(help="Where the runs and the report go.")] = "runs/demo") -> None:
    """Pretrain on digits 0-4, fine-tune on 25 images of 5-9, compare with training from scratch.

    Example: pcls demo --folder runs/demo
    """
    pcls.demo(folder)
