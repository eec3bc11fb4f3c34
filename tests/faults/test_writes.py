"""A disk that refuses a checkpoint: told within a step, the last good one kept, the next save succeeds."""

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pcls.checkpoint.manifest import read_manifest
from pcls.run.checkpoints import verify_checkpoints
from pcls.run.folder import RunFolder

from .conftest import TINY, command, digest_of, start

pytestmark = pytest.mark.faults

SETTINGS = TINY | {
    "model.name": "cnn28",
    "train.duration": "60 steps",
    "checkpoint.every": "10 steps",
    "checkpoint.keep": 2,
}
TITLE = "saves refused by the disk"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(command("digits_cnn", path, SETTINGS))
    told = process.communicate()[1]
    assert process.returncode == 0, told
    return path


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a file system of so many kilobytes on a run's checkpoints, or mounts it anew."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")

    def mount(*options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)], check=False)

    if mount("size=8m").returncode:
        pytest.skip("no file system can be mounted here")
    yield lambda *options: mount("remount", *options).check_returncode()
    subprocess.run(["umount", str(folder)], check=True)


# Not by `preexec_fn`: that forks a process in which jax has started threads.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def limited_to(size):
    """What starts a Python none of whose files may grow beyond so many bytes (RLIMIT_FSIZE)."""
    return [sys.executable, "-c", LIMITED, str(size)]


def size_of_data(path):
    """Of the largest file of a step."""
    newest = max((path / "checkpoints").iterdir(), key=lambda step: int(step.name))
    return max(file.bytes for file in read_manifest(newest).files.values())


def steps_of(path):
    return [each.step for each in verify_checkpoints(path) if not each.problem]


def refused(told):
    return [line for line in told.splitlines() if "a checkpoint could not be written" in line]


def test_a_file_that_may_not_grow_stops_a_run_which_then_resumes(undisturbed, tmp_path, counted):
    path = tmp_path / "run"
    limited = limited_to(size_of_data(undisturbed) // 2)
    process = start(command("digits_cnn", path, SETTINGS), python=limited)
    told = process.communicate()[1]
    assert process.returncode == 2, told
    assert len(refused(told)) == 1
    assert os.strerror(errno.EFBIG) in refused(told)[0]
    assert "Traceback" not in told
    assert steps_of(path) == []
    assert RunFolder(path).status()["step"] <= 20
    process = start(["resume", str(path)])
    assert process.communicate() and process.returncode == 0
    assert digest_of(path) == digest_of(undisturbed)
    counted(TITLE)["RLIMIT_FSIZE, stop: told in a line, exit 2, resumed to the same bits"] += 1


def test_a_file_that_may_not_grow_lets_a_run_go_on_where_the_recipe_says_so(undisturbed, tmp_path, counted):
    path = tmp_path / "run"
    limited = limited_to(size_of_data(undisturbed) // 2)
    process = start(command("digits_cnn", path, SETTINGS | {"checkpoint.on_failure": "go_on"}), python=limited)
    told = process.communicate()[1]
    assert len(refused(told)) == 6
    assert all("the run goes on without it" in line for line in refused(told))
    assert steps_of(path) == []
    assert process.returncode == 0
    assert RunFolder(path).status()["status"] == "finished"
    assert (path / "bundle" / "model.safetensors").read_bytes() == (
        undisturbed / "bundle" / "model.safetensors"
    ).read_bytes()
    counted(TITLE)["RLIMIT_FSIZE, go on: each of 6 refused saves told, trained to the end"] += 1


@pytest.mark.parametrize("fault", ["full", "read-only"])
@pytest.mark.parametrize("on_failure", ["stop", "go_on"])
def test_a_disk_that_fills_or_turns_read_only(fault, on_failure, undisturbed, disk, tmp_path, counted, request):
    path = tmp_path / "run"
    settings = SETTINGS | {"train.duration": "6000 steps", "checkpoint.on_failure": on_failure}
    process = start(command("digits_cnn", path, settings))
    request.addfinalizer(process.kill)
    good = path / "checkpoints" / "10" / "pcls_manifest.json"
    while process.poll() is None and not (path / "checkpoints" / "20" / "pcls_manifest.json").exists():
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1]
    # Some steps are saved: now the disk refuses.
    filler = path / "checkpoints" / "filler"
    if fault == "full":
        fill(filler)
    else:
        disk("ro")
    lines = []
    while line := process.stderr.readline():
        lines.append(line)
        if "a checkpoint could not be written" in line:
            break
    assert lines and "a checkpoint could not be written" in lines[-1], lines
    reason = "no space left on the disk" if fault == "full" else os.strerror(errno.EROFS)
    assert reason in lines[-1] or "Permission denied" in lines[-1]
    # Told before the save after it was due.
    last_good = max(int(each.name) for each in (path / "checkpoints").iterdir() if each.name.isdecimal())
    if on_failure == "stop":
        told = "".join(lines) + process.communicate(timeout=120)[1]
        assert process.returncode == 2
        assert "Traceback" not in told, told
        assert last_good <= RunFolder(path).status()["step"] <= last_good + 20
    if fault == "full":
        filler.unlink()
    else:
        disk("rw")
    if on_failure == "go_on":
        deadline = time.monotonic() + 60
        while process.poll() is None and max(steps_of(path)) <= last_good and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.poll() is None
        process.terminate()
        process.communicate(timeout=120)
        assert process.returncode == 42
    assert max(steps_of(path)) > last_good if on_failure == "go_on" else max(steps_of(path)) == last_good
    assert all(not each.problem for each in verify_checkpoints(path))
    assert not good.exists() or last_good <= 20
    # The recipe's length does not matter to what was trained so far: shortened to the next save, the run ends well.
    end = max(steps_of(path)) // 10 * 10 + 20
    process = start(["resume", str(path), f"train.duration={end} steps"])
    told = process.communicate()[1]
    assert process.returncode == 0, told
    assert max(steps_of(path)) == end
    counted(TITLE)[f"{fault}, {on_failure.replace('_', ' ')}: told, last good step kept, the next save succeeded"] += 1


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    break


def test_of_two_writers_the_second_is_refused(undisturbed, tmp_path, counted):
    path = shutil.copytree(undisturbed, tmp_path / "run")
    arguments = ["resume", str(path), "train.duration=6000 steps"]
    first = start(arguments)
    try:
        while first.poll() is None and not (path / "checkpoints" / "80" / "pcls_manifest.json").exists():
            time.sleep(0.01)
        second = start(arguments)
        told = second.communicate()[1]
        assert second.returncode == 2
        assert re.search(rf"process {first.pid} on \S+ is writing this run", told)
    finally:
        first.terminate()
        first.communicate()
    assert first.returncode == 42
    assert [each.problem for each in verify_checkpoints(path)] == ["", ""]
    counted("two writers on one run")["second writers refused"] += 1


def test_a_clock_that_was_set_back_changes_nothing(undisturbed, tmp_path, counted):
    path = shutil.copytree(undisturbed, tmp_path / "run")
    for place in [path, *path.rglob("*")]:
        os.utime(place, (time.time() + 4e8, time.time() + 4e8))
    # What a killed process left before it could write its name in it, in what is now the future.
    (path / "lock").touch()
    os.utime(path / "lock", (time.time() + 4e8, time.time() + 4e8))
    process = start(["resume", str(path), "train.duration=80 steps"])
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 0, told
    assert "from step 60" in told
    assert steps_of(path) == [70, 80]
    counted("clock set back by 12 years")["runs that resumed from their newest step by number"] += 1
