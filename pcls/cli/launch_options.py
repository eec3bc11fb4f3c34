"""Options that targets of `pcls launch` share, and what becomes of what they render."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pcls.errors import UserError

if TYPE_CHECKING:
    from pcls.launch.job import Job
    from pcls.launch.submission import Submission

RECIPE = Annotated[str, typer.Argument(help="The name of a recipe that comes with pcls, or a file that is there too.")]
OVERRIDES = Annotated[list[str] | None, typer.Argument(help="key=value, as in run.dir=/shared/runs/first")]
NAME = Annotated[str, typer.Option(help="Of the job.  [default: the recipe's]")]
ENV = Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be given again.")]
SECRET_FILE = Annotated[list[str] | None, typer.Option(help="NAME=FILE there, whose text is the value.")]
RESTARTS = Annotated[
    int, typer.Option(help="At most so many, after failures without progress where that is known.", min=0)
]
GRACE = Annotated[
    float, typer.Option(help="Seconds from SIGTERM to SIGKILL, for the last checkpoint.", min=1, max=86400)
]
PCLS = Annotated[str, typer.Option(help="The program there, as in /opt/pcls/bin/pcls.")]
IMAGE = Annotated[str, typer.Option(help="Container image that has pcls; see launch/docker.")]
TOPOLOGY = Annotated[str, typer.Option(help="A TPU slice, as in v6e:4x4.")]
SLICES = Annotated[int, typer.Option(help="So many of them.", min=1)]
ZONE = Annotated[str, typer.Option(help="Of Google Cloud, as in us-east5-b.")]
PROJECT = Annotated[str, typer.Option(help="Of Google Cloud.")]
SPOT = Annotated[bool, typer.Option("--spot", help="Cheaper, and taken away at any time.")]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Print what would run, ready to be pasted into bash.")]
SUBMIT = Annotated[bool, typer.Option("--submit", help="Run it.")]


def job_of(
    recipe: str,
    overrides: Sequence[str] | None,
    name: str,
    env: Sequence[str] | None,
    secrets: Sequence[str] | None,
    volumes: Sequence[str] | None,
    max_restarts: int,
    grace: float,
) -> Job:
    """What all targets but the local one run, of their options."""
    from pcls.launch.job import make_job
    from pcls.launch.policy import Policy

    return make_job(
        recipe,
        overrides or [],
        Policy(max_restarts=max_restarts, grace=grace),
        name=name,
        env=env or [],
        secrets=secrets or [],
        volumes=volumes or [],
    )


def is_submitted(dry_run: bool, submit: bool) -> bool:
    """Which of the two was asked for; UserError for neither and both."""
    if dry_run == submit:
        raise UserError("write --dry-run to see what would run, or --submit to run it")
    return submit


def carry_out(submission: Submission, submitted: bool) -> None:
    """Runs it, or prints it."""
    from pcls.launch.submission import as_script, submit

    if submitted:
        submit(submission)
    else:
        typer.echo(as_script(submission), nl=False)
