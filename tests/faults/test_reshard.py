"""A run goes on elsewhere: on other devices, mesh, processes and workers, with the same state and records."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcls.checkpoint.manifest import read_manifest, state_digest
from pcls.data.order import Order
from pcls.launch.supervisor import free_port
from pcls.run.folder import RunFolder

from .conftest import TINY, command

pytestmark = pytest.mark.faults

STEPS = 3
# Where a run goes on: devices of each process, processes, mesh. Adam, so that moments are split as well.
PLACES = [
    (8, 1, {"mesh.fsdp": 8}),
    (4, 1, {"mesh.fsdp": 4}),
    (2, 1, {"mesh.fsdp": 1, "mesh.sharding": "zero1"}),
    (1, 1, {"mesh.sharding": "auto"}),
    (2, 1, {"mesh.fsdp": 2}),
    (4, 1, {"mesh.fsdp": 2, "mesh.data": 2}),
    (8, 1, {"mesh.fsdp": 1, "mesh.data": 8, "mesh.sharding": "replicated"}),
    (8, 1, {"mesh.fsdp": 2, "mesh.model": 2, "mesh.data": 2, "mesh.sharding": "auto"}),
]
PROCESSES = [
    (4, 1, {"mesh.fsdp": 4}),
    (2, 2, {"mesh.fsdp": 4}),
    (1, 4, {"mesh.fsdp": 2, "mesh.data": 2}),
    (2, 2, {"mesh.fsdp": 1, "mesh.data": -1, "mesh.sharding": "zero1"}),
    (4, 1, {"mesh.fsdp": 4, "mesh.sharding": "auto"}),
]
RECORDS, BATCH = 1438, 32
TITLE = "a state saved on some devices and gone on with on others: each leaf equal by its digest"


def run(arguments, log, devices, processes=1):
    """`pcls` with these arguments as so many processes; the lines that each has logged."""
    meeting = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(processes), "--process"]
    script, environment = (
        str(Path(__file__).with_name("resharded.py")),
        os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
    )
    logs = [log.with_name(f"{log.name}-{index}") for index in range(processes)]
    started = [
        subprocess.Popen(
            [sys.executable, script, str(own), *([*meeting, str(index)] if processes > 1 else []), *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, own in enumerate(logs)
    ]
    try:
        told = [process.communicate(timeout=600)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, told
    return [[json.loads(line) for line in own.read_text().splitlines()] for own in logs]


def overrides(settings):
    return [f"{key}={value}" for key, value in settings.items()]


def newest(path):
    return max((path / "checkpoints").glob("[0-9]*"), key=lambda step: int(step.name))


def check_arrival(lines, saved, devices, processes):
    """Each process went on with the state that was saved, bit for bit."""
    arrived = [own[0] for own in lines]
    assert arrived == [{"digest": saved, "devices": devices * processes, "processes": processes}] * processes


def check_records(lines, first):
    """The steps had their records, each once, whoever read them."""
    order = Order(RECORDS, BATCH, 0)
    for step in range(STEPS):
        records = sorted(itertools.chain.from_iterable(own[1 + step] for own in lines))
        assert records == sorted(order.records_of_step(first + step)[0].tolist()), first + step
    assert {len(own) for own in lines} == {1 + STEPS}


@pytest.mark.parametrize("places", [PLACES, PROCESSES], ids=["devices", "processes"])
def test_a_state_is_the_same_wherever_it_goes_on(places, tmp_path, counted):
    path, counts = tmp_path / "run", counted(TITLE)
    settings = TINY | {"optimizer.name": "adamw", "checkpoint.every": f"{STEPS} steps"}
    saved = None
    for number, (devices, processes, mesh) in enumerate(places):
        length = {"train.duration": f"{(number + 1) * STEPS} steps"}
        if saved is None:
            arguments = command("digits_rnn", path, settings | mesh | length)
        else:
            arguments = ["resume", str(path), *overrides(mesh | length)]
        lines = run(arguments, tmp_path / f"log-{number}", devices, processes)
        if saved is not None:
            check_arrival(lines, saved, devices, processes)
            before = places[number - 1]
            counts[f"{before[0] * before[1]} devices of {before[1]} to {devices * processes} of {processes}"] += 1
        check_records(lines, number * STEPS)
        saved = state_digest(read_manifest(newest(path)).leaves)
    assert RunFolder(path).status()["step"] == len(places) * STEPS


def pictures(folder):
    """48 small images of two classes."""
    dice = np.random.default_rng(0)
    for number in range(48):
        file = folder / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (12, 12), np.uint8)).save(file)
    return folder


def test_other_readers_change_no_bit(tmp_path, counted):
    settings = TINY | {
        "data.source": "folder",
        "data.channels": 1,
        "data.path": str(pictures(tmp_path / "data")),
        "train.batch_size": 8,
        "train.duration": "9 steps",
        "checkpoint.every": "3 steps",
        "checkpoint.keep": 3,
    }
    undisturbed = tmp_path / "undisturbed"
    run(command("digits_rnn", undisturbed, settings | {"data.workers": 1}), tmp_path / "log", 1)
    expected = {int(step.name): read_manifest(step).leaves for step in (undisturbed / "checkpoints").glob("[0-9]*")}
    assert sorted(expected) == [3, 6, 9]
    for number, workers in enumerate(({"data.workers": 3}, {"data.workers": 2, "data.processes": 2})):
        path = tmp_path / str(number)
        shutil.copytree(undisturbed, path, ignore=shutil.ignore_patterns("[69]", "bundle"))
        lines = run(["resume", str(path), *overrides(workers)], tmp_path / f"log{number}", 1)
        check_arrival(lines, state_digest(expected[3]), 1, 1)
        assert read_manifest(path / "checkpoints" / "9").leaves == expected[9]
        counted(TITLE)["other numbers of reading threads and processes: also the last step's bits"] += 1


SETTINGS_OF_MEMORY = TINY | {"model.name": "rnn", "model.hidden": 2048, "optimizer.name": "adamw"}


def first_step(arguments, devices):
    """What `first_step.py` tells of a run."""
    script = str(Path(__file__).with_name("first_step.py"))
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    done = subprocess.run([sys.executable, script, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(re.search(r"^\{.*\}$", done.stdout, re.MULTILINE)[0])


@pytest.mark.parametrize("devices", [1, 4])
def test_the_first_step_after_a_resume_takes_the_memory_of_a_fresh_one(devices, tmp_path, counted):
    path = tmp_path / "run"
    mesh = {"mesh.fsdp": devices, "train.duration": "1 steps"}
    fresh = first_step(command("digits_rnn", path, SETTINGS_OF_MEMORY | mesh), devices)
    resumed = first_step(["resume", str(path), "train.duration=2 steps"], devices)
    # Small arrays that lie on several devices may share memory, here or there.
    assert fresh["state"] == pytest.approx(resumed["state"], rel=1e-3)
    assert fresh["state"] > 60e6
    # All that the step was given it took over: nothing of the old state lies beside the new one.
    assert fresh["left"] == resumed["left"] == 0
    assert resumed["arrays"] <= 1.01 * resumed["state"]
    assert resumed["peak"] <= 1.05 * fresh["peak"]
    counted(TITLE)["first steps after a resume with at most 1.05 of a fresh one's peak memory"] += 1
