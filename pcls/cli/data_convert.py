"""`pcls data convert`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pcls.cli.progress import Progress
from pcls.errors import UserError

if TYPE_CHECKING:
    from pcls.config.data import DataSection
    from pcls.data.convert import Runner
    from pcls.data.sources.arrayrecord import Description

RUNNERS = ("local", "beam")
LONGEST_SIDE, QUALITY = 512, 90


def convert(
    source: Annotated[
        str, typer.Argument(help="A folder of images, SOURCE:PATH, tfds:NAME[:split] or digits; the set to --verify.")
    ],
    out: Annotated[Path | None, typer.Argument(help="Folder of the new set; the same command continues it.")] = None,
    shards: Annotated[int | None, typer.Option(help="Of the training records; else about 350 MB each.", min=1)] = None,
    workers: Annotated[int, typer.Option(help="Threads, or processes of Beam on this machine; 0: one a core.")] = 0,
    reencode: Annotated[bool, typer.Option("--reencode", help="Make large images smaller, as JPEG.")] = False,
    longest_side: Annotated[
        int | None, typer.Option(help=f"With --reencode: pixels at most; else {LONGEST_SIDE}.", min=1)
    ] = None,
    quality: Annotated[
        int | None, typer.Option(help=f"With --reencode: JPEG quality; else {QUALITY}.", min=1, max=100)
    ] = None,
    skip_undecodable: Annotated[
        bool, typer.Option("--skip-undecodable", help="Leave out images that cannot be read or re-encoded.")
    ] = False,
    licence: Annotated[str, typer.Option(help="Of the images, in words; kept in dataset.json.")] = "",
    description: Annotated[str, typer.Option(help="Of the source, in words; else SOURCE itself.")] = "",
    runner: Annotated[str, typer.Option(help="local, or beam: Apache Beam.")] = "local",
    beam_option: Annotated[
        list[str] | None,
        typer.Option(help="For Beam, as in --beam-option=--runner=FlinkRunner; else its DirectRunner."),
    ] = None,
    quarantine: Annotated[
        Path | None, typer.Option(help="Leave out the records of this list, as `pcls data doctor` writes it.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare the digest of every file of a set.")] = False,
) -> None:
    """Convert images to ArrayRecord shards, or verify a converted set.

    A conversion that was cut off continues where it was, and ends with the same bytes.

    Example: pcls data convert photos photos-converted --reencode
    """
    if verify:
        if out is not None:
            raise UserError(f"--verify takes one folder, the converted set; {str(out)!r} is one too many")
        return _verify(Path(source))
    if out is None:
        raise UserError("the folder of the new set is missing: pcls data convert SOURCE OUT")
    _check_options(runner, beam_option, reencode, longest_side or quality)

    from pcls.cli.data_recipe import check_pictures
    from pcls.config import Recipe, with_overrides
    from pcls.data.convert import convert as convert_source
    from pcls.data.dataset import data_settings, open_kept
    from pcls.data.sources.arrayrecord import Reencoding
    from pcls.data.sources.remote import without_secrets

    listed = {} if quarantine is None else {"data.quarantine": str(quarantine)}
    section = with_overrides(Recipe(), data_settings(source) | listed).data
    check_pictures(section, "convert")
    by_beam = _beam(section, workers, beam_option or []) if runner == "beam" else None
    train, evaluation = open_kept(section)
    smaller = Reencoding(longest_side=longest_side or LONGEST_SIDE, quality=quality or QUALITY)
    started = time.monotonic()
    progress = Progress(len(train) + (len(evaluation) if evaluation is not None else 0))
    try:
        made = convert_source(
            train,
            evaluation,
            out,
            description=description or without_secrets(source),
            licence=licence,
            shards=shards,
            reencoding=smaller if reencode else None,
            skip_undecodable=skip_undecodable,
            workers=workers,
            runner=by_beam,
            say=lambda text: typer.echo(text, err=True),
            advance=progress.advance,
        )
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on", err=True)
        raise
    finally:
        progress.close()
    typer.echo(f"{out}: {_summary(made)}; {time.monotonic() - started:,.1f} s")


def _check_options(runner: str, beam_option: list[str] | None, reencode: bool, how: int | None) -> None:
    """UserError for options that nothing would act on; `how`: one that says how to re-encode."""
    if runner not in RUNNERS:
        raise UserError(f"--runner {runner!r}: one of {', '.join(RUNNERS)} is needed")
    if beam_option and runner != "beam":
        raise UserError("--beam-option has no effect without --runner beam")
    if how and not reencode:
        raise UserError("--longest-side and --quality have no effect without --reencode")


def _beam(section: DataSection, workers: int, options: list[str]) -> Runner:
    from pcls.data.convert_beam import beam_runner

    return beam_runner(section, workers, options)


def _verify(folder: Path) -> None:
    from pcls.data.sources.arrayrecord import read_description, verify

    made = read_description(folder)
    files = [file for split in made.splits.values() for file in split.files]
    progress = Progress(sum(file.bytes for file in files), "bytes")
    try:
        problems = verify(folder, progress.advance)
    finally:
        progress.close()
    for problem in problems[1:]:
        typer.echo(problem, err=True)
    if problems:
        raise UserError(f"{folder}: {len(problems)} of {len(files)} files are damaged; {problems[0]}; copy them again")
    typer.echo(f"{folder}: {_summary(made)}; all digests agree")


def _summary(made: Description) -> str:
    """`1,438 train and 359 evaluation records, 2 shards, 0.9 MB; 1 left out`."""
    splits = made.splits.values()
    shards = [shard for split in splits for shard in split.shards]
    left_out = sum(len(split.left_out) for split in splits)
    records = " and ".join(f"{split.records:,} {part}" for part, split in made.splits.items())
    size = sum(shard.bytes for shard in shards) / 1e6
    rest = f"; {left_out:,} left out" if left_out else ""
    return f"{records} records, {len(shards):,} shard{'s' * (len(shards) > 1)}, {size:,.1f} MB{rest}"
