"""`pcls data imbalance`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcls.errors import UserError


def imbalance(
    data: Annotated[
        str,
        typer.Argument(help="A recipe, a folder or file of records, SOURCE:PATH, tfds:NAME[:split] or digits."),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in data.split_seed=1")] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Make a long tail: the last class gets so many times fewer.", min=1, max=1e6)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the records that it leaves out; recipes name the list by data.quarantine."),
    ] = None,
) -> None:
    """Print how unbalanced the classes are, also after a long tail was made of them, and what to try.

    Example: pcls data imbalance digits --ratio 100
    """
    from pcls.cli.data_recipe import data_recipe
    from pcls.data.tail import left_out_text, open_long_tail, tail_text

    section = data_recipe(data, overrides or []).data
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        what = "is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise UserError(f"--out {out}: {what}; name a file in a folder that exists")
    tail = open_long_tail(section, ratio)
    if out is not None and tail.ratio == 1:
        raise UserError("--out writes what a long tail leaves out; add --ratio, as in --ratio 100")
    listed = left_out_text(section, tail) if out is not None else ""
    typer.echo(tail_text(tail))
    if tail.ratio > 1:
        typer.echo(f"in a recipe: data.long_tail={tail.ratio:g} data.split_seed={section.split_seed}")
    if out is not None:
        # Names of files may be no UTF-8.
        out.write_bytes(listed.encode("utf-8", "surrogateescape"))
        typer.echo(
            f"wrote {out}: {int((~tail.kept).sum()):,} records left out; data.quarantine={out} does the same", err=True
        )
