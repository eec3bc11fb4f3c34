"""JobSets, validated against the types that Kubeflow publishes of JobSet's and Kubernetes' own definitions."""

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from pcls.errors import UserError
from pcls.launch.job import Job, Secret, Volume
from pcls.launch.jobset import Gpus, JobSet, manifest, manifest_text
from pcls.launch.policy import Policy
from pcls.launch.tpus import Slice, parse_slice

# What the types leave to the servers. Sources: config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of JobSet v0.8,
# and https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy
SET_ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}
JOB_FAILURES = {
    "BackoffLimitExceeded",
    "DeadlineExceeded",
    "FailedIndexes",
    "MaxFailedIndexesExceeded",
    "PodFailurePolicy",
}


def made(devices, **changes):
    job = Job(
        "r50",
        "imagenet_resnet50",
        ("run.dir=/runs/$(HOME)/$x", "train.duration=90 epochs"),
        (("A", "$(B) c"),),
        (Secret("WANDB_API_KEY", "wandb/api-key"),),
        (Volume("runs-claim", "/runs"),),
        Policy(max_restarts=7, grace=90.0),
    )
    return JobSet(job, "registry.example/pcls:1.0", devices, **changes)


TARGETS = {
    "slices": made(parse_slice("v6e:4x4", 2), namespace="research"),
    "one host": made(parse_slice("v5e:2x4", 1)),
    "nodes": made(Gpus("nvidia-h100-80gb", 8, 4)),
    "one node": made(Gpus("nvidia-l4", 1, 1)),
}
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def job_spec(target):
    (replicated,) = manifest(target)["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container(target):
    (found,) = job_spec(target)["template"]["spec"]["containers"]
    return found


@every_target
def test_the_manifest_is_of_the_published_types_with_no_unknown_field(target):
    values = yaml.safe_load(manifest_text(target))
    assert values == manifest(target)
    # from_dict checks types and required fields, and leaves out what it does not know.
    assert JobsetV1alpha2JobSet.from_dict(values).to_dict() == values


def test_the_published_types_find_a_wrong_manifest():
    values = manifest(TARGETS["nodes"])
    values["spec"]["replicatedJobs"][0]["template"]["spec"]["backofLimit"] = 0
    assert JobsetV1alpha2JobSet.from_dict(values).to_dict() != values
    values["spec"]["failurePolicy"]["maxRestarts"] = "7"
    with pytest.raises(ValueError, match="maxRestarts"):
        JobsetV1alpha2JobSet.from_dict(values)


@every_target
def test_final_exit_codes_fail_the_set_and_all_others_restart_it(target):
    policy = manifest(target)["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["action"] in SET_ACTIONS
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert set(rule["onJobFailureReasons"]) <= JOB_FAILURES
    spec = job_spec(target)
    assert spec["backoffLimit"] == 0
    # Kubernetes takes a pod failure policy with this restart policy only.
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    (pod_rule,) = spec["podFailurePolicy"]["rules"]
    assert pod_rule["action"] == "FailJob"
    assert pod_rule["onExitCodes"]["containerName"] == container(target)["name"]
    alone = spec["completions"] == 1
    # In rising order, as Kubernetes wants them.
    assert pod_rule["onExitCodes"]["values"] == ([1, 2, 43] if alone else [2, 43])


def test_a_slice_has_a_pod_a_host_and_a_job_a_slice():
    target = TARGETS["slices"]
    (replicated,) = manifest(target)["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 2
    assert (job_spec(target)["completions"], job_spec(target)["parallelism"]) == (4, 4)
    assert job_spec(target)["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert container(target)["resources"] == {"limits": {"google.com/tpu": 4}}
    assert container(target)["command"][:5] == ["pcls", "--coordinator", "auto", "--join-timeout", "900"]


def test_nodes_with_gpus_meet_at_the_name_of_the_first_pod_and_know_their_number():
    target = TARGETS["nodes"]
    command = container(target)["command"]
    assert command[1:7] == [
        *("--coordinator", "r50-workers-0-0.r50:8476", "--processes", "4", "--process", "$(PROCESS_ID)")
    ]
    assert manifest(target)["spec"]["network"]["enableDNSHostnames"] is True
    (index,) = [entry for entry in container(target)["env"] if entry["name"] == "PROCESS_ID"]
    field = index["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert job_spec(target)["completionMode"] == "Indexed"


@every_target
def test_shared_memory_grace_and_volumes_are_there(target):
    pod = job_spec(target)["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 90
    mounts = {mount["name"]: mount["mountPath"] for mount in container(target)["volumeMounts"]}
    assert set(mounts.values()) == {"/dev/shm", "/runs"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes.keys() == mounts.keys()
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory"}
    assert volumes["volume-0"]["persistentVolumeClaim"] == {"claimName": "runs-claim"}


def expanded(word, variables):
    """What Kubernetes makes of a word: `$(NAME)` is a variable's value, `$$` is `$`."""
    out, place = "", 0
    while place < len(word):
        if word.startswith("$$", place):
            out, place = out + "$", place + 2
        elif word.startswith("$(", place) and (name := word[place + 2 :].partition(")")[0]) in variables:
            out, place = out + variables[name], place + len(name) + 3
        else:
            out, place = out + word[place], place + 1
    return out


@every_target
def test_nothing_of_the_users_is_taken_for_a_variable_of_kubernetes(target):
    variables = {"HOME": "/wrong", "B": "wrong", "PROCESS_ID": "3"}
    command = [expanded(word, variables) for word in container(target)["command"]]
    assert command[-5:] == [
        "--resume",
        "--",
        "imagenet_resnet50",
        "run.dir=/runs/$(HOME)/$x",
        "train.duration=90 epochs",
    ]
    assert ("$(PROCESS_ID)" in container(target)["command"]) is ("3" in command)
    values = {entry["name"]: entry.get("value") for entry in container(target)["env"]}
    assert expanded(values["A"], variables) == "$(B) c"


@pytest.mark.parametrize(
    ("text", "hosts", "per_host", "accelerator_type"),
    [
        ("v4:2x2x2", 2, 4, "v4-16"),
        ("v5e:1x1", 1, 1, "v5litepod-1"),
        ("v5e:2x4", 1, 8, "v5litepod-8"),
        ("v5e:4x4", 4, 4, "v5litepod-16"),
        ("v5p:2x2x1", 1, 4, "v5p-8"),
        ("v6e:16x16", 64, 4, "v6e-256"),
    ],
)
def test_a_slice_has_the_hosts_and_the_name_that_google_documents(text, hosts, per_host, accelerator_type):
    found = parse_slice(text, 1)
    assert (found.hosts, found.chips_per_host, found.accelerator_type) == (hosts, per_host, accelerator_type)


def test_simulated_devices_are_no_slice():
    with pytest.raises(UserError, match="a TPU is needed, as in v6e:4x4"):
        parse_slice("cpu-8", 1)
    assert isinstance(parse_slice("v6e", 1), Slice)
