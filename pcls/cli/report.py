"""`pcls report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import pcls


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="The run's folder; several are compared.")],
    out: Annotated[
        str, typer.Option(help="The file; else report.html in the run's folder, comparison.html in the first's.")
    ] = "",
    png: Annotated[str, typer.Option(help="A file for the curves as one picture, beside the rest.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON object, printed or in --out.")] = False,
) -> None:
    """Write a run's report, one HTML page that needs nothing else, and print its path; of several runs, side by side.

    Example: pcls report runs/first runs/second --out both.html
    """
    if not as_json:
        typer.echo(pcls.report(*runs, out=out, png=png))
        return

    from pcls.atomic import atomic_write
    from pcls.evaluation.report import report_json, write_png
    from pcls.planning.limits import limits_of
    from pcls.run.report import report_of

    found = report_of(runs, limits_of)
    if png:
        write_png(found, Path(png))
    text = json.dumps(report_json(found), ensure_ascii=False)
    typer.echo(atomic_write(Path(out), text + "\n") if out else text)
