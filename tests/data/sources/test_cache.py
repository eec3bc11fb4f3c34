"""What was fetched or worked out once is there whole, or not at all."""

import errno
import os
import threading
from pathlib import Path

import pytest

from pcls.data.sources.cache import cache_folder, cache_key, kept
from pcls.errors import UserError


def test_the_environment_names_the_cache(monkeypatch):
    monkeypatch.setenv("PCLS_CACHE", "/scratch/cache")
    assert cache_folder() == Path("/scratch/cache")
    monkeypatch.setenv("PCLS_CACHE", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/pcls")


def test_a_key_tells_parts_apart_and_shows_none():
    assert cache_key("ab", "c") != cache_key("a", "bc")
    assert cache_key("secret", 3) == cache_key("secret", "3")
    assert len(cache_key("odd \udcff byte")) == 32


def test_threads_that_ask_at_once_fill_it_once(tmp_path):
    fills = []
    together = threading.Barrier(4)

    def fill(part):
        fills.append(part)
        part.write_text("whole")

    def ask():
        together.wait()
        assert kept(tmp_path / "sub" / "file", fill).read_text() == "whole"

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fills) == 1
    assert sorted(file.name for file in (tmp_path / "sub").iterdir()) == ["file", "file.lock"]


def test_what_a_killed_process_left_is_written_anew(tmp_path):
    (tmp_path / "folder.part").mkdir()
    (tmp_path / "folder.part" / "half").write_text("ha")

    def fill(part):
        part.mkdir()
        (part / "whole").write_text("all")

    assert [file.name for file in kept(tmp_path / "folder", fill).iterdir()] == ["whole"]
    assert not (tmp_path / "folder.part").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    def fill(part):
        part.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError) as raised:
        kept(tmp_path / "file", fill)
    assert str(raised.value) == (
        f"{tmp_path}: cannot be written (No space left on device); make room there, or set PCLS_CACHE to another folder"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["file.lock"]
