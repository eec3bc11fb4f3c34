"""`pcls predict`: what it takes, what it writes, and what it says of what it cannot read."""

import csv
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pcls
from pcls.cli import main
from pcls.deliver.files import named_files


@pytest.fixture(scope="module")
def bundle(finished_run):
    return finished_run / "bundle"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of three digits at different depths, with files beside them that do not count."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("b/2.png", "a.png", "b/c/3.jpg", "b/.hidden/4.png", ".5.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (10, 10), np.uint8)).save(root / name)
    (root / "notes.txt").write_text("none")
    return root


@pytest.fixture
def said(capsys, monkeypatch):
    """A function that runs `pcls predict` and returns its exit code, its output and its error lines."""

    def run(*argv, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(["predict", *map(str, argv)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run


def paths_of(text):
    return [json.loads(line)["path"] for line in text.splitlines()]


def test_a_folder_stands_for_what_is_below_it_in_order(bundle, photos, said):
    code, text, errors = said(bundle, photos, "--format", "jsonl")
    assert (code, errors) == (0, [])
    assert paths_of(text) == [f"{photos}/a.png", f"{photos}/b/2.png", f"{photos}/b/c/3.jpg"]


def test_patterns_standard_input_and_files_are_taken_in_the_order_that_they_are_named_in(bundle, photos, said):
    listed = f"{photos}/b/c/3.jpg\r\n\n{photos}/a.png\n".encode()
    argv = [bundle, f"{photos}/**/*.png", "-", photos / "a.png", "--format", "jsonl"]
    code, text, _ = said(*argv, stdin=listed)
    assert code == 0
    names = ["a.png", "b/2.png", "b/c/3.jpg", "a.png", "a.png"]
    assert paths_of(text) == [f"{photos}/{name}" for name in names]


def test_a_file_that_two_stars_match_twice_counts_once(photos):
    found = named_files([f"{photos}/**"], (".png", ".jpg"), io.BytesIO())
    assert sorted(found) == sorted(f"{photos}/{name}" for name in ("a.png", "b/2.png", "b/c/3.jpg", "notes.txt"))


def test_a_name_with_wildcards_in_it_is_a_file_where_there_is_one(tmp_path):
    (tmp_path / "[1].png").touch()
    assert named_files([f"{tmp_path}/[1].png"], (".png",), io.BytesIO()) == [f"{tmp_path}/[1].png"]


@pytest.fixture(scope="module")
def expected(bundle, photos):
    return pcls.load(bundle).predict([photos / "a.png", photos / "b/2.png"])


def ranked(answer):
    """Class numbers and probabilities, the most probable first."""
    return sorted(enumerate(answer.probabilities), key=lambda pair: -pair[1])


def test_the_most_probable_classes_are_told_in_every_format(bundle, photos, expected, said, tmp_path):
    files = [photos / "a.png", tmp_path / "none.png", photos / "b" / "2.png"]
    argv = [bundle, *files, "--top", "3", "--format"]
    outputs = {form: said(*argv, form) for form in ("table", "csv", "jsonl")}
    outputs["parquet"] = said(*argv, "parquet", "--out", tmp_path / "answers.parquet")
    for form, (code, _, errors) in outputs.items():
        assert (code, errors[-1]) == (2, "pcls: 1 of 3 files could not be read")
        # In its place where people read the answers; beside a file too.
        assert errors[:-1] == (
            []
            if form != "parquet"
            else [
                f"written: {tmp_path}/answers.parquet, answers for 2 of 3 files",
                f"{files[1]}: cannot be read: No such file or directory",
            ]
        )
    first = ranked(expected[0])[:3]

    lines = outputs["table"][1].splitlines()
    assert lines[0].split() == [str(files[0]), *(word for n, p in first for word in (f"{p:.1%}", str(n)))]
    assert lines[1].split(maxsplit=1) == [str(files[1]), "cannot be read: No such file or directory"]

    rows = [json.loads(line) for line in outputs["jsonl"][1].splitlines()]
    assert [(one["label"], one["probability"]) for one in rows[0]["top"]] == [(str(n), p) for n, p in first]
    assert (rows[1]["label"], rows[1]["probability"], rows[1]["top"]) == (None, None, [])

    header, *cells = csv.reader(io.StringIO(outputs["csv"][1]))
    assert header == ["path", "label", "probability", "label_2", "probability_2", "label_3", "probability_3", "error"]
    assert cells[0] == [str(files[0]), *(str(value) for pair in first for value in pair), ""]
    assert cells[1] == [str(files[1]), "", "", "", "", "", "", "No such file or directory"]
    assert cells[2][1] == expected[1].label

    table = pq.read_table(tmp_path / "answers.parquet")
    assert table.column_names == header
    assert table.column("probability").to_pylist() == [first[0][1], None, expected[1].probability]
    assert table.column("error").to_pylist() == ["", "No such file or directory", ""]


def test_the_name_of_the_file_tells_the_format(bundle, photos, said, tmp_path):
    for name, start in (("a.csv", "path,label,"), ("a.jsonl", '{"path": '), ("a.txt", f"{photos}/a.png  ")):
        code, text, errors = said(bundle, photos / "a.png", "--out", tmp_path / name)
        assert (code, text, errors) == (0, "", [f"written: {tmp_path}/{name}, answers for 1 of 1 files"])
        assert (tmp_path / name).read_text().startswith(start)


def test_a_dash_is_standard_output(bundle, photos, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [bundle, photos / "a.png", "--format", "csv"]
    assert said(*argv, "--out", "-") == said(*argv)
    assert not (tmp_path / "-").exists()


def test_more_classes_than_there_are_means_all_and_many_unreadable_files_are_named_in_part(
    bundle, photos, said, tmp_path
):
    code, text, _ = said(bundle, photos / "a.png", "--top", "11", "--format", "jsonl")
    assert (code, len(json.loads(text)["top"])) == (0, 10)
    code, _, errors = said(bundle, *[tmp_path / f"{n}.png" for n in range(7)], "--out", tmp_path / "a.csv")
    assert (code, len(errors)) == (2, 8)
    assert errors[1].startswith(f"{tmp_path}/0.png: cannot be read")
    assert errors[-2:] == ["... and 2 more", "pcls: 7 of 7 files could not be read"]


def test_nothing_half_written_is_left_and_the_old_file_stays(bundle, photos, said, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a.csv", "a.parquet", "a.jsonl"):
        (out / name).write_text("old")

        def interrupted(self, images):
            yield from self.predict(photos / "a.png")
            assert len(list(out.iterdir())) == 2
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("pcls.deliver.classifier.Classifier.stream", interrupted)
            patch.setattr("pcls.deliver.classifier.Classifier.predict", lambda self, one: [])
            code, *_ = said(bundle, photos, "--out", out / name)
        assert code == 130
        assert [path.name for path in out.iterdir()] == [name]
        assert (out / name).read_text() == "old"
        (out / name).unlink()


def damaged(folder):
    """A folder of good pictures and of such as cannot be read, each under the words that say why."""
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(folder / "0-good.png")
    (folder / "1-text.png").write_text("hello")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / "2-cut.jpg")
    (folder / "2-cut.jpg").write_bytes((folder / "2-cut.jpg").read_bytes()[:300])
    size = struct.pack(">II5B", 50_000, 50_000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    packed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    (folder / "3-bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    os.mkfifo(folder / "4-pipe.jpg")
    (folder / "5-empty.webp").touch()
    (folder / "6-nowhere.png").symlink_to(folder / "none")
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(folder / "7-good.png")
    return {
        "1-text.png": "not a JPEG, PNG or WebP image, 5 bytes",
        "2-cut.jpg": "truncated after 300 bytes",
        "3-bomb.png": "more than 100,000,000 pixels",
        "4-pipe.jpg": "is no regular file",
        "5-empty.webp": "the file is empty",
        "6-nowhere.png": "No such file or directory",
    }


@pytest.mark.faults
def test_what_cannot_be_read_is_told_in_its_place_beside_the_good_ones(bundle, said, tmp_path):
    reasons = damaged(tmp_path)
    code, text, errors = said(bundle, tmp_path, "--format", "jsonl")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["path"] for row in rows] == sorted(str(path) for path in tmp_path.iterdir())
    assert {row["path"].rpartition("/")[2]: row["error"] for row in rows if row["error"]} == reasons
    assert rows[0]["label"] == rows[-1]["label"] != ""
    assert (code, errors) == (2, ["pcls: 6 of 8 files could not be read"])


REFUSED = {
    "an empty folder": (["empty"], ["empty: no .jpg, .jpeg, .png, .webp files in the folder or below it"]),
    "an empty folder that is called like a picture": (["x.jpg"], ["x.jpg: no .jpg,"]),
    "a pattern that matches nothing": (["*.webp"], ["*.webp: matches no file"]),
    "standard input without a path": (["-"], ["-: standard input names no file", "one path a line"]),
    "no class": (["a.png", "--top", "0"], ["--top 0: 1 or more"]),
    "a suffix that is not written": (["a.png", "--out", "a.xlsx"], ["--out a.xlsx: .xlsx", ".csv, .jsonl"]),
    "a suffix beside another format": (
        ["a.png", "--out", "a.jsonl", "--format", "csv"],
        ["--out a.jsonl: .jsonl is --format jsonl", "csv is asked for"],
    ),
    "Parquet on a terminal": (["a.png", "--format", "parquet"], ["--format parquet", "--out FILE.parquet"]),
    "a missing folder": (["a.png", "--out", "none/a.csv"], ["--out none/a.csv: there is no folder none"]),
    "a folder as the file": (["a.png", "--out", "empty"], ["--out empty: is there already, and is no file"]),
    "a device as the file": (["a.png", "--out", "/dev/null"], ["--out /dev/null: is there already, and is no file"]),
    "a file as the folder": (["a.png", "--explain", "a.png"], ["--explain a.png: is no folder"]),
    "a file below a file": (["a.png", "--explain", "a.png/x"], ["--explain a.png/x: cannot be made"]),
}


@pytest.mark.faults
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_in_one_line(case, bundle, photos, said, tmp_path, monkeypatch):
    arguments, words = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "x.jpg"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a.png").write_bytes((photos / "a.png").read_bytes())
    code, text, errors = said(bundle, *arguments)
    assert (code, text, len(errors)) == (2, "", 1)
    assert all(word in errors[0] for word in words), errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "empty", "x.jpg"]


def test_pictures_of_another_time_are_not_mixed_with_new_ones(bundle, photos, said, tmp_path):
    (tmp_path / "000000-a.png").write_bytes(b"")
    code, text, errors = said(bundle, photos, "--explain", tmp_path)
    assert (code, text) == (2, "")
    assert errors == [f"pcls: --explain {tmp_path}: holds files already; name an empty folder, or a new one"]


def test_whoever_is_interrupted_is_told_so(bundle, photos, said, monkeypatch):
    def interrupted(self, images):
        raise KeyboardInterrupt

    monkeypatch.setattr("pcls.deliver.classifier.Classifier.stream", interrupted)
    assert said(bundle, photos) == (130, "", ["pcls: interrupted"])


def test_a_reader_that_has_enough_is_no_fault():
    """`pcls models search | head -1`, whose reader is gone before all is written."""
    command = [sys.executable, "-c", "import sys; from pcls.cli import main; sys.exit(main(['models', 'search']))"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


@pytest.mark.faults
def test_an_unreadable_folder_and_file_are_told(bundle, photos, said, monkeypatch):
    """As root, who reads everything, too."""

    def refused(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", refused)
        code, _, errors = said(bundle, photos)
        assert (code, errors) == (2, [f"pcls: {photos}: cannot be listed (Permission denied)"])
    monkeypatch.setattr("pcls.deliver.inputs.read_file", lambda path, within: refused(path))
    code, text, _ = said(bundle, photos / "a.png", "--format", "jsonl")
    assert (code, json.loads(text)["error"]) == (2, "Permission denied")


HOSTILE = "a\n\x1b[2Jb\x9b.png"


@pytest.fixture
def hostile(photos, tmp_path):
    """A folder with a file whose name breaks lines and clears screens, and one whose name is no text."""
    (tmp_path / HOSTILE).write_bytes((photos / "a.png").read_bytes())
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes((photos / "a.png").read_bytes())
    return tmp_path


@pytest.mark.faults
def test_a_hostile_name_neither_breaks_a_line_nor_reaches_the_terminal(bundle, hostile, said):
    for form in ("table", "jsonl"):
        code, text, _ = said(bundle, hostile, "--format", form)
        assert code == 0
        assert len(text.splitlines()) == 2
        assert all(line.isprintable() for line in text.splitlines())
    assert paths_of(text)[0] == f"{hostile}/{HOSTILE}"


@pytest.mark.faults
def test_a_hostile_name_is_one_cell(bundle, hostile, said, tmp_path):
    for form in ("csv", "parquet"):
        assert said(bundle, hostile, "--out", tmp_path / f"a.{form}")[0] == 0
    with (tmp_path / "a.csv").open(newline="") as file:
        cells = [row[0] for row in csv.reader(file)]
    assert cells == ["path", f"{hostile}/{HOSTILE}", f"{hostile}/\\udcff.png"]
    assert pq.read_table(tmp_path / "a.parquet").column("path").to_pylist() == cells[1:]


@pytest.mark.faults
def test_no_cell_is_a_formula_to_a_spreadsheet(bundle, photos, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=cmd.png", "@sum.png", "+1+1.png", "-1", "a=b.png"]
    for name in names:
        (tmp_path / name).write_bytes((photos / "a.png").read_bytes())
    code, text, _ = said(bundle, "--format", "csv", "--", *names)
    assert code == 0
    assert [row[0] for row in csv.reader(io.StringIO(text))][1:] == [
        "'=cmd.png",
        "'@sum.png",
        "'+1+1.png",
        "-1",
        "a=b.png",
    ]


def test_explanations_are_pictures_of_the_files_that_could_be_read(bundle, photos, said, tmp_path):
    files = [photos / "a.png", photos / "notes.txt", photos / "b" / "2.png"]
    code, _, errors = said(bundle, *files, "--explain", tmp_path / "why" / "so")
    assert code == 2
    assert errors[0].startswith(f"pictures in {tmp_path}/why/so: blue speaks for the most probable class")
    assert errors[0].endswith("(Integrated gradients from the mean image (Sundararajan et al. 2017))")
    found = sorted((tmp_path / "why" / "so").iterdir())
    assert [path.name for path in found] == ["000000-a.png", "000002-2.png"]
    for path in found:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (220, 220))
            # Coloured: something speaks for the class.
            assert np.ptp(np.asarray(image).astype(int), axis=-1).max() > 50


def test_progress_is_told_on_a_terminal_only(bundle, photos, said, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr("pcls.cli.progress.REDRAW", -1)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.write", told.append, raising=False)
    assert said(bundle, photos, "--out", tmp_path / "a.csv")[0] == 0
    assert "\r3 of 3 files (100%)" in told


def test_a_bundle_elsewhere_is_loaded_without_code_that_trains(bundle, photos, tmp_path):
    shutil.copytree(bundle, tmp_path / "sent")
    program = (
        "import sys, pcls\n"
        f"print(pcls.load({str(tmp_path / 'sent')!r}).predict({str(photos / 'a.png')!r})[0].label)\n"
        "print([name for name in sys.modules if name.split('.')[:2] in "
        "(['pcls', 'run'], ['pcls', 'training'], ['pcls', 'transfer'], ['pcls', 'checkpoint']) "
        "or name.split('.')[0] in ('orbax', 'grain')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == [pcls.load(bundle).predict(photos / "a.png")[0].label, "[]"]
