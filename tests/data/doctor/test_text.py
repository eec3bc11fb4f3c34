"""The findings as text, as JSON and as a list of records."""

import json
from dataclasses import replace

import pytest

from pcls.data.doctor.checks import examine
from pcls.data.doctor.survey import Survey
from pcls.data.doctor.text import SHOWN_CASES, as_json, as_quarantine, common_folder, text
from pcls.data.quarantine import read_quarantine

LONG = "a name that goes on and on, as those of downloads do, until nobody reads it any more " * 2


@pytest.fixture
def seen(examined, encoded) -> Survey:
    files = {f"train/{name}/{i}.jpg": 100 * label + i for label, name in enumerate(("cat", "dog")) for i in range(10)}
    files |= {
        f"val/{name}/{i}.jpg": 1000 + 10 * label + i for label, name in enumerate(("cat", "dog")) for i in range(3)
    }
    files |= {f"train/cat/broken{i}.jpg": b"<html>" + bytes(i) for i in range(8)}
    files |= {"val/cat/leak.jpg": 3, f"train/dog/{LONG}.jpg": b"", "train/dog/new\nline.png": encoded(5000, "PNG")[:99]}
    return examined(files | {"train/cat/again.jpg": encoded(5, quality=60)})


def widest(lines: list[str]) -> int:
    """But for the folder's name, which is never cut."""
    return max(len(line) for line in lines if not line.startswith("names"))


def test_the_most_serious_comes_first_and_lines_fit_the_screen(seen):
    lines = text(seen, examine(seen), width=80).splitlines()
    assert widest(lines) <= 80
    assert lines[:4] == [
        "images     31 in train, 7 in evaluation",
        "classes    2",
        "sizes      80 x 60 (median), from 80 x 60 to 80 x 60",
        "formats    JPEG RGB 28",
    ]
    heads = [line for line in lines if line and not line.startswith(" ")][5:]
    assert heads == [
        "SERIOUS",
        "Images that cannot be decoded: 10 of 38",
        "Evaluation images that are in train too, byte for byte: 1 of 7",
        "NOTES",
        "Pictures that are there more than once, or nearly so: 1 (2 images)",
    ]
    assert f"  and {10 - SHOWN_CASES} more" in lines
    assert "  = val/cat/leak.jpg  evaluation, cat, 80 x 60 JPEG" in lines


def test_what_does_not_fit_a_line_takes_two_and_the_start_of_a_long_name_goes(seen):
    findings = examine(seen)
    narrow = text(seen, findings, width=60)
    assert "\n    train/cat/broken0.jpg\n      train, cat, not a JPEG, PNG or WebP image, 6 bytes\n" in narrow
    last = replace(findings[0], cases=findings[0].cases[-2:])
    lines = text(seen, [last]).splitlines()
    assert widest(lines) == 80
    end = f"{LONG}.jpg"[-75:]
    place = lines.index(f"    …{end}")
    assert lines[place + 1 : place + 3] == [
        "      train, dog, the file is empty",
        "    new\\nline.png  train, dog, truncated after 99 bytes",
    ]


def test_a_set_without_findings_says_so(examined):
    clean = examined({f"{name}/{i}.jpg": 100 * label + i for label, name in enumerate("ab") for i in range(10)})
    assert text(clean, examine(clean)).splitlines()[-1] == "Nothing was found."


def test_a_set_that_cannot_be_decoded_at_all_has_a_text(examined):
    bad = examined({f"{name}/{i}.jpg": b"" for name in "ab" for i in range(10)})
    assert "formats    none can be decoded" in text(bad, examine(bad))
    assert as_json(bad, examine(bad))["sizes"] == {}


def test_the_folder_that_names_share_is_said_once(seen, tmp_path):
    findings = examine(seen)
    assert common_folder(seen, findings) == f"{tmp_path}/"
    assert f"names      below {tmp_path}/" in text(seen, findings)
    assert common_folder(seen, []) == ""


def test_json_has_every_case(seen, tmp_path):
    found = json.loads(json.dumps(as_json(seen, examine(seen))))
    assert found["splits"] == {"train": {"cat": 19, "dog": 12}, "evaluation": {"cat": 4, "dog": 3}}
    assert found["formats"] == {"JPEG RGB": 28}
    assert found["sizes"]["width"] == {"0": 80, "5": 80, "50": 80, "95": 80, "100": 80}
    kinds = {finding["kind"]: finding for finding in found["findings"]}
    assert len(kinds["undecodable"]["cases"]) == 10
    assert kinds["exact_leakage"]["severity"] == "serious"
    assert kinds["exact_leakage"]["cases"] == [
        [
            {"name": f"{tmp_path}/train/cat/3.jpg", "split": "train", "label": "cat", "about": "80 x 60 JPEG"},
            {"name": f"{tmp_path}/val/cat/leak.jpg", "split": "evaluation", "label": "cat", "about": "80 x 60 JPEG"},
        ]
    ]


def test_the_quarantine_takes_what_is_surely_wrong_and_shows_the_rest(seen, tmp_path):
    listed = as_quarantine(seen, examine(seen))
    (tmp_path / "q.txt").write_text(listed)
    names = {name.removeprefix(f"{tmp_path}/") for name in read_quarantine(tmp_path / "q.txt")}
    broken = {f"train/cat/broken{i}.jpg" for i in range(8)} | {f"train/dog/{LONG}.jpg", "train/dog/new\\nline.png"}
    assert names == broken | {"train/cat/3.jpg"}
    assert f"\n# {tmp_path}/train/cat/again.jpg\n" in listed
