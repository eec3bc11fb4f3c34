"""kill -9 at any moment, also during a save: the run ends as one that nobody disturbed."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pcls.data.order import Order
from pcls.run.folder import RunFolder

from .conftest import TINY, command, digest_of

pytestmark = pytest.mark.faults

KILLS = 50
MOMENTS = ("at any moment of training", "while files are written", "before the manifest", "while starting")
WEIGHTS = (4, 4, 2, 1)
STEPS = 200
SETTINGS = TINY | {"train.duration": f"{STEPS} steps", "checkpoint.every": "4 steps"}


def launch(log, arguments):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    program = [sys.executable, str(Path(__file__).with_name("killed.py")), str(log), *arguments]
    return subprocess.Popen(program, env=environment, stderr=subprocess.DEVNULL)


def wait_for(process, happened):
    """Whether it happened before the process ended."""
    while process.poll() is None:
        if happened():
            return True
        time.sleep(0.002)
    return False


def moments(path, log, dice):
    """Where a kill can come, by name: whether it is time, and how long to wait then."""
    folder = path / "checkpoints"

    def training():
        return log.exists() and log.stat().st_size > size

    def saving():
        return any(folder.glob("*.orbax-checkpoint-tmp"))

    def committed():
        return any(not (step / "pcls_manifest.json").exists() for step in folder.glob("[0-9]*"))

    size = log.stat().st_size if log.exists() else 0
    return dict(
        zip(
            MOMENTS,
            [
                (training, dice.uniform(0, 0.8)),
                (saving, dice.uniform(0, 0.03)),
                (committed, 0.0),
                (lambda: True, dice.uniform(0, 4)),
            ],
            strict=True,
        )
    )


def lives(log):
    """What each process of a run was fed: its first step, and the records of each step from there."""
    found = []
    for line in log.read_text().splitlines():
        value = json.loads(line)
        if isinstance(value, int):
            found.append((value, []))
        else:
            found[-1][1].append(value)
    return found


def check_records(log):
    """Each step of every life had the records that are its own; the steps that made the result, each record once."""
    order, last = Order(1438, 32, 0), {}
    for first, steps in lives(log):
        for step, records in enumerate(steps, first):
            assert records == order.records_of_step(step)[0].tolist(), step
            last[step] = records
    assert sorted(last) == list(range(STEPS))
    fed = np.concatenate([last[step] for step in range(STEPS)])
    epochs = len(fed) // 1438
    for epoch in range(epochs):
        np.testing.assert_array_equal(np.sort(fed[epoch * 1438 : (epoch + 1) * 1438]), np.arange(1438))
    return epochs


def test_fifty_kills_leave_no_trace(tmp_path, counted):
    undisturbed = tmp_path / "undisturbed"
    assert launch(tmp_path / "undisturbed.log", command("digits_cnn", undisturbed, SETTINGS)).wait() == 0
    expected = digest_of(undisturbed)
    dice, counts, killed, runs = random.Random(0), counted("kill -9 of runs of 200 steps, saved every 4"), 0, 0
    counts["kills"] = 0
    while killed < KILLS:
        runs += 1
        path, log = tmp_path / f"run{runs}", tmp_path / f"run{runs}.log"
        while RunFolder(path).status().get("status") != "finished":
            arguments = ["resume", str(path)] if RunFolder(path).exists() else command("digits_cnn", path, SETTINGS)
            (name,) = dice.choices(MOMENTS, WEIGHTS)
            happened, delay = moments(path, log, dice)[name]
            process = launch(log, arguments)
            if killed < KILLS and wait_for(process, happened):
                time.sleep(delay)
                if process.poll() is None:
                    process.kill()
                    killed += 1
                    counts["kills"] += 1
                    counts[f"  {name}"] += 1
            code = process.wait()
            assert code in (0, -9), (name, arguments)
        counts["runs that were killed and finished"] += 1
        counts["  with the undisturbed run's digest"] += digest_of(path) == expected
        counts["  epochs, each record once in each"] += check_records(log)
        assert digest_of(path) == expected
        assert not list((path / "checkpoints").glob("*tmp*"))
