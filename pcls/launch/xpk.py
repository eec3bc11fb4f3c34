"""TPU workloads by XPK, which makes a JobSet of its own of them.

Written for xpk 1.16. Its workloads start again after 42 and after a signal, as pcls has it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from pcls.errors import PclsError, UserError
from pcls.launch.job import JOIN_TIMEOUT, Job
from pcls.launch.names import DNS_LABEL, IMAGE, PROJECT, ZONE, check
from pcls.launch.policy import final_codes
from pcls.launch.submission import Submission
from pcls.launch.tpus import Slice


@dataclass(frozen=True)
class Xpk:
    """A workload of XPK.

    Attributes:
      job: to run. XPK takes no secrets by reference, and storages are attached to its cluster.
      image: of the container.
      tpu: the slices.
      cluster, zone, project: where.
    """

    job: Job
    image: str
    tpu: Slice
    cluster: str
    zone: str
    project: str

    def __post_init__(self) -> None:
        check("--image", self.image, IMAGE)
        check("--cluster", self.cluster, DNS_LABEL)
        check("--zone", self.zone, ZONE)
        check("--project", self.project, PROJECT)
        if self.job.secrets or self.job.volumes:
            raise UserError(
                "XPK takes neither --secret nor --volume; see pcls launch jobset-tpu, or xpk storage attach"
            )


def xpk_submission(target: Xpk) -> Submission:
    """The xpk that creates the workload."""
    job, tpu = target.job, target.tpu
    alone = tpu.slices * tpu.hosts == 1
    more = (
        () if PclsError.exit_code in final_codes(alone=alone) else (f"--restart-on-exit-codes={PclsError.exit_code}",)
    )
    return Submission(
        (
            (
                *("xpk", "workload", "create", f"--workload={job.name}", f"--cluster={target.cluster}"),
                *(f"--zone={target.zone}", f"--project={target.project}"),
                *(f"--tpu-type={tpu.accelerator_type}", f"--num-slices={tpu.slices}"),
                f"--docker-image={target.image}",
                f"--max-restarts={job.policy.max_restarts}",
                *more,
                f"--termination-grace-period-seconds={job.policy.grace:.0f}",
                f"--command={_command(target, alone)}",
            ),
        )
    )


def _command(target: Xpk, alone: bool) -> str:
    """One line for the bash of the container.

    `exec`, so that the SIGTERM which XPK passes on reaches pcls and no shell between; a doubled `$` because Kubernetes
    sees the line first, and would put variables in.
    """
    joining = () if alone else ("--coordinator", "auto", "--join-timeout", str(JOIN_TIMEOUT))
    environment = ("env", *(f"{variable}={value}" for variable, value in target.job.env)) if target.job.env else ()
    return shlex.join(("exec", *environment, "pcls", *joining, *target.job.train)).replace("$", "$$")
