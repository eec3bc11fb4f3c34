"""Lists of records to leave out: what is written is read back, and what is no list is refused."""

from pathlib import Path

import numpy as np
import pytest

from pcls.data.quarantine import quarantine_text, read_quarantine, records_kept
from pcls.data.sources.arrays import ArraySource
from pcls.errors import UserError

ODD = ["a/1.jpg", "new\nline", ' "quoted"', "# hash", "\ttab", "ä 猫.png", "byte \udcff", 'x"y', "trailing ", "cr\r"]


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def complaint(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        read_quarantine(path)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value).replace(str(path), "LIST")


def test_names_of_any_kind_are_read_back(tmp_path):
    text = quarantine_text([("damaged", True, ODD), ("to look at", False, ["b.jpg", "c\nd.jpg"])])
    assert read_quarantine(write(tmp_path / "q.txt", text)) == frozenset(ODD)


def test_a_plain_list_made_by_hand_is_read(tmp_path):
    text = "photos/a.jpg\r\n\n# why not\nphotos/b c.jpg\n"
    assert read_quarantine(write(tmp_path / "q.txt", text)) == {"photos/a.jpg", "photos/b c.jpg"}
    assert read_quarantine(write(tmp_path / "q.txt", "")) == frozenset()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'a\n"b', "LIST:2: begins with a quote and is no JSON string ("),
        (b'"b" c', "LIST:1: begins with a quote and is no JSON string ("),
        (b"a\n\n  b", "LIST:3: begins with a blank; take it away, or write the name as a JSON string"),
        (b"\x89PNG\0\0", "LIST: is no text; data.quarantine needs a list as pcls data doctor writes it"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, content, message):
    (tmp_path / "q.txt").write_bytes(content)
    assert complaint(tmp_path / "q.txt").startswith(message)


def test_a_missing_list_is_refused(tmp_path):
    assert complaint(tmp_path / "no.txt") == (
        "LIST: No such file or directory; data.quarantine needs a list as pcls data doctor writes it"
    )


def pixels(count: int, title: str) -> ArraySource:
    return ArraySource(np.zeros((count, 1, 1, 1), np.uint8), np.zeros(count, np.int32), ("a",), title)


def test_listed_records_are_left_out_of_every_split_and_names_that_have_gone_are_no_error():
    sources = [pixels(3, "train"), pixels(2, "test")]
    kept = records_kept(sources, frozenset({"train #1", "test #0", "gone.jpg"}), Path("q.txt"))
    assert [numbers.tolist() for numbers in kept] == [[0, 2], [1]]
    assert [numbers.tolist() for numbers in records_kept(sources, frozenset(), Path("q.txt"))] == [[0, 1, 2], [0, 1]]


def test_a_list_for_another_place_is_refused():
    with pytest.raises(UserError) as raised:
        records_kept([pixels(3, "train")], frozenset({"b.jpg", "/data/a.jpg"}), Path("q.txt"))
    assert str(raised.value) == (
        "q.txt: none of its 2 names is in the set, whose first record is 'train #0' and the list's '/data/a.jpg'; "
        "make it anew with the same data.path"
    )
