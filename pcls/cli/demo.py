"""`pcls demo`."""

from __future__ import annotations

from typing import Annotated

import typer

import pcls


def demo(
    folder: Annotated[
        str | None, typer.Option(help="Where runs and report go; else runs/demo, runs/demo-2, ...")
    ] = None,
) -> None:
    """Pretrain on digits 0-4, fine-tune on 25 images of 5-9, compare with training from scratch.

    Example: pcls demo --folder runs/demo
    """
    pcls.demo(folder)
