"""JobSets for Kubernetes on GKE: TPU slices, or nodes with GPUs.

Written for JobSet v0.8 and newer (jobset.x-k8s.io/v1alpha2, failure policy rules) and Kubernetes 1.31 and newer (pod
failure policy). Fields: https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pcls.launch.job import JOIN_TIMEOUT, Job, Secret
from pcls.launch.names import DNS_LABEL, DNS_SUBDOMAIN, GPU, IMAGE, Rule, check
from pcls.launch.policy import final_codes
from pcls.launch.submission import Submission
from pcls.launch.tpus import Slice

CONTAINER = "pcls"
REPLICATED_JOB = "workers"
PORT = 8476
INDEX = "PROCESS_ID"
# Of the images in launch/docker: volumes are made writable for it.
GROUP = 10001
SECRET_KEY = Rule(
    r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-._A-Za-z0-9]+", 253, "a key of a Kubernetes secret, as in wandb/api-key"
)


@dataclass(frozen=True)
class Gpus:
    """Nodes with GPUs, one process a node.

    Attributes:
      kind: as GKE labels nodes, for example nvidia-h100-80gb.
      per_node: GPUs of each.
      nodes: how many.
    """

    kind: str
    per_node: int
    nodes: int

    def __post_init__(self) -> None:
        check("--gpu", self.kind, GPU)


@dataclass(frozen=True)
class JobSet:
    """A JobSet.

    Attributes:
      job: to run; secrets are SECRET/KEY, volumes are persistent volume claims.
      image: of the container.
      devices: to run on.
      namespace: empty: that of kubectl's context.
    """

    job: Job
    image: str
    devices: Slice | Gpus
    namespace: str = ""

    def __post_init__(self) -> None:
        check("--image", self.image, IMAGE)
        if self.namespace:
            check("--namespace", self.namespace, DNS_LABEL)
        self.job.check_secrets(SECRET_KEY)
        self.job.check_volumes(DNS_SUBDOMAIN)


def jobset_submission(target: JobSet) -> Submission:
    """The manifest, and the kubectl that takes it: create, since a JobSet that exists cannot be changed."""
    name = f"{target.job.name}.jobset.yaml"
    return Submission((("kubectl", "create", f"--filename={name}"),), {name: manifest_text(target)})


def manifest_text(target: JobSet) -> str:
    """The manifest as YAML, in ASCII."""
    return yaml.safe_dump(manifest(target), sort_keys=False, width=120)


def manifest(target: JobSet) -> dict[str, Any]:
    """The JobSet as plain values."""
    job, devices = target.job, target.devices
    slices, hosts = (devices.slices, devices.hosts) if isinstance(devices, Slice) else (1, devices.nodes)
    metadata: dict[str, Any] = {"name": job.name}
    if target.namespace:
        metadata["namespace"] = target.namespace
    if isinstance(devices, Slice):
        # A slice is a node pool of its own, and its hosts are of use only together.
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    final = list(final_codes(alone=slices * hosts == 1))
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            # A job that failed by its pod failure policy fails the set; any other failure (exit code 42, a signal, a
            # node that has gone) restarts all of it.
            "failurePolicy": {
                "maxRestarts": job.policy.max_restarts,
                "rules": [
                    {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                ],
            },
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [
                {
                    "name": REPLICATED_JOB,
                    "replicas": slices,
                    "template": {
                        "spec": {
                            "completionMode": "Indexed",
                            "completions": hosts,
                            "parallelism": hosts,
                            "backoffLimit": 0,
                            "podFailurePolicy": {
                                "rules": [
                                    {
                                        "action": "FailJob",
                                        "onExitCodes": {
                                            "containerName": CONTAINER,
                                            "operator": "In",
                                            "values": final,
                                        },
                                    }
                                ]
                            },
                            "template": {"spec": _pod(target)},
                        }
                    },
                }
            ],
        },
    }


def _pod(target: JobSet) -> dict[str, Any]:
    job, devices = target.job, target.devices
    if isinstance(devices, Slice):
        selector = {
            "cloud.google.com/gke-tpu-accelerator": devices.gke_name,
            "cloud.google.com/gke-tpu-topology": devices.shape,
        }
        resource, count = "google.com/tpu", devices.chips_per_host
        # GKE tells each pod of its slice, and of the other slices.
        joining: tuple[str, ...] = ("--coordinator", "auto")
        alone, numbered = devices.slices * devices.hosts == 1, False
    else:
        selector = {"cloud.google.com/gke-accelerator": devices.kind}
        resource, count = "nvidia.com/gpu", devices.per_node
        first = f"{job.name}-{REPLICATED_JOB}-0-0.{job.name}"
        joining = (
            *("--coordinator", f"{first}:{PORT}", "--processes", str(devices.nodes)),
            *("--process", f"$({INDEX})"),
        )
        alone = devices.nodes == 1
        numbered = not alone
    arguments = () if alone else (*joining, "--join-timeout", str(JOIN_TIMEOUT))
    environment: list[dict[str, Any]] = [{"name": variable, "value": _literal(value)} for variable, value in job.env]
    environment += [_secret(secret) for secret in job.secrets]
    if numbered:
        environment.append(
            {
                "name": INDEX,
                "valueFrom": {
                    "fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
                },
            }
        )
    names = [f"volume-{number}" for number in range(len(job.volumes))]
    return {
        "restartPolicy": "Never",
        # The kubelet's SIGTERM asks the run to save, and end with 42.
        "terminationGracePeriodSeconds": int(job.policy.grace),
        "nodeSelector": selector,
        "securityContext": {"fsGroup": GROUP},
        "containers": [
            {
                "name": CONTAINER,
                "image": target.image,
                "command": ["pcls", *arguments, *_literals(job.train)],
                "env": environment,
                "resources": {"limits": {resource: count}},
                "volumeMounts": [
                    # Processes that read images hand them over here, and a pod's own has 64 MB.
                    {"name": "shared-memory", "mountPath": "/dev/shm"},
                    *(
                        {"name": name, "mountPath": volume.path}
                        for name, volume in zip(names, job.volumes, strict=True)
                    ),
                ],
            }
        ],
        "volumes": [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
            *(
                {"name": name, "persistentVolumeClaim": {"claimName": volume.source}}
                for name, volume in zip(names, job.volumes, strict=True)
            ),
        ],
    }


def _secret(secret: Secret) -> dict[str, Any]:
    name, _, key = secret.reference.partition("/")
    return {"name": secret.variable, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}


def _literals(words: Sequence[str]) -> list[str]:
    return [_literal(word) for word in words]


def _literal(word: str) -> str:
    """The word as Kubernetes passes it on unchanged: it would put a variable in place of `$(NAME)`."""
    return word.replace("$", "$$")
