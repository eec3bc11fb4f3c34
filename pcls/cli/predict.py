"""`pcls predict`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import pcls
from pcls.cli.progress import Progress

if TYPE_CHECKING:
    from pcls.deliver.classifier import Classifier, Prediction


class Format(StrEnum):
    """How predictions are written."""

    table = "table"
    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"


def predict(
    source: Annotated[
        str, typer.Argument(help="The folder of a finished run or of a bundle, or a name of `pcls models search`.")
    ],
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, quoted patterns such as 'photos/**/*.jpg', and - for paths on standard input, one a "
            "line. JPEG, PNG or WebP files; WAV or NPY files for models of sequences or of other channels."
        ),
    ],
    top: Annotated[int, typer.Option(help="How many of the most probable classes are told.")] = 1,
    output: Annotated[
        Format | None, typer.Option("--format", help="By default what the name of --out says, else a table.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A file, written as a whole; by default standard output.")] = None,
    explain: Annotated[
        Path | None, typer.Option(help="A folder for a picture of each file: what speaks for its most probable class.")
    ] = None,
) -> None:
    """Classify files of images or sequences; an unreadable one is reported in its place, and the exit code is then 2.

    A model of several labels a record gives those that reach their threshold.

    Example: pcls predict runs/first photos --top 3 --out answers.csv
    """
    form = output or _by_name(out)
    _check(top, form, out, explain)

    from pcls.deliver.files import kinds_of, named_files
    from pcls.deliver.predictions import Layout, writer_of

    classifier = pcls.load(source)
    if top > len(classifier.class_names):
        raise pcls.UserError(f"--top {top}: the model has {len(classifier.class_names):,} classes; that is the most")
    files = named_files(paths, kinds_of(classifier.preprocessing), sys.stdin.buffer)
    draw = _drawing(classifier, explain) if explain else None
    layout = Layout.of(classifier, files, top)
    # On one terminal, the answers themselves tell how far it is.
    progress = Progress(len(files), "files") if out or not sys.stdout.isatty() else None
    failed = 0
    try:
        with writer_of(form, layout, out) as write:
            for place, answer in enumerate(classifier.stream(files)):
                write(answer)
                failed += bool(answer.error)
                if draw and not answer.error:
                    draw(place, answer)
                if progress:
                    progress.advance(1)
    finally:
        if progress:
            progress.close()
    if failed:
        raise pcls.UserError(f"{failed:,} of {len(files):,} files could not be read")


def _by_name(out: Path | None) -> Format:
    suffix = out.suffix.removeprefix(".").lower() if out else ""
    return Format(suffix) if suffix in list(Format) else Format.table


def _check(top: int, form: Format, out: Path | None, explain: Path | None) -> None:
    """What can be told without the model."""
    if top < 1:
        raise pcls.UserError(f"--top {top}: 1 or more are needed")
    if out is None and form is Format.parquet:
        raise pcls.UserError("--format parquet: is no text for a terminal; name a file: --out FILE.parquet")
    if out and not out.parent.is_dir():
        raise pcls.UserError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out and out.exists() and not out.is_file():
        raise pcls.UserError(f"--out {out}: is there already, and is no file; name another")
    if explain is not None and explain.exists() and not explain.is_dir():
        raise pcls.UserError(f"--explain {explain}: is no folder; name another")


def _drawing(classifier: Classifier, folder: Path) -> Callable[[int, Prediction], None]:
    from pcls.deliver.explanations import Explainer, picture_name, save_picture

    explainer = Explainer(classifier)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pcls.UserError(f"--explain {folder}: cannot be made ({error.strerror})") from error
    colours = "blue speaks for the most probable class, orange against it"
    print(f"pictures in {folder}: {colours} ({explainer.method})", file=sys.stderr)

    def draw(place: int, answer: Prediction) -> None:
        best = max(range(len(answer.probabilities)), key=answer.probabilities.__getitem__)
        save_picture(explainer.picture(classifier.read(answer.path), best), folder / picture_name(place, answer.path))

    return draw
