"""Targets of `pcls launch` that run a container image: TPU VMs, Kubernetes, XPK, SkyPilot."""

from __future__ import annotations

from typing import Annotated

import typer

from pcls.cli.launch_options import (
    DRY_RUN,
    ENV,
    GRACE,
    IMAGE,
    NAME,
    OVERRIDES,
    PROJECT,
    RECIPE,
    RESTARTS,
    SLICES,
    SPOT,
    SUBMIT,
    TOPOLOGY,
    ZONE,
    carry_out,
    is_submitted,
    job_of,
)

SECRET_MANAGER = Annotated[list[str] | None, typer.Option(help="NAME=SECRET of Secret Manager, its latest version.")]
SECRET_KEY = Annotated[list[str] | None, typer.Option(help="NAME=SECRET/KEY of the namespace.")]
HOST_VOLUME = Annotated[
    list[str] | None, typer.Option(help="HOST_PATH:PATH; run.dir must be on storage all hosts share.")
]
CLAIM = Annotated[list[str] | None, typer.Option(help="CLAIM:PATH, a persistent volume claim; run.dir belongs there.")]
VERSION = Annotated[str, typer.Option(help="Of the TPU software.  [default: Google's for the generation]")]
NAMESPACE = Annotated[str, typer.Option(help="[default: that of kubectl's context]")]


def cloud_targets(app: typer.Typer) -> None:
    """Adds the targets."""
    for name, target in (
        ("tpu-vm", tpu_vm),
        ("queued", queued),
        ("jobset-tpu", jobset_tpu),
        ("jobset-gpu", jobset_gpu),
        ("xpk", xpk),
        ("sky", sky),
    ):
        app.command(name)(target)


def tpu_vm(
    recipe: RECIPE,
    image: IMAGE,
    topology: TOPOLOGY,
    zone: ZONE,
    project: PROJECT,
    overrides: OVERRIDES = None,
    create: Annotated[bool, typer.Option("--create", help="Make the TPU VM first.")] = False,
    version: VERSION = "",
    spot: SPOT = False,
    name: NAME = "",
    volume: HOST_VOLUME = None,
    env: ENV = None,
    secret: SECRET_MANAGER = None,
    max_restarts: RESTARTS = 10,
    grace: GRACE = 60.0,
    dry_run: DRY_RUN = False,
    submit: SUBMIT = False,
) -> None:
    """Train on a TPU VM, in a container on each of its hosts.

    Example: pcls launch tpu-vm imagenet_resnet50 --topology v6e:4x4 --zone us-east5-b --project my-project
    --image my/pcls:1 --dry-run
    """
    from pcls.errors import UserError
    from pcls.launch.tpu_vm import TpuVm, tpu_vm_submission
    from pcls.launch.tpus import parse_slice

    if not create and (version or spot):
        raise UserError("--version and --spot say how the TPU VM is made; they need --create")
    job = job_of(recipe, overrides, name, env, secret, volume, max_restarts, grace)
    target = TpuVm(job, image, parse_slice(topology, 1), zone, project, version, spot)
    carry_out(tpu_vm_submission(target, create=create), is_submitted(dry_run, submit))


def queued(
    recipe: RECIPE,
    image: IMAGE,
    topology: TOPOLOGY,
    zone: ZONE,
    project: PROJECT,
    overrides: OVERRIDES = None,
    slices: SLICES = 1,
    version: VERSION = "",
    spot: SPOT = False,
    name: NAME = "",
    volume: HOST_VOLUME = None,
    env: ENV = None,
    secret: SECRET_MANAGER = None,
    max_restarts: RESTARTS = 10,
    grace: GRACE = 60.0,
    dry_run: DRY_RUN = False,
    submit: SUBMIT = False,
) -> None:
    """Queue for TPU slices; their hosts start the container whenever they boot.

    Example: pcls launch queued imagenet_resnet50 --topology v6e:16x16 --zone us-east5-b
    --project my-project --image my/pcls:1 --dry-run
    """
    from pcls.launch.tpu_vm import TpuVm, queued_submission
    from pcls.launch.tpus import parse_slice

    job = job_of(recipe, overrides, name, env, secret, volume, max_restarts, grace)
    target = TpuVm(job, image, parse_slice(topology, slices), zone, project, version, spot)
    carry_out(queued_submission(target), is_submitted(dry_run, submit))


def jobset_tpu(
    recipe: RECIPE,
    image: IMAGE,
    topology: TOPOLOGY,
    overrides: OVERRIDES = None,
    slices: SLICES = 1,
    namespace: NAMESPACE = "",
    name: NAME = "",
    volume: CLAIM = None,
    env: ENV = None,
    secret: SECRET_KEY = None,
    max_restarts: RESTARTS = 10,
    grace: GRACE = 60.0,
    dry_run: DRY_RUN = False,
    submit: SUBMIT = False,
) -> None:
    """Train on TPU slices of GKE, as a JobSet.

    Example: pcls launch jobset-tpu imagenet_resnet50 --topology v6e:4x4 --image my/pcls:1
    --volume runs:/runs --dry-run
    """
    from pcls.launch.jobset import JobSet, jobset_submission
    from pcls.launch.tpus import parse_slice

    job = job_of(recipe, overrides, name, env, secret, volume, max_restarts, grace)
    target = JobSet(job, image, parse_slice(topology, slices), namespace)
    carry_out(jobset_submission(target), is_submitted(dry_run, submit))


def jobset_gpu(
    recipe: RECIPE,
    image: IMAGE,
    gpu: Annotated[str, typer.Option(help="As GKE labels nodes, as in nvidia-h100-80gb.")],
    overrides: OVERRIDES = None,
    nodes: Annotated[int, typer.Option(help="One process each.", min=1)] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, max=64)] = 8,
    namespace: NAMESPACE = "",
    name: NAME = "",
    volume: CLAIM = None,
    env: ENV = None,
    secret: SECRET_KEY = None,
    max_restarts: RESTARTS = 10,
    grace: GRACE = 60.0,
    dry_run: DRY_RUN = False,
    submit: SUBMIT = False,
) -> None:
    """Train on nodes with GPUs of GKE, as a JobSet.

    Example: pcls launch jobset-gpu imagenet_resnet50 --gpu nvidia-h100-80gb --nodes 2 --image my/pcls:1
    --volume runs:/runs --dry-run
    """
    from pcls.launch.jobset import Gpus, JobSet, jobset_submission

    job = job_of(recipe, overrides, name, env, secret, volume, max_restarts, grace)
    target = JobSet(job, image, Gpus(gpu, gpus_per_node, nodes), namespace)
    carry_out(jobset_submission(target), is_submitted(dry_run, submit))


def xpk(
    recipe: RECIPE,
    image: IMAGE,
    topology: TOPOLOGY,
    cluster: Annotated[str, typer.Option(help="Of XPK.")],
    zone: ZONE,
    project: PROJECT,
    overrides: OVERRIDES = None,
    slices: SLICES = 1,
    name: NAME = "",
    env: ENV = None,
    max_restarts: RESTARTS = 10,
    grace: GRACE = 60.0,
    dry_run: DRY_RUN = False,
    submit: SUBMIT = False,
) -> None:
    """Train on TPU slices of a cluster of XPK.

    Example: pcls launch xpk imagenet_resnet50 --topology v6e:4x4 --cluster c1 --zone us-east5-b
    --project my-project --image my/pcls:1 --dry-run
    """
    from pcls.launch.tpus import parse_slice
    from pcls.launch.xpk import Xpk, xpk_submission

    job = job_of(recipe, overrides, name, env, None, None, max_restarts, grace)
    target = Xpk(job, image, parse_slice(topology, slices), cluster, zone, project)
    carry_out(xpk_submission(target), is_submitted(dry_run, submit))


def sky(
    recipe: RECIPE,
    image: IMAGE,
    accelerators: Annotated[str, typer.Option(help="Of a node, as in H100:8.")],
    overrides: OVERRIDES = None,
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    infra: Annotated[str, typer.Option(help="Where to look, as in gcp/us-central1.  [default: everywhere]")] = "",
    spot: SPOT = False,
    name: NAME = "",
    volume: Annotated[list[str] | None, typer.Option(help="BUCKET:PATH, as in gs://my-runs:/runs.")] = None,
    env: ENV = None,
    secret: Annotated[list[str] | None, typer.Option(help="NAME=NAME, from your environment.")] = None,
    max_restarts: RESTARTS = 10,
    grace: GRACE = 60.0,
    dry_run: DRY_RUN = False,
    submit: SUBMIT = False,
) -> None:
    """Train as a managed job of SkyPilot, on any cloud.

    Example: pcls launch sky imagenet_resnet50 --accelerators H100:8 --nodes 2 --image my/pcls:1
    --volume gs://my-runs:/runs --dry-run
    """
    from pcls.launch.sky import Sky, sky_submission

    job = job_of(recipe, overrides, name, env, secret, volume, max_restarts, grace)
    target = Sky(job, image, accelerators, nodes, infra, spot)
    carry_out(sky_submission(target), is_submitted(dry_run, submit))
