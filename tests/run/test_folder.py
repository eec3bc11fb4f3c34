"""The lock of a run, and its small files."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime

import pytest

from pcls.config import Recipe
from pcls.errors import UserError
from pcls.run import lock
from pcls.run.folder import RunFolder

HOLD = """
import sys
from pcls.run.folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the run's lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def written_lock(folder, **changes):
    """A lock that names this process, but for the changes."""
    with folder.locked():
        held = json.loads((folder.path / "lock").read_text())
    (folder.path / "lock").write_text(json.dumps(held | changes))


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def test_a_run_that_a_live_process_writes_is_refused_with_its_host_and_pid(holder, folder):
    with pytest.raises(UserError, match=f"process {holder.pid} on {socket.gethostname()} is writing this run"):
        with folder.locked():
            pass
    assert (folder.path / "lock").exists()


@pytest.mark.faults
def test_the_lock_of_a_killed_process_is_taken_over(holder, folder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (folder.path / "lock").exists()
    with folder.locked():
        assert json.loads((folder.path / "lock").read_text())["pid"] == os.getpid()
    assert not (folder.path / "lock").exists()


def test_a_lock_goes_with_its_holder(holder, folder):
    holder.communicate("")
    assert not (folder.path / "lock").exists()


def test_the_lock_of_a_process_whose_number_was_given_away_is_taken_over(folder):
    written_lock(folder, started="1")
    with folder.locked():
        pass
    written_lock(folder)
    with pytest.raises(UserError, match=f"process {os.getpid()} "), folder.locked():
        pass


ELSEWHERE = [{"host": "node17", "pid": 4711}, {"space": "pid:[1]"}]


@pytest.mark.parametrize("changes", ELSEWHERE, ids=["another machine", "another container"])
def test_the_lock_of_a_machine_that_is_gone_is_taken_over_when_nobody_has_renewed_it_for_a_while(
    changes, folder, monkeypatch, capsys
):
    monkeypatch.setattr(lock, "LEASE", 1.0)
    monkeypatch.setattr("pcls.run.folder.POLL_SECONDS", 0.1)
    written_lock(folder, **changes)
    begin = time.monotonic()
    with folder.locked():
        assert json.loads((folder.path / "lock").read_text())["pid"] == os.getpid()
    assert time.monotonic() - begin > 1
    said = capsys.readouterr().err
    assert said.count("was writing this run; waiting up to 90 s to see whether it still does") == 1


@pytest.mark.parametrize("changes", ELSEWHERE, ids=["another machine", "another container"])
def test_the_lock_of_another_machine_that_is_renewed_is_refused(changes, folder, monkeypatch):
    monkeypatch.setattr("pcls.run.folder.POLL_SECONDS", 0.1)
    written_lock(folder, taken=datetime(2026, 11, 30, 13, 2, 59).timestamp(), **changes)
    threading.Timer(0.5, os.utime, (folder.path / "lock",)).start()
    with pytest.raises(UserError) as caught, folder.locked():
        pass
    who = f"process {changes.get('pid', os.getpid())} on {changes.get('host', socket.gethostname())}"
    assert str(caught.value) == (f"{folder.path}: {who} is writing this run since 2026-11-30 13:02; stop it first")
    assert (folder.path / "lock").exists()


def test_a_holder_renews_its_lock(folder, monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 0.1)
    with folder.locked():
        before = (folder.path / "lock").stat().st_mtime_ns
        time.sleep(0.5)
        assert (folder.path / "lock").stat().st_mtime_ns > before


STOOD_STILL = """
import json, sys, time
from pcls.run import lock
from pcls.run.folder import RunFolder
lock.RENEW = 0.2
folder = RunFolder(sys.argv[1])
with folder.locked():
    held = json.loads((folder.path / "lock").read_text())
    (folder.path / "lock").write_text(json.dumps(held | {"host": "node17"}))
    time.sleep(20)
"""


def test_a_holder_whose_lock_was_taken_by_another_ends_so_that_not_two_write(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STOOD_STILL, str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 42
    assert "on node17 has taken this lock" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "here"}', '{"host": "a", "pid": "x", "started": ""}'])
def test_a_lock_that_names_nobody_is_taken_over_after_a_while(text, folder, monkeypatch):
    monkeypatch.setattr(lock, "UNWRITTEN_SECONDS", 0.2)
    folder.path.mkdir()
    (folder.path / "lock").write_text(text)
    with folder.locked():
        assert json.loads((folder.path / "lock").read_text())["pid"] == os.getpid()


def test_the_lock_is_given_back_when_the_work_fails(folder):
    with pytest.raises(ZeroDivisionError), folder.locked():
        raise ZeroDivisionError
    assert not (folder.path / "lock").exists()


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_want_a_run_one_gets_it(stale, folder):
    if stale:
        written_lock(folder, started="1")
    held, refused = [], []
    ready, done = threading.Barrier(8), threading.Barrier(8)

    def want():
        ready.wait()
        try:
            with folder.locked():
                held.append(1)
                done.wait()
        except UserError:
            refused.append(1)
            done.wait()

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run\.dir .*/file/run: cannot be written \(Not a directory\)"):
        with RunFolder(tmp_path / "file" / "run").locked():
            pass


def test_a_folder_without_a_run_says_how_to_start_one(folder):
    with pytest.raises(
        UserError, match=r"there is no run in this folder \(no recipe.yaml\); start one with pcls train"
    ):
        folder.recipe()
    assert folder.status() == {}


def test_a_bundle_and_runs_of_several_seeds_are_told_from_no_run(tmp_path):
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UserError, match=r"is a bundle, and a run's folder .* pcls eval .* --data FOLDER"):
        RunFolder(tmp_path).recipe()
    for seed in (0, 1):
        RunFolder(tmp_path / f"sd[1]-seed{seed}").create(Recipe())
    with pytest.raises(UserError, match=r"but 2 of several seeds beside it; name one, such as .*/sd\[1\]-seed0$"):
        RunFolder(tmp_path / "sd[1]").recipe()


def test_the_recipe_comes_back(folder):
    folder.create(Recipe())
    assert folder.exists()
    assert folder.recipe() == Recipe()
    assert [path.name for path in folder.path.iterdir()] == ["recipe.yaml"]


def test_a_damaged_status_is_named(folder):
    folder.create(Recipe())
    (folder.path / "status.json").write_text('{"status": "fin')
    with pytest.raises(UserError, match=r"status\.json: cannot be read"):
        folder.status()
