"""Files and folders are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from pcls.atomic import atomic_path, atomic_write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_the_place_of_another(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text("old")
    assert atomic_write(path, "né") == path
    assert path.read_bytes() == "né".encode()
    assert names(tmp_path) == ["facts.json"]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, names(tmp_path))))
    with atomic_path(tmp_path / "bundle") as part:
        part.mkdir()
        (part / "weights").write_bytes(b"1")
    whole = {(tmp_path / name).stat().st_ino for name in ("bundle", "bundle/weights")}
    assert {number for number, _ in synced} == whole
    assert all("bundle" not in there for _, there in synced)


def test_what_fails_leaves_the_old_and_nothing_else(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["facts.json"]


def test_a_folder_appears_with_all_that_is_in_it(tmp_path):
    with atomic_path(tmp_path / "bundle") as part:
        part.mkdir()
        (part / "weights").write_bytes(b"1")
        assert not (tmp_path / "bundle").exists()
    assert (tmp_path / "bundle" / "weights").read_bytes() == b"1"
    assert names(tmp_path) == ["bundle"]


def test_what_a_killed_process_left_goes_and_what_others_write_stays(tmp_path):
    program = "import os, sys; from pcls.atomic import atomic_path\n"
    program += "with atomic_path(__import__('pathlib').Path(sys.argv[1])) as part:\n"
    program += " part.write_text('half'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], check=False)
    (left,) = tmp_path.iterdir()
    start = left.name.rpartition("-")[0].rpartition("-")[0]
    others = [f"{start}-{os.getppid()}-0", f"{start}-backup", ".a.tmp-1", "b"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / f"{start}-99999999999999999999-0").touch()
    atomic_write(tmp_path / "a", b"whole")
    assert names(tmp_path) == sorted([*others, "a"])


def test_several_may_be_written_at_one_time(tmp_path):
    names_ = ["n" * 100, "n" * 100 + ".json", "n" * 100]
    with contextlib.ExitStack() as stack:
        for number, name in enumerate(names_):
            stack.enter_context(atomic_path(tmp_path / name)).write_text(str(number))
        assert len(names(tmp_path)) == 3
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {names_[0]: "0", names_[1]: "1"}


def test_names_may_be_as_long_as_the_file_system_allows(tmp_path):
    for name in ("n" * 255, "é" * 127, os.fsdecode(b"\xff")):
        assert atomic_write(tmp_path / "new" / name, "x").read_text() == "x"


def test_a_file_where_a_folder_should_be_is_what_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        atomic_write(tmp_path / "file" / "a", "x")
