"""Managed jobs of SkyPilot: nodes of any cloud, supervised on each, found again after a preemption.

Written for SkyPilot 0.14 (task YAML, `sky jobs launch`).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

import yaml

from pcls.errors import RestartRequested, UserError
from pcls.launch.job import Job
from pcls.launch.names import ACCELERATOR, BUCKET, IMAGE, INFRA, check
from pcls.launch.submission import Submission

PORT = 8476


@dataclass(frozen=True)
class Sky:
    """A managed job of SkyPilot.

    Attributes:
      job: to run; secrets are taken from the environment of whoever submits, under the same name; volumes are buckets.
      image: of the container.
      accelerators: of a node, as in H100:8.
      nodes: how many.
      infra: where to look; empty: everywhere.
      spot: cheaper, and taken away at any time.
    """

    job: Job
    image: str
    accelerators: str
    nodes: int = 1
    infra: str = ""
    spot: bool = False

    def __post_init__(self) -> None:
        check("--image", self.image, IMAGE)
        check("--accelerators", self.accelerators, ACCELERATOR)
        if self.infra:
            check("--infra", self.infra, INFRA)
        self.job.check_volumes(BUCKET)
        for secret in self.job.secrets:
            if secret.reference != secret.variable:
                raise UserError(
                    f"--secret {secret.variable}=...: SkyPilot takes it from your environment under the same name; "
                    f"write --secret {secret.variable}={secret.variable}"
                )


def sky_submission(target: Sky) -> Submission:
    """The task, and the sky that takes it."""
    name = f"{target.job.name}.sky.yaml"
    secrets = [word for secret in target.job.secrets for word in ("--secret", secret.variable)]
    return Submission((("sky", "jobs", "launch", "--yes", *secrets, name),), {name: task_text(target)})


def task_text(target: Sky) -> str:
    """The task as YAML, in ASCII."""
    return yaml.safe_dump(task(target), sort_keys=False, width=120)


def task(target: Sky) -> dict[str, Any]:
    """The task as plain values."""
    job = target.job
    resources: dict[str, Any] = {
        "accelerators": target.accelerators,
        "image_id": f"docker:{target.image}",
        "use_spot": target.spot,
        # Restarts on the machines are the supervisor's; asked to stop from outside it ends with 42.
        "job_recovery": {"recover_on_exit_codes": [RestartRequested.exit_code]},
    }
    if target.infra:
        resources["infra"] = target.infra
    values: dict[str, Any] = {"name": job.name, "num_nodes": target.nodes, "resources": resources}
    if job.env:
        values["envs"] = dict(job.env)
    if job.secrets:
        values["secrets"] = {secret.variable: None for secret in job.secrets}
    if job.volumes:
        values["file_mounts"] = {volume.path: {"source": volume.source, "mode": "MOUNT"} for volume in job.volumes}
    return {**values, "run": run_script(target)}


def run_script(target: Sky) -> str:
    """What every node runs."""
    job, policy = target.job, target.job.policy
    limits = ("--grace", f"{policy.grace:g}", "--max-restarts", str(policy.max_restarts))
    arguments = shlex.join((*limits, "--", job.recipe, *job.overrides))
    if target.nodes == 1:
        return f"exec pcls launch local {arguments}\n"
    return (
        'first="$(head -n 1 <<< "$SKYPILOT_NODE_IPS")"\n'
        f'exec pcls launch local --coordinator "$first:{PORT}" --total "$SKYPILOT_NUM_NODES" '
        f'--first "$SKYPILOT_NODE_RANK" {arguments}\n'
    )
