"""`pcls data convert`: what it prints, and what it refuses before it starts."""

import json

import pytest

from pcls.cli import main


@pytest.fixture
def said(capsys):
    """A function that runs `pcls data convert` and returns its exit code, output lines and error lines."""

    def run(*argv):
        code = main(["data", "convert", *map(str, argv)])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


def test_a_conversion_ends_with_one_line_and_is_verified_by_another(said, tmp_path):
    out = tmp_path / "converted"
    code, lines, errors = said("digits", out, "--shards", 2, "--licence", "BSD")
    assert (code, errors, len(lines)) == (0, [], 1)
    assert lines[0].startswith(f"{out}: 1,797 train records, 2 shards, 0.5 MB; ")
    description = json.loads((out / "dataset.json").read_text())
    assert (description["source"], description["licence"]) == ("digits", "BSD")
    code, lines, errors = said("--verify", out)
    assert (code, errors) == (0, [])
    assert lines == [f"{out}: 1,797 train records, 2 shards, 0.5 MB; all digests agree"]


def test_a_quarantine_list_is_left_out(said, tmp_path):
    (tmp_path / "list").write_text("digits #3\ndigits #4\n")
    code, lines, _ = said("digits", tmp_path / "set", "--quarantine", tmp_path / "list")
    assert code == 0
    assert lines[0].startswith(f"{tmp_path / 'set'}: 1,795 train records")


def test_every_damaged_file_is_told_and_ends_with_2(said, tmp_path):
    out = tmp_path / "converted"
    said("digits", out, "--shards", 3)
    for number in (0, 2):
        (out / f"train-{number:05d}-of-00003.array_record").write_bytes(b"")
    code, lines, errors = said("--verify", out)
    assert (code, lines) == (2, [])
    assert errors == [
        "train-00002-of-00003.array_record: has 0 of 196,608 bytes",
        f"pcls: {out}: 2 of 4 files are damaged; train-00000-of-00003.array_record: has 0 of 196,608 bytes; "
        "copy them again",
    ]


def test_reencoding_is_to_512_pixels_and_quality_90_unless_asked_otherwise(said, tmp_path):
    said("digits", tmp_path / "as-is", "--reencode")
    said("digits", tmp_path / "other", "--reencode", "--longest-side", 6, "--quality", 80)
    found = [json.loads((tmp_path / name / "dataset.json").read_text())["images"] for name in ("as-is", "other")]
    assert found == [{"longest_side": 512, "quality": 90}, {"longest_side": 6, "quality": 80}]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["digits"], "the folder of the new set is missing: pcls data convert SOURCE OUT"),
        (["--verify", "set", "more"], "--verify takes one folder, the converted set; 'more' is one too many"),
        (
            ["--verify", "nowhere"],
            "nowhere: there is no such folder; a folder that `pcls data convert` wrote is needed",
        ),
        (["digits", "out", "--runner", "spark"], "--runner 'spark': one of local, beam is needed"),
        (["digits", "out", "--beam-option=--x=1"], "--beam-option has no effect without --runner beam"),
        (["digits", "out", "--quality", "80"], "--longest-side and --quality have no effect without --reencode"),
        (["digits", "out", "--longest-side", "80"], "--longest-side and --quality have no effect without --reencode"),
        (["digits", "out", "--shards", "600"], "shards is 600; with 1,797 training records 1 to 512 can be"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_written(said, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    assert said(*argv) == (2, [], [f"pcls: {message}"])
    assert list(tmp_path.iterdir()) == []
