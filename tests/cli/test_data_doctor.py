"""`pcls data doctor`, called as the command line calls it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcls.cli.data_doctor import doctor
from pcls.data.quarantine import read_quarantine
from pcls.errors import UserError


@pytest.fixture
def photos(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).resize((64, 64)).save(tmp_path / "photos" / name / f"{number}.png")
    (tmp_path / "photos" / "cat" / "broken.png").write_bytes(b"<html>")
    return tmp_path / "photos"


def test_it_writes_all_that_was_asked_for_and_changes_no_image(photos, tmp_path, capsys):
    before = {file: file.read_bytes() for file in photos.rglob("*.png")}
    files = {name: tmp_path / f"out.{name}" for name in ("json", "html", "txt")}
    doctor(str(photos), None, files["json"], files["html"], files["txt"])
    printed = capsys.readouterr()
    assert printed.out.startswith("images     21 in train\nclasses    2\n")
    assert "Images that cannot be decoded: 1 of 21" in printed.out
    # No terminal, no progress line.
    assert printed.err.splitlines() == [f"wrote {file}" for file in files.values()]
    assert json.loads(files["json"].read_text())["findings"][0]["kind"] == "undecodable"
    assert files["html"].read_text().startswith("<!DOCTYPE html>")
    assert read_quarantine(files["txt"]) == {str(photos / "cat" / "broken.png")}
    assert {file: file.read_bytes() for file in photos.rglob("*.png")} == before


def test_strict_is_an_error_when_something_serious_is_found(photos):
    with pytest.raises(UserError) as raised:
        doctor(str(photos), strict=True)
    assert str(raised.value) == (
        f"{photos}: 1 serious finding, the first: Images that cannot be decoded (1 of 21); --strict forbids it"
    )
    (photos / "cat" / "broken.png").unlink()
    doctor(str(photos), strict=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/out.json", "there is no folder ROOT/no; name a file in a folder that exists"), (".", "is a folder; name")],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(photos, tmp_path, capsys, name, message):
    with pytest.raises(UserError) as raised:
        doctor(str(photos), json_file=tmp_path / name)
    assert message in str(raised.value).replace(str(tmp_path), "ROOT")
    assert capsys.readouterr().out == ""


def test_overrides_choose_the_threads_and_wrong_data_is_refused(photos, capsys):
    doctor(str(photos), ["data.workers=3"])
    assert "images     21 in train" in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no such file or folder"):
        doctor(str(photos / "nowhere"))
