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


SUFFIXES = {".txt": Format.table, ".csv": Format.csv, ".jsonl": Format.jsonl, ".parquet": Format.parquet}
# Files that could not be read, and that are named beside a file of answers.
MOST_NAMED = 5


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
    out: Annotated[
        Path | None,
        typer.Option(
            help="A file (.txt, .csv, .jsonl, .parquet), written as a whole; by default, and with -, standard output."
        ),
    ] = None,
    explain: Annotated[
        Path | None, typer.Option(help="A folder for a picture of each file: what speaks for its most probable class.")
    ] = None,
) -> None:
    """Classify files of images or sequences; an unreadable one is reported in its place, and the exit code is then 2.

    A model of several labels a record gives those that reach their threshold.

    Example: pcls predict runs/first photos --top 3 --out answers.csv
    """
    out = None if out == Path("-") else out
    form = _form(output, out)
    _check(top, form, out, explain)

    from pcls.deliver.files import kinds_of, named_files
    from pcls.deliver.predictions import Layout, writer_of

    classifier = pcls.load(source)
    top = min(top, len(classifier.class_names))
    files = named_files(paths, kinds_of(classifier.preprocessing), sys.stdin.buffer)
    draw = _drawing(classifier, explain) if explain else None
    layout = Layout.of(classifier, files, top)
    # On one terminal, the answers themselves tell how far it is.
    progress = Progress(len(files), "files") if out or not sys.stdout.isatty() else None
    failed: list[Prediction] = []
    try:
        with writer_of(form, layout, out) as write:
            for place, answer in enumerate(classifier.stream(files)):
                write(answer)
                if answer.error:
                    failed.append(answer)
                elif draw:
                    draw(place, answer)
                if progress:
                    progress.advance(1)
    finally:
        if progress:
            progress.close()
    if out:
        print(f"written: {out}, answers for {len(files) - len(failed):,} of {len(files):,} files", file=sys.stderr)
        _name(failed)
    if failed:
        raise pcls.UserError(f"{len(failed):,} of {len(files):,} files could not be read")


def _form(output: Format | None, out: Path | None) -> Format:
    """What is written; UserError where the name of the file says something else."""
    if out is None or not out.suffix:
        return output or Format.table
    named = SUFFIXES.get(out.suffix.lower())
    if named is None:
        raise pcls.UserError(f"--out {out}: {out.suffix} is not written; allowed: {', '.join(SUFFIXES)}")
    if output not in (None, named):
        raise pcls.UserError(f"--out {out}: {out.suffix} is --format {named}, and --format {output} is asked for")
    return named


def _name(failed: list[Prediction]) -> None:
    """The first ones; all of them are in the file."""
    from pcls.data.sources.folder import shown

    for answer in failed[:MOST_NAMED]:
        print(f"{shown(answer.path)}: cannot be read: {shown(answer.error)}", file=sys.stderr)
    if len(failed) > MOST_NAMED:
        print(f"... and {len(failed) - MOST_NAMED:,} more", file=sys.stderr)


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
    if explain is not None and explain.is_dir() and any(explain.iterdir()):
        raise pcls.UserError(f"--explain {explain}: holds files already; name an empty folder, or a new one")


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
