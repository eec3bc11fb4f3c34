"""TPU VMs and queued resources of Google Cloud, by gcloud: a container on each host, supervised there.

Written for gcloud 528 (`compute tpus tpu-vm`, `compute tpus queued-resources`) and the TPU VM images that have Docker.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from pcls.errors import UserError
from pcls.launch.job import Job
from pcls.launch.names import IMAGE, PATH, PROJECT, SECRET_ID, VERSION, ZONE, check
from pcls.launch.shell import read_secret
from pcls.launch.submission import Submission
from pcls.launch.tpus import Slice

# Source: https://docs.cloud.google.com/tpu/docs/runtimes
VERSIONS = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
SHARED_MEMORY = "16g"


@dataclass(frozen=True)
class TpuVm:
    """A TPU that Google Cloud rents as virtual machines.

    Attributes:
      job: to run; secrets are those of Secret Manager, volumes are folders of the hosts.
      image: of the container.
      tpu: the slice.
      zone, project: where.
      version: of the TPU software; empty: that which Google names for the generation.
      spot: cheaper, and taken away at any time.
    """

    job: Job
    image: str
    tpu: Slice
    zone: str
    project: str
    version: str = ""
    spot: bool = False

    def __post_init__(self) -> None:
        check("--image", self.image, IMAGE)
        check("--zone", self.zone, ZONE)
        check("--project", self.project, PROJECT)
        if self.version:
            check("--version", self.version, VERSION)
        elif self.tpu.generation not in VERSIONS:
            raise UserError(f"--topology {self.tpu.generation}: no TPU software is known for it; name one by --version")
        self.job.check_secrets(SECRET_ID)
        self.job.check_volumes(PATH)

    @property
    def software(self) -> str:
        """Its version."""
        return self.version or VERSIONS[self.tpu.generation]

    @property
    def place(self) -> tuple[str, ...]:
        """gcloud's words for zone and project."""
        return (f"--zone={self.zone}", f"--project={self.project}")


def tpu_vm_submission(target: TpuVm, *, create: bool) -> Submission:
    """Starts the container on every host of a TPU VM, which is made first if `create`.

    Raises:
      UserError: several slices.
    """
    if target.tpu.slices > 1:
        raise UserError(f"--slices {target.tpu.slices}: a TPU VM has one slice; see pcls launch queued")
    tpu_vm = ("gcloud", "compute", "tpus", "tpu-vm")
    name = target.job.name
    making = (
        *(*tpu_vm, "create", name, *target.place),
        *(f"--accelerator-type={target.tpu.accelerator_type}", f"--version={target.software}"),
        *(("--spot",) if target.spot else ()),
    )
    running = (*tpu_vm, "ssh", name, *target.place, "--worker=all", f"--command={host_script(target)}")
    return Submission((making, running) if create else (running,))


def queued_submission(target: TpuVm) -> Submission:
    """Queues for a TPU, whose hosts start the container whenever they boot."""
    name, file = target.job.name, f"{target.job.name}.startup.sh"
    nodes = (
        (f"--node-id={name}",)
        if target.tpu.slices == 1
        else (f"--node-count={target.tpu.slices}", f"--node-prefix={name}")
    )
    command = (
        *("gcloud", "compute", "tpus", "queued-resources", "create", name, *target.place, *nodes),
        *(f"--accelerator-type={target.tpu.accelerator_type}", f"--runtime-version={target.software}"),
        *(("--spot",) if target.spot else ()),
        f"--metadata-from-file=startup-script={file}",
    )
    return Submission((command,), {file: "#!/bin/bash\n" + host_script(target) + "\n"})


def host_script(target: TpuVm) -> str:
    """What each host runs: the container, in the background, in place of one that ran before."""
    job, policy = target.job, target.job.policy
    container = f"pcls-{job.name}"
    registry = target.image.partition("/")[0]
    google = registry.endswith((".pkg.dev", "gcr.io"))
    kept = ",".join(secret.variable for secret in job.secrets)
    docker_run = (
        *("docker", "run", "--detach", "--init", f"--name={container}", "--privileged", "--net=host"),
        *(f"--shm-size={SHARED_MEMORY}", f"--stop-timeout={policy.grace:.0f}"),
        *(f"--volume={volume.source}:{volume.path}" for volume in job.volumes),
        *(f"--env={variable}={value}" for variable, value in job.env),
        # Without a value docker takes its own environment's: nothing secret stands on the command line.
        *(f"--env={secret.variable}" for secret in job.secrets),
        target.image,
        *("pcls", "launch", "local", "--coordinator", "auto"),
        *("--grace", f"{policy.grace:g}", "--max-restarts", str(policy.max_restarts), "--", job.recipe, *job.overrides),
    )
    secrets_access = ("gcloud", "secrets", "versions", "access", "latest", f"--project={target.project}")
    return "\n".join(
        [
            "set -u",
            *(
                read_secret(secret.variable, (*secrets_access, f"--secret={secret.reference}"))
                for secret in job.secrets
            ),
            *([shlex.join(("sudo", "gcloud", "auth", "configure-docker", registry, "--quiet"))] if google else []),
            f"sudo docker rm --force {container} > /dev/null 2>&1",
            shlex.join(("sudo", *((f"--preserve-env={kept}",) if kept else ()), *docker_run)),
        ]
    )
