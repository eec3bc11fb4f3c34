"""Conversions: what they write, that they can be cut off anywhere, and what they refuse."""

import fcntl
import json
import subprocess
import sys
import textwrap
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from pcls.data.convert import convert
from pcls.data.preprocessing import Preprocessing
from pcls.data.shards import write_shard
from pcls.data.sources.arrayrecord import Reencoding, open_arrayrecord
from pcls.data.sources.arrays import ArraySource
from pcls.data.sources.folder import open_folder
from pcls.data.sources.source import ImageSource
from pcls.errors import UserError


def contents(folder):
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def complaint(*arguments, **options):
    with pytest.raises(UserError) as raised:
        convert(*arguments, description="photos", **options)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


@pytest.fixture
def photos(tmp_path):
    """A folder of 2 classes with 30 PNG files of noise, no two alike."""
    rng = np.random.default_rng(0)
    for number in range(30):
        path = tmp_path / "photos" / ("cat" if number < 18 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def source(photos):
    return open_folder(photos)[0]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "converted"


def test_shards_hold_the_files_in_their_order_and_nothing_is_left_beside_them(source, out):
    made = convert(source, None, out, description="photos", shards=4)
    assert [(shard.file, shard.records) for shard in made.splits["train"].shards] == [
        ("train-00000-of-00004.array_record", 7),
        ("train-00001-of-00004.array_record", 8),
        ("train-00002-of-00004.array_record", 7),
        ("train-00003-of-00004.array_record", 8),
    ]
    assert sorted(contents(out)) == [
        "dataset.json",
        *(shard.file for shard in made.splits["train"].shards),
        "train-labels.npy",
    ]
    converted, evaluation = open_arrayrecord(out)
    assert converted.__getitems__(range(30)) == source.__getitems__(range(30))
    assert evaluation is None


def test_the_description_says_what_the_set_is(source, out):
    convert(source, None, out, description="my photos", licence="CC BY 4.0")
    said = json.loads((out / "dataset.json").read_text())
    assert (said["format"], said["source"], said["licence"], said["images"]) == (
        1,
        "my photos",
        "CC BY 4.0",
        "unchanged",
    )
    assert said["classes"] == ["cat", "dog"]
    assert said["splits"]["train"]["records"] == 30


def test_groups_and_an_evaluation_split_come_along(source, out):
    groups = np.arange(30) // 4
    train = ImageSource(source.store, source.class_names, source.labels, groups)
    evaluation = ImageSource(source.store, source.class_names, source.labels)
    made = convert(train, evaluation, out, description="photos", shards=3)
    assert [len(split.shards) for split in made.splits.values()] == [3, 3]
    converted, converted_evaluation = open_arrayrecord(out)
    assert converted.groups.tolist() == groups.tolist()
    assert converted_evaluation.groups is None
    assert len(converted_evaluation) == 30


def test_pixels_in_memory_become_files_that_decode_to_them(out):
    pixels = np.random.default_rng(0).integers(256, size=(10, 8, 6, 1), dtype=np.uint8)
    convert(ArraySource(pixels, np.arange(10) % 2, ("a", "b"), "pixels"), None, out, description="pixels")
    converted, _ = open_arrayrecord(out)
    read = converted.read(np.arange(10), Preprocessing(8, 6, 1, (0.0,), (1.0,)), None)
    assert np.array_equal(read.images, pixels)


def test_shards_are_of_about_the_wanted_size_when_no_number_is_asked_for(source, out, monkeypatch):
    # 30 files of 1.5 KB.
    monkeypatch.setattr("pcls.data.convert.SHARD_BYTES", 10_000)
    assert len(convert(source, None, out, description="photos").splits["train"].shards) == 5


@pytest.mark.parametrize("workers", [1, 3])
def test_the_bytes_do_not_depend_on_the_number_of_workers(source, out, tmp_path, workers):
    convert(source, None, out, description="photos", shards=5, workers=workers)
    convert(source, None, tmp_path / "two", description="photos", shards=5, workers=2)
    assert contents(out) == contents(tmp_path / "two")


def test_reencoding_makes_large_images_smaller_and_is_written_down(source, out):
    made = convert(source, None, out, description="photos", reencoding=Reencoding(longest_side=12, quality=90))
    assert made.images == Reencoding(longest_side=12, quality=90)
    converted, _ = open_arrayrecord(out)
    (image, label), *_ = converted.__getitems__([29])
    assert (image[:3], label) == (b"\xff\xd8\xff", 1)


# Converts in children that share one start-up, kills each at a random moment, and lets the last of a set finish.
KILLER = """
    import os, random, signal, sys, time
    from pathlib import Path
    import numpy as np
    from pcls.data.convert import convert
    from pcls.data.sources.arrays import ArraySource

    pixels = np.random.default_rng(0).integers(256, size=(400, 16, 16, 1), dtype=np.uint8)
    source, out = ArraySource(pixels, np.arange(400) % 2, ("a", "b"), "pixels"), Path(sys.argv[1])

    def begin(name):
        if child := os.fork():
            return child
        convert(source, None, out / name, description="pixels", shards=20, workers=2)
        os._exit(0)

    start = time.perf_counter()
    os.waitpid(begin("whole"), 0)
    seconds, moments, cut_off = time.perf_counter() - start, random.Random(0), 0
    for name in "abcdefgh":
        for latest in (1.0, 0.6):
            child = begin(name)
            time.sleep(seconds * moments.uniform(0.1, latest))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            notes = list((out / name / ".convert").glob("train*.json"))
            cut_off += 0 < len(notes) < 20
        os.waitpid(begin(name), 0)
    print(cut_off)
"""


@pytest.mark.faults
def test_a_conversion_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path):
    program = [sys.executable, "-c", textwrap.dedent(KILLER), str(tmp_path)]
    done = subprocess.run(program, check=True, capture_output=True, text=True, timeout=60)
    # The others were killed before a first shard, or too late.
    assert int(done.stdout) >= 1, done.stderr
    whole = contents(tmp_path / "whole")
    assert len(whole) == 22
    for name in "abcdefgh":
        assert contents(tmp_path / name) == whole


def test_a_conversion_that_is_interrupted_keeps_its_shards_and_goes_on(source, out, tmp_path):
    counted = []

    def interrupt(records):
        counted.append(records)
        if sum(counted) > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, None, out, description="photos", shards=10, workers=1, advance=interrupt)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
    assert len(kept) == 4
    with pytest.raises(UserError, match="its conversion is not finished; run the same"):
        open_arrayrecord(out)
    counted.clear()
    convert(source, None, out, description="photos", workers=1, advance=counted.append)
    # What was there already is counted in one go.
    assert (counted[0], sum(counted)) == (12, 30)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    convert(source, None, tmp_path / "whole", description="photos", shards=10)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_set_is_left_as_it_is(source, out):
    made = convert(source, None, out, description="photos", shards=2)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / ".convert").mkdir()  # As if it had been killed just before it removed this.
    assert convert(source, None, out, description="photos") == made
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def renamed(source):
    return ImageSource(source.store, ("cat", "wolf"), source.labels)


ASK = "; ask for the same, or name another folder"
OTHERS = [
    ({"description": "others"}, "source 'photos', and this one has 'others'"),
    ({"licence": "MIT"}, "licence '', and this one has 'MIT'"),
    ({"shards": 4}, "train shards 3, and this one has 4"),
    (
        {"reencoding": Reencoding(longest_side=99, quality=80)},
        "images unchanged, and this one has of up to 99 pixels, quality 80",
    ),
]


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "cut off"])
@pytest.mark.parametrize(("options", "message"), OTHERS, ids=[next(iter(options)) for options, _ in OTHERS])
def test_a_set_that_was_begun_otherwise_is_not_continued(source, out, finished, options, message):
    begun_with(source, out, finished)
    asked = {"description": "photos", "shards": 3} | options
    with pytest.raises(UserError) as raised:
        convert(source, None, out, **asked)
    assert str(raised.value) == f"{out}: holds a conversion with {message}{ASK}"


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "cut off"])
def test_a_set_that_was_begun_from_another_source_is_not_continued(source, photos, out, finished):
    begun_with(source, out, finished)
    holds = f"{out}: holds a conversion with "
    found = complaint(renamed(source), None, out)
    assert found.startswith(f"{holds}class names of digest ") and found.endswith(ASK)
    assert complaint(source, source, out) == f"{holds}evaluation records none, and this one has 30{ASK}"
    (photos / "cat" / "00.png").rename(photos / "cat" / "zz.png")
    assert complaint(open_folder(photos)[0], None, out).startswith(f"{holds}train record names of digest ")
    (photos / "cat" / "zz.png").unlink()
    found = complaint(open_folder(photos)[0], None, out)
    assert found == f"{holds}train records 30, and this one has 29{ASK}"


def begun_with(source, out, finished):
    def nothing(tasks):
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        convert(source, None, out, description="photos", shards=3, runner=None if finished else nothing)


def test_images_that_cannot_be_decoded_are_named_and_all_else_is_kept(photos, out, tmp_path):
    good = (photos / "dog" / "20.png").read_bytes()
    (photos / "dog" / "20.png").write_bytes(b"<html>")
    (photos / "cat" / "03.png").write_bytes(b"")
    source, said = open_folder(photos)[0], []
    options = {"shards": 5, "reencoding": Reencoding(longest_side=12, quality=90)}
    found = complaint(source, None, out, **options, say=said.append)
    empty = f"{photos}/cat/03.png cannot be decoded (the file is empty)"
    assert said == [empty, f"{photos}/dog/20.png cannot be decoded (not a JPEG, PNG or WebP image, 6 bytes)"]
    assert found == (
        f"{empty}; 2 of 30 images cannot be converted: repair them, or leave them out by --skip-undecodable; "
        "3 of 5 shards are kept"
    )
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
    assert len(kept) == 3
    # Repaired, the same command goes on.
    for name in ("dog/20.png", "cat/03.png"):
        (photos / name).write_bytes(good)
    convert(source, None, out, description="photos", **options)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    convert(source, None, tmp_path / "whole", description="photos", **options)
    assert contents(out) == contents(tmp_path / "whole")


def test_images_that_cannot_be_decoded_can_be_left_out(photos, out):
    (photos / "dog" / "20.png").write_bytes(b"<html>")
    whole = open_folder(photos)[0]
    source = ImageSource(whole.store, whole.class_names, whole.labels, np.arange(30))
    options = {"shards": 5, "reencoding": Reencoding(longest_side=99, quality=90)}
    complaint(source, None, out, **options)
    said = []
    made = convert(source, None, out, description="photos", **options, skip_undecodable=True, say=said.append)
    assert said == [f"{photos}/dog/20.png cannot be decoded (not a JPEG, PNG or WebP image, 6 bytes)"]
    assert [(bad.record, bad.name) for bad in made.splits["train"].left_out] == [(20, f"{photos}/dog/20.png")]
    converted, _ = open_arrayrecord(out)
    assert len(converted) == made.splits["train"].records == 29
    assert converted.labels.tolist() == [0] * 18 + [1] * 11
    assert converted.groups.tolist() == [*range(20), *range(21, 30)]
    assert [label for _, label in converted.__getitems__(range(29))] == converted.labels.tolist()


def test_shards_with_images_left_out_are_not_taken_over_by_a_call_that_leaves_none_out(photos, out):
    (photos / "dog" / "20.png").write_bytes(b"<html>")
    source = open_folder(photos)[0]
    options = {"shards": 15, "workers": 1, "reencoding": Reencoding(longest_side=99, quality=90)}

    def interrupt(records):
        if (out / "train-00012-of-00015.array_record").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, None, out, description="photos", **options, skip_undecodable=True, advance=interrupt)
    assert "1 of 30 images cannot be converted" in complaint(source, None, out, **options)


@pytest.mark.faults
def test_a_file_that_goes_away_meanwhile_is_named_without_reencoding_too(source, photos, out):
    (photos / "cat" / "05.png").unlink()
    found = complaint(source, None, out)
    assert found.startswith(f"{photos}/cat/05.png cannot be read (No such file or directory); 1 of 30 images")


@pytest.mark.faults
def test_a_full_disk_is_told_in_a_line_and_the_same_command_goes_on(source, small_disk, tmp_path, monkeypatch):
    monkeypatch.setattr("pcls.data.convert._check_space", lambda out, needed: None)
    ballast = small_disk / "ballast"
    # Each shard takes 128 KiB.
    ballast.write_bytes(bytes(400 << 10))
    found = complaint(source, None, small_disk / "set", shards=3, workers=1)
    assert found == (
        f"{small_disk}/set/train-00002-of-00003.array_record: cannot be written (No space left on device); "
        "make room and run the same command again: it goes on"
    )
    ballast.unlink()
    convert(source, None, small_disk / "set", description="photos", shards=3)
    convert(source, None, tmp_path / "whole", description="photos", shards=3)
    assert contents(small_disk / "set") == contents(tmp_path / "whole")


@pytest.mark.faults
def test_a_disk_that_is_too_small_is_told_before_anything_is_written(source, small_disk):
    (small_disk / "ballast").write_bytes(bytes(600 << 10))
    assert complaint(source, None, small_disk / "set") == (
        f"{small_disk}/set: about 0.2 MB are needed, and its disk has 0.1 MB free; "
        "make room and run the same command again, or name another folder"
    )


def test_two_conversions_do_not_write_into_one_folder(source, out):
    (out / ".convert").mkdir(parents=True)
    with (out / ".convert" / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = complaint(source, None, out)
    assert found == f"{out}: another `pcls data convert` is writing there; wait for it, or stop it"


def test_a_folder_of_other_things_is_left_alone(source, out, photos):
    elsewhere = "is there already and holds no conversion; name a new folder"
    assert complaint(source, None, photos) == f"{photos}: {elsewhere}"
    out.write_text("a file")
    assert complaint(source, None, out) == f"{out}: {elsewhere}"
    assert out.read_text() == "a file"


def test_an_empty_folder_is_taken(source, out):
    out.mkdir()
    assert convert(source, None, out, description="photos").splits["train"].records == 30


def test_a_folder_that_cannot_be_made_is_told_in_a_line(source, tmp_path):
    (tmp_path / "file").write_text("")
    found = complaint(source, None, tmp_path / "file" / "set")
    assert found.startswith(f"{tmp_path}/file/set: cannot be written (Not a directory)")


def test_more_shards_than_records_are_refused(source, out):
    assert complaint(source, None, out, shards=31) == ("shards is 31; with 30 training records 1 to 30 can be")
    assert not out.exists()


def test_splits_of_different_classes_are_refused(source, out):
    other = ImageSource(source.store, ("cat", "dog", "wolf"), source.labels)
    assert complaint(source, other, out) == (
        "training and evaluation records differ in the class 'wolf'; both need the same"
    )
    other = ImageSource(source.store, ("dog", "cat"), source.labels)
    assert complaint(source, other, out) == (
        "training and evaluation records have their classes in different orders; both need one"
    )


def test_a_class_name_that_is_no_text_is_refused(source, out):
    other = ImageSource(source.store, ("cat", "\udcff"), source.labels)
    assert complaint(other, None, out) == "the class '\\udcff' has a name that is no valid UTF-8; rename it"


def test_a_damaged_note_only_costs_its_shard(source, out, tmp_path):
    written = []

    def first_two(tasks):
        for task in tasks[:2]:
            write_shard(source, task, written.append)

    assert "2 of 3 shards are finished; run the same" in complaint(source, None, out, shards=3, runner=first_two)
    (out / ".convert" / "train-00001-of-00003.array_record.json").write_text('{"shard"')
    counted = []
    convert(source, None, out, description="photos", shards=3, advance=counted.append)
    assert counted[0] == 10
    convert(source, None, tmp_path / "whole", description="photos", shards=3)
    assert contents(out) == contents(tmp_path / "whole")
