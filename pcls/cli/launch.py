"""`pcls launch`: its targets, each with the options that it has a use for."""

from __future__ import annotations

import random
import sys
from typing import Annotated

import typer

from pcls.cli.launch_cloud import cloud_targets
from pcls.cli.launch_options import (
    DRY_RUN,
    ENV,
    GRACE,
    NAME,
    OVERRIDES,
    PCLS,
    RECIPE,
    RESTARTS,
    SECRET_FILE,
    SUBMIT,
    carry_out,
    is_submitted,
    job_of,
)

app = typer.Typer(
    help="Train a recipe in processes that are watched, here or elsewhere.", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def group() -> None:
    """Train a recipe in processes that are watched, here or elsewhere.

    Every target runs `pcls train --resume RECIPE`: it starts the run, or goes on with the one in run.dir. Restarted is
    what asks for it (exit code 42) or was killed; not the user's mistakes (2), nor what diverged (43).
    """


@app.command()
def local(
    recipe: RECIPE,
    overrides: OVERRIDES = None,
    processes: Annotated[int, typer.Option("--processes", "-n", help="Of this machine.", min=1, max=1024)] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs of each process; 0: each sees all devices.", min=0, max=64)] = 0,
    coordinator: Annotated[
        str, typer.Option(help="With other machines: host:port of process 0, or auto on a cluster that jax detects.")
    ] = "",
    total: Annotated[int, typer.Option(help="With --coordinator host:port: processes of all machines.", min=0)] = 0,
    first: Annotated[int, typer.Option(help="With --coordinator host:port: number of the first one here.", min=0)] = 0,
    max_restarts: RESTARTS = 5,
    grace: GRACE = 60.0,
) -> None:
    """Train in processes of this machine; together they are restarted, and stopped.

    What process 0 says is shown, and all of it is kept in run.dir/logs.

    Example: pcls launch local digits_cnn train.duration='2 epochs' run.dir=runs/watched -n 2
    """
    from pcls.launch.job import make_job, run_folder
    from pcls.launch.local import Meeting, local_commands, newest_step
    from pcls.launch.policy import Policy
    from pcls.launch.supervisor import supervise

    policy = Policy(max_restarts=max_restarts, grace=grace)
    job, run = make_job(recipe, overrides or [], policy), run_folder(recipe, overrides or [])
    meeting = Meeting(coordinator, total, first)
    commands = local_commands(job, run, processes=processes, gpus=gpus, meeting=meeting)
    alone = processes == 1 and not coordinator
    code = supervise(commands, policy, lambda: newest_step(run), alone=alone, say=_say, rng=random.Random())
    raise typer.Exit(code)


@app.command()
def ssh(
    recipe: RECIPE,
    hosts: Annotated[str, typer.Option(help="node1,node2,...: one process each, process 0 on the first.")],
    overrides: OVERRIDES = None,
    port: Annotated[int, typer.Option(help="Of the first host, where all meet.", min=1, max=65535)] = 8476,
    folder: Annotated[str, typer.Option(help="Of the hosts, where pcls is called.  [default: the home folder]")] = "",
    pcls: PCLS = "pcls",
    env: ENV = None,
    secret: SECRET_FILE = None,
    max_restarts: RESTARTS = 5,
    grace: GRACE = 60.0,
    dry_run: DRY_RUN = False,
    submit: SUBMIT = False,
) -> None:
    """Train on hosts that ssh reaches, supervised from here; run.dir must be on storage that they share.

    Example: pcls launch ssh imagenet_resnet50 run.dir=/shared/runs/r50 --hosts node1,node2 --dry-run
    """
    from pathlib import Path

    from pcls.launch.ssh import Ssh, ssh_text, supervised
    from pcls.launch.submission import require_programs
    from pcls.launch.supervisor import supervise

    job = job_of(recipe, overrides, "", env, secret, None, max_restarts, grace)
    target = Ssh(job, tuple(hosts.split(",")), port, folder, pcls)
    if not is_submitted(dry_run, submit):
        typer.echo(ssh_text(target), nl=False)
        return
    require_programs({"ssh"})
    commands = supervised(target, Path(f"{job.name}-logs"))
    # How far the run is stands on the hosts' storage: here each restart counts.
    code = supervise(commands, job.policy, lambda: 0, alone=len(target.hosts) == 1, say=_say, rng=random.Random())
    raise typer.Exit(code)


@app.command()
def slurm(
    recipe: RECIPE,
    overrides: OVERRIDES = None,
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    tasks_per_node: Annotated[int, typer.Option(help="Processes of a node, one a device.", min=1)] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="0, or as many as tasks.", min=0)] = 0,
    cpus_per_task: Annotated[int, typer.Option(help="Cores of a process; 0: Slurm's default.", min=0)] = 0,
    time: Annotated[str, typer.Option(help="Limit, as in 12:00:00. The run saves before, and is requeued.")] = "",
    partition: Annotated[str, typer.Option()] = "",
    account: Annotated[str, typer.Option()] = "",
    qos: Annotated[str, typer.Option()] = "",
    container: Annotated[str, typer.Option(help="An image that pyxis starts.")] = "",
    volume: Annotated[list[str] | None, typer.Option(help="HOST_PATH:PATH, mounted into the container.")] = None,
    pcls: PCLS = "pcls",
    name: NAME = "",
    env: ENV = None,
    secret: SECRET_FILE = None,
    max_restarts: RESTARTS = 10,
    grace: GRACE = 120.0,
    dry_run: DRY_RUN = False,
    submit: SUBMIT = False,
) -> None:
    """Train on a Slurm cluster, requeued by exit code; run.dir must be on storage that its nodes share.

    Example: pcls launch slurm imagenet_resnet50 --nodes 2 --tasks-per-node 8 --gpus-per-node 8 --dry-run
    """
    from pcls.launch.job import check_shared
    from pcls.launch.slurm import Slurm, slurm_submission

    job = job_of(recipe, overrides, name, env, secret, volume, max_restarts, grace)
    target = Slurm(
        job,
        nodes=nodes,
        tasks_per_node=tasks_per_node,
        gpus_per_node=gpus_per_node,
        cpus_per_task=cpus_per_task,
        time=time,
        partition=partition,
        account=account,
        qos=qos,
        container=container,
        pcls=pcls,
    )
    remark = check_shared(recipe, overrides or [], nodes * tasks_per_node)
    carry_out(slurm_submission(target), is_submitted(dry_run, submit))
    if remark:
        _say(remark)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


cloud_targets(app)
