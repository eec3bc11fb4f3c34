"""Many paths as one run of bytes."""

import copy

import numpy as np
import pytest

from pcls.data.sources.paths import PathColumn

NAMES = ["a/1.jpg", "ä/猫.png", "x", "b/with space.webp"]


@pytest.fixture
def files(tmp_path):
    encoded = [name.encode() for name in NAMES]
    (tmp_path / "text").write_bytes(b"".join(encoded))
    np.cumsum([len(name) for name in encoded]).astype("<i8").tofile(tmp_path / "ends")
    return tmp_path / "text", tmp_path / "ends"


def test_a_column_reads_as_a_sequence_of_texts(files):
    column = PathColumn.map(*files)
    assert len(column) == 4
    assert list(column) == NAMES
    assert (column[1], column[-1], column[1:3]) == (NAMES[1], NAMES[3], NAMES[1:3])
    with pytest.raises(IndexError, match="4 of 4 paths"):
        column[4]


def test_a_mapped_column_travels_as_the_names_of_its_files(files):
    column = PathColumn.map(*files)
    assert column.__reduce__() == (PathColumn.map, files)
    assert list(copy.copy(column)) == NAMES
    held = PathColumn(np.fromfile(files[0], np.uint8), np.fromfile(files[1], "<i8"))
    assert list(copy.copy(held)) == NAMES


def test_files_that_do_not_belong_together_are_refused(files):
    files[0].write_bytes(b"short")
    with pytest.raises(ValueError, match="5 bytes instead of"):
        PathColumn.map(*files)
