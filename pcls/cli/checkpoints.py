"""`pcls checkpoints`: what a run has saved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pcls.errors import UserError

if TYPE_CHECKING:
    from pcls.run.checkpoints import Checkpoint

app = typer.Typer(
    help="List, verify, prune and copy the checkpoints of a run.", no_args_is_help=True, rich_markup_mode=None
)

RUN = Annotated[str, typer.Argument(help="The run's folder.")]
JSON = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]


@app.command("list")
def list_steps(run: RUN, as_json: JSON = False) -> None:
    """List the saved steps: size, score, why each is kept, and whether its files have the right sizes.

    Example: pcls checkpoints list runs/first
    """
    from pcls.run.checkpoints import list_checkpoints

    found = list_checkpoints(run)
    if as_json:
        typer.echo(json.dumps({"checkpoints": [asdict(checkpoint) for checkpoint in found]}))
        return
    if not found:
        typer.echo("no checkpoint is saved yet")
        return
    typer.echo(f"{'step':>9} {'MB':>10} {'score':>8}  kept")
    newest = [each.step for each in reversed(found) if each.kept == "newest"]
    for each in found:
        score = "" if each.score is None else f"{each.score:.4f}"
        place = f", {newest.index(each.step) + 1} of {len(newest)}" if each.step in newest else ""
        state = f"damaged: {each.problem}" if each.problem else f"{each.kept}{place}" or "until the next save"
        typer.echo(f"{each.step:>9,} {each.bytes / 1e6:>10,.2f} {score:>8}  {state}")
    typer.echo(f"only the sizes of files were looked at; what is in them: pcls checkpoints verify {run}")


@app.command("verify")
def verify(
    run: RUN,
    step: Annotated[int | None, typer.Option(help="Only this step; else all.", min=0)] = None,
    digest: Annotated[
        bool, typer.Option("--digest", help="Print one digest over all leaves of the newest valid step, as last line.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Read every saved step as a whole and compare the digests of its files and leaves; ends with 2 if one is damaged.

    Example: pcls checkpoints verify runs/first --digest
    """
    from pcls.run.checkpoints import verify_checkpoints

    found = []
    for each in verify_checkpoints(run, step):
        found.append(each)
        if not as_json:
            what = f"{each.files} files, {each.leaves} leaves, {each.bytes / 1e6:,.2f} MB"
            typer.echo(f"step {each.step:,}: " + (f"damaged ({each.problem})" if each.problem else f"valid, {what}"))
    newest = next((each for each in reversed(found) if not each.problem), None)
    if as_json:
        whole = newest.digest if newest else None
        typer.echo(json.dumps({"checkpoints": [asdict(each) for each in found], "digest": whole}))
    elif digest and newest:
        typer.echo(newest.digest)
    _fail_if_damaged(run, found)


def _fail_if_damaged(run: str, found: Sequence[Checkpoint]) -> None:
    damaged = sum(bool(each.problem) for each in found)
    if not found:
        raise UserError(f"{run}: has no checkpoint to verify; continue it with: pcls resume {run}")
    if damaged:
        raise UserError(
            f"{run}: {damaged:,} of {len(found):,} checkpoints are damaged; pcls resume {run} goes on from the newest "
            "valid one and keeps damaged ones aside"
        )


@app.command("prune")
def prune(
    run: RUN,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, as in checkpoint.keep_best=1; else as the recipe says")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which steps would go.")] = False,
    as_json: JSON = False,
) -> None:
    """Delete the saved steps that the recipe does not keep. Only steps that prove valid count; damaged ones stay.

    Example: pcls checkpoints prune runs/first checkpoint.keep=3 --dry-run
    """
    from pcls.run.checkpoints import prune_checkpoints

    steps = prune_checkpoints(run, overrides or [], dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps({"removed": steps, "dry_run": dry_run}))
        return
    verb = "would remove" if dry_run else "removed"
    typer.echo(
        f"{verb} {'step' if len(steps) == 1 else 'steps'} {', '.join(map(str, steps))}" if steps else "all are kept"
    )


@app.command("copy")
def copy(
    run: RUN,
    target: Annotated[str, typer.Argument(help="A folder, or a URL such as gs://bucket/run.")],
    step: Annotated[int | None, typer.Option(help="This step; else the newest that is valid.", min=0)] = None,
    every: Annotated[bool, typer.Option("--all", help="Every valid step.")] = False,
    as_json: JSON = False,
) -> None:
    """Copy a valid step to another place, verified there, with what pcls resume needs to go on with it.

    Example: pcls checkpoints copy runs/first /backup/first
    """
    from pcls.run.checkpoint_copy import copy_checkpoints

    if every and step is not None:
        raise UserError("--step and --all exclude each other; leave one out")
    steps = copy_checkpoints(run, target, step=step, every=every)
    if as_json:
        typer.echo(json.dumps({"copied": steps}))
        return
    typer.echo(f"copied {'step' if len(steps) == 1 else 'steps'} {', '.join(map(str, steps))}")
