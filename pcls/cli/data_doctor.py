"""`pcls data doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pcls.atomic import atomic_write
from pcls.cli.progress import Progress
from pcls.errors import UserError


def doctor(
    data: Annotated[
        str,
        typer.Argument(help="A folder or file of images, or SOURCE:PATH, as in idx:FOLDER; or tfds:NAME or digits."),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in data.workers=8")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything found to this file.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a page with thumbnails.")] = None,
    quarantine: Annotated[
        Path | None, typer.Option(help="Write a list of records to leave out; recipes name it by data.quarantine.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 if something serious is found.")] = False,
) -> None:
    """Look through a set of images for what will spoil a training. Changes nothing.

    Example: pcls data doctor photos --html doctor.html --quarantine quarantine.txt
    """
    import json
    import shutil

    from pcls.cli.data_recipe import check_pictures, data_recipe
    from pcls.data.dataset import open_kept
    from pcls.data.doctor.checks import examine
    from pcls.data.doctor.findings import Severity
    from pcls.data.doctor.page import page
    from pcls.data.doctor.survey import survey
    from pcls.data.doctor.text import as_json, as_quarantine, text
    from pcls.data.sources.remote import without_secrets
    from pcls.data.workers import usable_cores

    for file in filter(None, (json_file, html_file, quarantine)):
        _check_can_be_written(file)
    section = data_recipe(data, overrides or []).data
    check_pictures(section, "doctor")
    train, evaluation = open_kept(section, as_it_is=True)
    sources = {"train": train} | ({} if evaluation is None else {"evaluation": evaluation})
    progress = Progress(sum(map(len, sources.values())), "images")
    try:
        seen = survey(sources, workers=section.workers or usable_cores(), advance=progress.advance)
    finally:
        progress.close()
    findings = examine(seen)
    typer.echo(text(seen, findings, width=min(shutil.get_terminal_size().columns, 120)))
    if json_file is not None:
        _write(json_file, json.dumps(as_json(seen, findings), indent=1))
    if html_file is not None:
        _write(html_file, page(seen, findings, f"Doctor: {without_secrets(data)}"))
    if quarantine is not None:
        _write(quarantine, as_quarantine(seen, findings))
    serious = [f"{finding.title} ({finding.count})" for finding in findings if finding.severity is Severity.SERIOUS]
    if strict and serious:
        many = "s" * (len(serious) > 1)
        where = without_secrets(data)
        raise UserError(f"{where}: {len(serious)} serious finding{many}, the first: {serious[0]}; --strict forbids it")


def _check_can_be_written(file: Path) -> None:
    """Before the long part, not after it."""
    if file.is_dir() or not file.parent.is_dir():
        what = "is a folder" if file.is_dir() else f"there is no folder {file.parent}"
        raise UserError(f"{file}: {what}; name a file in a folder that exists")


def _write(file: Path, content: str) -> None:
    """Whole or not at all; lone surrogates become the bytes of the file names that they came from."""
    atomic_write(file, content.encode("utf-8", "surrogateescape"))
    typer.echo(f"wrote {file}", err=True)
