"""A batch script for Slurm: one task a device, requeued by exit code.

Written for Slurm 22.05 and newer; containers for pyxis 0.15 and newer (`--container-image`).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from pcls.errors import RestartRequested, UserError
from pcls.launch.job import JOIN_TIMEOUT, Job
from pcls.launch.names import PATH, PYXIS, SLURM, SLURM_TIME, check, check_printable
from pcls.launch.policy import SHELL_SIGNAL_BASE, final_codes
from pcls.launch.shell import exports
from pcls.launch.submission import Submission

# srun ends with the highest code of its tasks, and one that a signal has ended has 128 plus its number: so that a code
# after which nothing shall be restarted wins, it is raised above them.
FINAL_BASE = 200
# jax ends a process that has lost another after 100 s by itself. srun kills only what still hangs then: its own kill
# would hide all other codes.
HEARTBEAT_SECONDS = 120


@dataclass(frozen=True)
class Slurm:
    """A job of Slurm.

    Attributes:
      job: to run; secrets are files, volumes are mounted into the container.
      nodes: how many.
      tasks_per_node: processes of each.
      gpus_per_node: one a task, which jax gives out by the task's number; 0: none.
      cpus_per_task: cores of each; 0: Slurm's default.
      time, partition, account, qos: as sbatch has them; empty: Slurm's default.
      container: an image that pyxis starts; empty: none.
      pcls: the program on the nodes, or in the container.
    """

    job: Job
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 0
    time: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    container: str = ""
    pcls: str = "pcls"

    def __post_init__(self) -> None:
        for option, value in (("--partition", self.partition), ("--account", self.account), ("--qos", self.qos)):
            if value:
                check(option, value, SLURM)
        if self.time:
            check("--time", self.time, SLURM_TIME)
        if self.container:
            check("--container", self.container, PYXIS)
        elif self.job.volumes:
            raise UserError("--volume: mounts storage into a container, and there is none; name it by --container")
        if self.gpus_per_node not in (0, self.tasks_per_node):
            raise UserError(
                f"--gpus-per-node is {self.gpus_per_node} and --tasks-per-node {self.tasks_per_node}: one task a GPU "
                "is needed, so the two must be equal"
            )
        check_printable("--pcls", self.pcls)
        self.job.check_secrets(PATH)
        self.job.check_volumes(PATH)


def slurm_submission(target: Slurm) -> Submission:
    """The script, and the sbatch that takes it."""
    name = f"{target.job.name}.sbatch"
    return Submission((("sbatch", name),), {name: sbatch_script(target)})


def sbatch_script(target: Slurm) -> str:
    """The batch script."""
    job = target.job
    task = shlex.join(("bash", "-c", _task_script(target), "task", *_command(target)))
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {directive}" for directive in _directives(target)),
        "set -u",
        *exports(job),
        # scancel, a preemption and the end of the time reach this shell too: then it is Slurm's to say what follows.
        "ended_by_slurm=",
        "trap 'ended_by_slurm=1' TERM",
        f"srun {shlex.join(_srun_options(target))} {task}",
        "code=$?",
        f'if [ "$code" -gt {FINAL_BASE} ]; then exit $((code - {FINAL_BASE})); fi',
        f'if [ "$code" -ne 0 ] && [ -z "$ended_by_slurm" ] && '
        f'[ "${{SLURM_RESTART_COUNT:-0}}" -lt {job.policy.max_restarts} ]; then',
        '    echo "pcls: exit code $code; back into the queue"',
        '    scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _directives(target: Slurm) -> list[str]:
    chosen = (
        ("--cpus-per-task", str(target.cpus_per_task or "")),
        ("--gpus-per-node", str(target.gpus_per_node or "")),
        ("--time", target.time),
        ("--partition", target.partition),
        ("--account", target.account),
        ("--qos", target.qos),
    )
    return [
        f"--job-name={target.job.name}",
        f"--nodes={target.nodes}",
        f"--ntasks-per-node={target.tasks_per_node}",
        *(f"{option}={value}" for option, value in chosen if value),
        # To the tasks, so long before the end of the time: they save, and end with 42.
        f"--signal=TERM@{target.job.policy.grace:.0f}",
        "--requeue",
        "--open-mode=append",
        f"--output={target.job.name}-%j.log",
    ]


def _srun_options(target: Slurm) -> tuple[str, ...]:
    mounts = ",".join(f"{volume.source}:{volume.path}" for volume in target.job.volumes)
    container = (f"--container-image={target.container}",) if target.container else ()
    # Killed when the first has ended, the others might be saving.
    ending = ("--kill-on-bad-exit=0", f"--wait={target.job.policy.grace + HEARTBEAT_SECONDS:.0f}")
    return (*ending, *container, *((f"--container-mounts={mounts}",) if mounts else ()))


def _command(target: Slurm) -> tuple[str, ...]:
    joining = ("--coordinator", "auto", "--join-timeout", str(JOIN_TIMEOUT))
    alone = target.nodes * target.tasks_per_node == 1
    return (target.pcls, *(() if alone else joining), *target.job.train)


def _task_script(target: Slurm) -> str:
    """Runs its arguments and raises the codes that are final. Slurm's SIGTERM reaches this shell as well: it waits."""
    final = "|".join(map(str, final_codes(alone=target.nodes * target.tasks_per_node == 1)))
    return f'trap : TERM; "$@"; code=$?; case $code in {final}) code=$((code + {FINAL_BASE}));; esac; exit "$code"'


# The codes that ask for a restart lie below those that do not.
assert RestartRequested.exit_code < SHELL_SIGNAL_BASE < FINAL_BASE
