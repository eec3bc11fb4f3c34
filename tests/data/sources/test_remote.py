"""Object stores: a stand-in that counts, fails and cuts short, and fsspec's own in memory."""

import copy
import errno
import io
import os
import shutil
import sys
import threading
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem
from PIL import Image

from pcls.config.data import DataSection
from pcls.data.convert import convert
from pcls.data.dataset import open_source
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources import manifest, remote
from pcls.data.sources.folder import open_folder
from pcls.data.sources.remote import (
    is_url,
    local_file,
    local_folder,
    open_remote_folder,
    open_remote_manifest,
    without_secrets,
)
from pcls.data.sources.targets import LabelSets
from pcls.errors import UserError

PREPROCESSING = Preprocessing(4, 6, 3, (0.0,) * 3, (1.0,) * 3)


def picture(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (level,) * 3).save(stream, "PNG")
    return stream.getvalue()


class StandIn(AbstractFileSystem):
    """A bucket in a dictionary. The next answers can be errors, and reads can be cut to some bytes."""

    protocol = "standin"
    files: ClassVar[dict[str, bytes]] = {}
    calls: ClassVar[list[tuple[str, str]]] = []
    failures: ClassVar[list[Exception]] = []
    cuts: ClassVar[list[int]] = []
    lock = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path):
        return path.split("://", 1)[-1].rpartition("@")[2].partition("?")[0].rstrip("/")

    def _count(self, what, path):
        with self.lock:
            self.calls.append((what, path))
            if self.failures:
                raise self.failures.pop(0)

    def ls(self, path, detail=True, **kwargs):
        path = self._strip_protocol(path)
        self._count("ls", path)
        below = [name[len(path) + 1 :] for name in self.files if name.startswith(f"{path}/")]
        if not below and path not in self.files:
            raise FileNotFoundError(path)
        found = [self._entry(f"{path}/{name}") for name in below if "/" not in name]
        folders = sorted({name.partition("/")[0] for name in below if "/" in name})
        return found + [{"name": f"{path}/{name}", "size": 0, "type": "directory"} for name in folders]

    def _entry(self, name):
        return {"name": name, "size": len(self.files[name]), "type": "file", "etag": hash(self.files[name])}

    def info(self, path, **kwargs):
        path = self._strip_protocol(path)
        self._count("info", path)
        if path in self.files:
            return self._entry(path)
        if any(name.startswith(f"{path}/") for name in self.files):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def _open(self, path, mode="rb", **kwargs):
        self._count("open", path)
        if path not in self.files:
            raise FileNotFoundError(path)
        return io.BytesIO(self.files[path][: self.cuts.pop(0)] if self.cuts else self.files[path])


@pytest.fixture
def bucket(monkeypatch):
    """The stand-in, empty; retries wait for nothing."""
    fsspec.register_implementation("standin", StandIn, clobber=True)
    for name in ("files", "calls", "failures", "cuts"):
        monkeypatch.setattr(StandIn, name, type(getattr(StandIn, name))())
    monkeypatch.setattr(remote, "FIRST_WAIT", 0)
    return StandIn


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PCLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def complaint(call, *args) -> str:
    with pytest.raises(UserError) as raised:
        call(*args)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def half_written(cache) -> list[str]:
    return [file.name for file in cache.rglob("*") if file.suffix != ".lock" and file.is_file()]


def opened(bucket) -> int:
    return sum(what == "open" for what, _ in bucket.calls)


def test_a_file_is_downloaded_once_until_it_changes(bucket, cache):
    bucket.files["b/sub/list.csv"] = b"abc"
    file = local_file("standin://b/sub/list.csv", cache)
    assert file.read_bytes() == b"abc"
    assert file.name.endswith("-list.csv")
    assert local_file("standin://b/sub/list.csv", cache) == file
    assert opened(bucket) == 1
    bucket.files["b/sub/list.csv"] = b"xyz"
    assert local_file("standin://b/sub/list.csv", cache).read_bytes() == b"xyz"


def test_threads_that_ask_at_once_download_it_once(bucket, cache):
    bucket.files["b/large.parquet"] = bytes(1 << 20)
    together = threading.Barrier(4)
    sizes = []

    def ask():
        together.wait()
        sizes.append(local_file("standin://b/large.parquet", cache).stat().st_size)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [1 << 20] * 4
    assert opened(bucket) == 1


def test_what_fails_now_and_then_is_asked_again(bucket, cache):
    bucket.files["b/x.csv"] = b"whole"
    bucket.failures += [ConnectionError("reset"), RuntimeError("of some library")]
    assert local_file("standin://b/x.csv", cache).read_bytes() == b"whole"
    bucket.files["b/y.csv"] = b"whole"
    bucket.cuts += [0, 4]
    assert local_file("standin://b/y.csv", cache).read_bytes() == b"whole"
    assert opened(bucket) == 4


@pytest.mark.parametrize(
    ("failures", "cuts", "message", "asked"),
    [
        ([ConnectionError("reset by peer")] * 9, [], "cannot be fetched (ConnectionError: reset by peer)", 3),
        ([FileNotFoundError("b/x")], [], "cannot be fetched (No such file or directory)", 1),
        ([PermissionError(13, "Permission denied")], [], "cannot be fetched (Permission denied)", 1),
        ([], [2] * 9, "cannot be fetched (ShortRead: 2 of 5 bytes came)", 5),
    ],
)
def test_what_cannot_be_had_is_told_after_a_few_attempts_and_leaves_nothing(
    bucket, cache, failures, cuts, message, asked
):
    bucket.files["b/x.csv"] = b"whole"
    bucket.failures += failures
    bucket.cuts += cuts
    assert complaint(local_file, "standin://b/x.csv", cache) == f"standin://b/x.csv: {message}"
    assert len(bucket.calls) == asked
    assert half_written(cache) == []


def test_a_folder_is_no_file(bucket, cache):
    bucket.files["b/sub/x.csv"] = b""
    assert complaint(local_file, "standin://b/sub", cache) == "standin://b/sub: is a folder; a file is needed"


def test_a_full_disk_is_told_before_and_while_it_is_written(bucket, cache, monkeypatch):
    bucket.files["b/x.csv"] = b"whole"
    usage = shutil._ntuple_diskusage(10, 7, 3)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: usage)
        assert complaint(local_file, "standin://b/x.csv", cache) == (
            f"{cache}/files: 5 bytes are to be written and 3 are free; "
            "make room there, or set PCLS_CACHE to another folder"
        )
    monkeypatch.setattr(remote, "_check_room", lambda folder, size: None)
    monkeypatch.setattr(remote, "PIECE", 2)

    class FullDisk(io.FileIO):
        def write(self, piece):
            if self.tell() >= 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(piece)

    monkeypatch.setattr("pathlib.Path.open", lambda path, mode: FullDisk(path, mode))
    assert complaint(local_file, "standin://b/x.csv", cache).startswith(
        f"{cache}/files: cannot be written (No space left on device); make room there"
    )
    assert half_written(cache) == []
    assert opened(bucket) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://b/x.csv", "gs://b/x.csv: gs:// needs a package that is not installed; pip install 'pcls[gcs]'"),
        ("s3://k:s@b/x.csv", "s3://b/x.csv: s3:// needs a package that is not installed; pip install 'pcls[s3]'"),
        ("abfs://b/x.csv", "abfs://b/x.csv: abfs:// needs a package that is not installed; Install adlfs to access"),
        ("nosuch://b/x.csv", "nosuch://b/x.csv: cannot be opened (ValueError: Protocol not known: nosuch)"),
    ],
)
def test_a_missing_package_or_protocol_is_named(url, message, cache, monkeypatch):
    for package in ("gcsfs", "s3fs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    assert complaint(local_file, url, cache).startswith(message)


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("s3://KEY:SEC/RE+T@bucket/x.csv", "s3://bucket/x.csv"),
        ("https://me:pw@host:80/a?X-Sig=abc&b=1 failed", "https://host:80/a failed"),
        ("Forbidden, url='https://host/a?sig=abc'", "Forbidden, url='https://host/a"),
        ("zip://a.csv::s3://key:secret@b/c.zip?token=1", "zip://a.csv::s3://b/c.zip"),
        ("gs://bucket/me@home.jpg", "gs://bucket/me@home.jpg"),
        # A port looks like the start of a secret that holds a slash: rather too little is shown.
        ("https://host:8080/me@home.jpg", "https://home.jpg"),
        ("gs://b/a\nb.jpg", "gs://b/a\\nb.jpg"),
        ("/data/cat?.jpg", "/data/cat?.jpg"),
    ],
)
def test_secrets_are_never_shown(text, bare):
    assert without_secrets(text) == bare


def test_no_complaint_shows_a_secret(bucket, cache):
    url = "standin://me:secret@b/x.csv?sig=secret"
    bucket.failures += [FileNotFoundError(url)]
    assert complaint(local_file, url, cache) == "standin://b/x.csv: cannot be fetched (No such file or directory)"
    bucket.failures += [OSError(f"GET {url} failed")] * 3
    assert complaint(local_file, url, cache) == (
        "standin://b/x.csv: cannot be fetched (OSError: GET standin://b/x.csv failed)"
    )
    bucket.files["b/x.csv"] = b"path,label\n"
    assert complaint(open_remote_manifest, url, cache).startswith("standin://b/x.csv: holds no rows")
    assert not [file for file in cache.rglob("*") if "secret" in file.name]


def test_urls_are_told_from_paths():
    assert [is_url(text) for text in ("gs://b", "memory://x", "/data/x", "folder", "C:\\x")] == [True, True] + [
        False
    ] * 3


CLASSES = {"b/set/cat/1.png": 1, "b/set/cat/sub/2[a]*.PNG": 2, "b/set/dog/1.jpg": 3}


def fill(bucket, files):
    bucket.files.update(
        {name: picture(content) if isinstance(content, int) else content for name, content in files.items()}
    )


def test_a_remote_folder_is_listed_once_and_its_images_are_fetched_once(bucket, cache):
    fill(
        bucket,
        CLASSES | {"b/set/cat/notes.txt": b"", "b/set/cat/.x.png": 1, "b/set/.git/1.png": 1, "b/set/readme": b""},
    )
    source, evaluation = open_remote_folder("standin://b/set/", cache)
    assert (source.class_names, source.labels.tolist(), evaluation) == (("cat", "dog"), [0, 0, 1], None)
    assert opened(bucket) == 0
    for _ in range(2):
        read = source.read(np.array([2, 0, 1, 0]), PREPROCESSING, None)
        assert read.images[:, 0, 0, 0].tolist() == [3, 1, 2, 1]
        assert opened(bucket) == 3
    assert source.name(1) == "standin://b/set/cat/sub/2[a]*.PNG"
    bucket.calls.clear()
    again, _ = open_remote_folder("standin://b/set", cache)
    assert again.read(np.arange(3), PREPROCESSING, None).images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert bucket.calls == []


def test_parts_of_a_remote_folder_are_those_of_a_local_one(bucket, cache):
    fill(bucket, {f"b/{part}/{name}/1.png": 1 for part in ("test", "train", "val") for name in ("cat", "dog")})
    train, evaluation = open_remote_folder("standin://b", cache)
    assert (train.name(1), evaluation.name(1)) == ("standin://b/train/dog/1.png", "standin://b/val/dog/1.png")
    assert train.class_names == evaluation.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"b/x/1.png": 1}, ": cannot be fetched (No such file or directory)"),
        ({"b/set/1.png": 1}, ": no .jpg, .jpeg, .png, .webp files in folders below it; one folder a class is needed"),
        ({"b/set/cat/1.png": 1}, ": only one class, 'cat'; a classifier needs two or more class folders"),
        ({**CLASSES, "b/set/emu/x.txt": b""}, ": no images in the class folder 'emu'; fill or remove it"),
        (
            {f"b/set/{name}.png": 1 for name in ("train/a/1", "train/b/1", "val/a/1", "val/c/1")},
            ": only train has 'b', only val has 'c'; both need the same classes: rename",
        ),
        ({"b/set/train/a/1.png": 1, "b/set/train/b/x": b""}, "/train: no images in the class folder 'b'; fill or"),
    ],
)
def test_a_remote_folder_that_cannot_be_learned_from_is_refused_and_no_list_is_kept(bucket, cache, files, message):
    fill(bucket, files)
    assert complaint(open_remote_folder, "standin://b/set", cache).startswith(f"standin://b/set{message}")
    assert half_written(cache) == []


def test_images_that_cannot_be_had_are_unreadable_and_the_rest_is_read(bucket, cache):
    fill(bucket, CLASSES)
    source, _ = open_remote_folder("standin://b/set", cache)
    del bucket.files["b/set/dog/1.jpg"]
    bucket.failures += [ConnectionError("reset")]
    bucket.cuts += [10]
    assert source.read(np.arange(3), PREPROCESSING, None).decoded.tolist() == [True, True, False]
    assert source.failure(2, PREPROCESSING) == "cannot be read (No such file or directory)"
    bucket.files["b/set/dog/1.jpg"] = b"short"
    size = len(picture(3))
    assert source.failure(2, PREPROCESSING) == f"cannot be read (ShortRead: 5 of {size} bytes came)"
    fill(bucket, CLASSES)
    assert source.read(np.array([2]), PREPROCESSING, None).decoded.all()


def test_a_spoilt_image_in_the_cache_is_fetched_again(bucket, cache):
    fill(bucket, CLASSES)
    source, _ = open_remote_folder("standin://b/set", cache)
    source.read(np.arange(3), PREPROCESSING, None)
    for file in (cache / "images").rglob("*"):
        if file.is_file():
            file.write_bytes(b"spoilt")
    assert source.read(np.arange(3), PREPROCESSING, None).decoded.all()


def test_images_are_read_on_while_the_cache_takes_none(bucket, cache):
    fill(bucket, CLASSES)
    source, _ = open_remote_folder("standin://b/set", cache)
    (cache / "images").write_text("a file in the way")
    with pytest.warns(UserWarning, match=r"cannot be written \(Not a directory\).*; images are fetched in every epoch"):
        assert source.read(np.arange(3), PREPROCESSING, None).decoded.all()


def test_a_manifest_and_its_images_are_read_by_url(bucket, cache, monkeypatch):
    monkeypatch.setattr(manifest, "MAPPED_FROM", 0)
    rows = "path,label,split,group\ncat/1.png,cat,train,a\ndog/1.jpg,dog,train,b\ncat/sub/2[a]*.PNG,cat,val,c\n"
    fill(bucket, CLASSES | {"b/set/list.csv": rows.encode()})
    train, evaluation = open_remote_manifest("standin://b/set/list.csv", cache)
    assert (train.labels.tolist(), evaluation.labels.tolist(), train.groups.tolist()) == ([0, 1], [0], [0, 1])
    bucket.cuts += [20]
    assert train.read(np.arange(2), PREPROCESSING, None).images[:, 0, 0, 0].tolist() == [1, 3]
    assert evaluation.read(np.arange(1), PREPROCESSING, None).images[:, 0, 0, 0].tolist() == [2]
    fill(bucket, {"b/set/list.csv": b"path,label\n/cat/1.png,cat\n"})
    assert complaint(open_remote_manifest, "standin://b/set/list.csv", cache) == (
        "standin://b/set/list.csv, row 2: path is absolute; paths have to start at the manifest's own folder"
    )


def test_a_manifest_of_several_labels_a_record_is_read_by_url(bucket, cache):
    fill(bucket, CLASSES | {"b/set/list.csv": b"path,label\ncat/1.png,cat;tame\ndog/1.jpg,\n"})
    source, _ = open_remote_manifest("standin://b/set/list.csv", cache, LabelSets())
    assert (source.class_names, source.targets.tolist()) == (("cat", "tame"), [[1, 1], [0, 0]])
    read = source.read(np.array([1, 0]), PREPROCESSING, None)
    assert (read.labels.tolist(), read.images[:, 0, 0, 0].tolist()) == ([[0, 0], [1, 1]], [3, 1])


def test_a_store_is_the_same_in_another_process_and_asks_a_file_system_of_its_own(bucket, cache, monkeypatch):
    fill(bucket, CLASSES)
    source, _ = open_remote_folder("standin://b/set", cache)
    there = copy.deepcopy(source)
    made = remote._file_system_of.cache_info().misses
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert there.read(np.arange(3), PREPROCESSING, None).decoded.all()
    assert remote._file_system_of.cache_info().misses == made + 1


def test_fsspec_in_memory_is_read(cache, monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    memory = fsspec.filesystem("memory")
    for name, level in {"set/cat/1.png": 1, "set/dog/ü 猫.png": 2}.items():
        memory.pipe_file(f"/{name}", picture(level))
    source, _ = open_remote_folder("memory://set", cache)
    assert source.read(np.arange(2), PREPROCESSING, None).images[:, 0, 0, 0].tolist() == [1, 2]
    assert source.name(1) == "memory://set/dog/ü 猫.png"


# Sets of large files


def uploaded(bucket, folder, name: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            bucket.files[f"b/{name}/{file.relative_to(folder)}"] = file.read_bytes()


@pytest.fixture
def converted(tmp_path, write_images):
    """A small set of ArrayRecord shards."""
    source, _ = open_folder(
        write_images({f"pictures/{name}/{i}.png": 10 * i for name in "ab" for i in (1, 2)}) / "pictures"
    )
    convert(source, None, tmp_path / "set", description="pictures")
    return tmp_path / "set"


def test_shards_are_fetched_once_and_read_like_local_ones(bucket, cache, converted):
    uploaded(bucket, converted, "set")
    section = DataSection(source="arrayrecord", path="standin://b/set", cache=str(cache))
    train, _ = open_source(section)
    local, _ = open_source(DataSection(source="arrayrecord", path=str(converted)))
    assert train.__getitems__(range(4)) == local.__getitems__(range(4))
    before = opened(bucket)
    open_source(section)
    assert opened(bucket) == before
    assert not [name for name in half_written(cache) if name.endswith(".part")]


def test_a_changed_file_makes_another_folder(bucket, cache):
    bucket.files |= {"b/set/a.npy": b"1", "b/set/sub/b.npy": b"2", "b/set/c.png": b"3"}
    first = local_folder("standin://b/set/", cache, (".npy",))
    assert sorted(file.relative_to(first).as_posix() for file in first.rglob("*.*")) == ["a.npy", "sub/b.npy"]
    bucket.files["b/set/a.npy"] = b"11"
    second = local_folder("standin://b/set", cache, (".npy",))
    assert second != first
    assert ((first / "a.npy").read_bytes(), (second / "a.npy").read_bytes()) == (b"1", b"11")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"b/set/a.png": b""}, "standin://b/set: holds no files that end in .tar"),
        ({"b/set/x/../../a.tar": b"1"}, "standin://b/set: 'x/../../a.tar' leads out of the folder; rename it"),
        ({}, "standin://b/set: holds no files that end in .tar"),
    ],
)
def test_a_remote_folder_without_fit_files_is_refused(bucket, cache, files, message):
    bucket.files |= files
    assert complaint(local_folder, "standin://b/set", cache, (".tar",)).startswith(message)


def test_tfds_takes_no_url():
    assert complaint(open_source, DataSection(source="tfds:mnist", path="gs://b/x")) == (
        "data.path is a URL, and tfds:mnist takes none: copy it to this machine"
    )


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("s3://KEY:12/abcSECRET@bucket/x", "s3://bucket/x"),
        ("https://host/x#token=SECRET", "https://host/x"),
        ("https://host/x?sig=SECRET#y", "https://host/x"),
        ("https://host:8080/x", "https://host:8080/x"),
    ],
)
def test_no_secret_stands_in_a_url_that_is_shown(url, bare):
    assert without_secrets(url) == bare


def test_a_remote_image_that_is_too_large_is_not_fetched(bucket, cache, monkeypatch):
    monkeypatch.setattr(remote, "MAX_FILE_BYTES", 100)
    bucket.files |= {"b/cat/1.png": picture(1) + b"x" * 200, "b/dog/1.png": b"x" * 50}
    train, _ = open_remote_folder("standin://b", cache)
    image = train.__getitems__([0])[0].image
    assert image.reason.endswith("bytes, more than 100")
