import hashlib
import json

import numpy as np
import pytest

from pcls.checkpoint.manifest import NAME, Damaged, digest, read_manifest, verify, write_manifest


@pytest.fixture
def step(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "arrays").write_bytes(b"numbers")
    (tmp_path / "metadata").write_bytes(b"")
    write_manifest(tmp_path, 7, {"params/kernel": np.zeros((2, 3), np.float32), "step": np.int32(7)})
    return tmp_path


def test_the_manifest_lists_every_leaf_and_the_digest_of_every_file(step):
    manifest = json.loads((step / NAME).read_text())
    assert manifest["step"] == 7
    assert manifest["leaves"] == {"params/kernel": [[2, 3], "float32"], "step": [[], "int32"]}
    assert manifest["files"] == {
        "metadata": {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()},
        "state/arrays": {"bytes": 7, "sha256": hashlib.sha256(b"numbers").hexdigest()},
    }
    assert read_manifest(step) == manifest
    verify(step, manifest)


def test_no_half_written_manifest_is_left(step):
    assert sorted(path.name for path in step.iterdir()) == ["metadata", NAME, "state"]


def test_a_changed_file_of_the_same_size_is_named(step):
    (step / "state" / "arrays").write_bytes(b"numbert")
    with pytest.raises(Damaged, match=r"^state/arrays: digest differs$"):
        verify(step, read_manifest(step))


def test_a_cut_or_missing_file_is_named_without_reading_the_others(step):
    (step / "state" / "arrays").write_bytes(b"num")
    with pytest.raises(Damaged, match=r"^state/arrays has 3 of 7 bytes$"):
        read_manifest(step)
    (step / "state" / "arrays").unlink()
    with pytest.raises(Damaged, match=r"^state/arrays is missing$"):
        read_manifest(step)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"format": 1}', "cannot be read"),
        ('{"format": 1, "files": {}, "leaves": []}', "format"),
        ('{"format": 2, "files": {}, "leaves": {}}', "has format 2, and this version reads 1"),
        ('{"format": 1, "files": {"a": {}}, "leaves": {}}', "cannot be read"),
    ],
)
def test_a_manifest_that_is_not_one_is_damage(step, text, words):
    (step / NAME).write_text(text)
    with pytest.raises(Damaged, match=words):
        read_manifest(step)


def test_a_step_without_manifest_was_cut_off(step):
    (step / NAME).unlink()
    with pytest.raises(Damaged, match="no manifest: its save was cut off"):
        read_manifest(step)


def test_the_digest_is_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
