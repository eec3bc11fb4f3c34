"""What every target would run, word for word, so that a change shows in review; and that bash reads it."""

import os
import subprocess
from pathlib import Path

import pytest

from pcls.cli import main

GOLDEN = Path(__file__).parent / "golden"
RENEW = "PCLS_RENEW_GOLDEN"
GOOGLE = ["--zone", "us-east5-b", "--project", "my-project", "--image", "us-docker.pkg.dev/my-project/images/pcls:1.0"]
IMAGE = ["--image", "registry.example:5000/pcls@sha256:" + "0123456789abcdef" * 4]
RUN = ["imagenet_resnet50", "run.dir=/runs/r50", "train.duration=90 epochs"]
CASES = {
    "ssh": ["ssh", *RUN, "--hosts", "node1,me@node2", "--folder", "/srv/work", "--secret", "WANDB_API_KEY=/etc/w"],
    "ssh-alone": ["ssh", *RUN, "--hosts", "node1", "--pcls", "/opt/pcls/bin/pcls", "--env", "A=b c"],
    "slurm": ["slurm", *RUN],
    "slurm-gpus": [
        *("slurm", *RUN, "--nodes", "2", "--tasks-per-node", "8", "--gpus-per-node", "8", "--cpus-per-task", "12"),
        *("--time", "1-12:00:00", "--partition", "gpu", "--account", "lab_1", "--qos", "high", "--grace", "300"),
        *("--container", "registry.example/pcls:1.0", "--volume", "/shared:/shared", "--volume", "/data/in:/in"),
        *("--env", "A=b c", "--secret", "WANDB_API_KEY=/home/me/.wandb", "--name", "r50", "--max-restarts", "3"),
    ],
    "tpu-vm": ["tpu-vm", *RUN, *GOOGLE, "--topology", "v6e:4x4", "--volume", "/mnt/runs:/runs"],
    "tpu-vm-made": [
        *("tpu-vm", *RUN, *GOOGLE, "--topology", "v5p:2x2x2", "--create", "--spot", "--version", "v2-alpha-tpuv5"),
        *("--env", "A=b c", "--secret", "WANDB_API_KEY=wandb-key"),
    ],
    "queued": ["queued", *RUN, *GOOGLE, "--topology", "v5e:2x4", "--spot"],
    "queued-slices": ["queued", *RUN, *GOOGLE, "--topology", "v4:4x4x4", "--slices", "2", "--secret", "A_KEY=a"],
    "jobset-tpu": [
        *("jobset-tpu", *RUN, *IMAGE, "--topology", "v6e:4x4", "--slices", "2", "--volume", "runs-claim:/runs"),
        *("--env", "A=b c", "--secret", "WANDB_API_KEY=wandb/api-key", "--namespace", "research", "--grace", "90"),
    ],
    "jobset-tpu-alone": ["jobset-tpu", *RUN, *IMAGE, "--topology", "v5e:2x4"],
    "jobset-gpu": [
        *("jobset-gpu", *RUN, *IMAGE, "--gpu", "nvidia-h100-80gb", "--nodes", "4", "--volume", "runs-claim:/runs"),
    ],
    "jobset-gpu-alone": ["jobset-gpu", *RUN, *IMAGE, "--gpu", "nvidia-l4", "--gpus-per-node", "1"],
    "xpk": ["xpk", *RUN, *GOOGLE, "--topology", "v6e:4x4", "--slices", "2", "--cluster", "c1", "--env", "A=b c"],
    "sky": [
        *("sky", *RUN, *IMAGE, "--accelerators", "H100:8", "--nodes", "2", "--infra", "gcp/us-central1", "--spot"),
        *("--volume", "gs://my-runs:/runs", "--secret", "WANDB_API_KEY=WANDB_API_KEY", "--env", "A=b c"),
    ],
    "sky-alone": ["sky", *RUN, *IMAGE, "--accelerators", "L4:1"],
}


def test_no_golden_file_outlives_its_case():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_target_runs_what_its_golden_file_says(name, capsys):
    assert main(["launch", *CASES[name], "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get(RENEW) == "1":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    found = golden.read_text() if golden.is_file() else ""
    assert text == found, (
        f"the target no longer runs what tests/launch/golden/{golden.name} says; where that is meant, renew the file "
        f"by `{RENEW}=1 python -m pytest tests/launch/test_golden.py` and commit it"
    )
