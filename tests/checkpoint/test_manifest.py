import errno
import hashlib
import json
import math
import os

import ml_dtypes
import numpy as np
import pytest

from pcls.checkpoint.manifest import (
    NAME,
    Damaged,
    File,
    Leaf,
    digest,
    leaf_of,
    read_manifest,
    state_digest,
    verify,
    write_manifest,
)

LEAVES = {"params/kernel": leaf_of(np.zeros((2, 3), np.float32)), "step": leaf_of(np.asarray(7, np.int32))}


@pytest.fixture
def step(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "arrays").write_bytes(b"numbers")
    (tmp_path / "metadata").write_bytes(b"")
    write_manifest(tmp_path, 7, LEAVES, score=0.5, about={"mesh": {"data": 8}})
    return tmp_path


def test_the_manifest_holds_step_score_origin_every_leaf_and_the_digest_of_every_file(step):
    manifest = read_manifest(step)
    assert (manifest.step, manifest.score, manifest.about) == (7, 0.5, {"mesh": {"data": 8}})
    assert manifest.leaves == LEAVES
    assert manifest.files == {
        "metadata": File(0, hashlib.sha256(b"").hexdigest()),
        "state/arrays": File(7, hashlib.sha256(b"numbers").hexdigest()),
    }
    assert manifest.bytes == 7
    verify(step, manifest)


def test_no_half_written_manifest_is_left(step):
    assert sorted(path.name for path in step.iterdir()) == ["metadata", NAME, "state"]


def test_a_changed_file_of_the_same_size_is_named(step):
    (step / "state" / "arrays").write_bytes(b"numbert")
    with pytest.raises(Damaged, match=r"^state/arrays: digest differs$"):
        verify(step, read_manifest(step))


def test_a_file_that_cannot_be_read_is_named_with_the_reason(step, monkeypatch):
    def refuse(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    manifest = read_manifest(step)
    monkeypatch.setattr("pcls.checkpoint.manifest.digest", refuse)
    with pytest.raises(Damaged, match=r"^metadata: cannot be read \(Input/output error\)$"):
        verify(step, manifest)


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
        ("{}", "cannot be read"),
        ('{"format": 2}', "digest differs"),
        ('{"format": 1, "files": {}, "leaves": {}}', "has format 1, and this version of pcls reads 2"),
        ('{"format": "2"}', "has format 2, and"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_manifest_that_is_not_one_is_damage(step, text, words):
    (step / NAME).write_text(text)
    with pytest.raises(Damaged, match=words):
        read_manifest(step)


def signed(values):
    sha256 = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return json.dumps({"sha256": sha256, **values})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"leaves": []}, "cannot be read"),
        ({"leaves": {"step": [[], "int32"]}}, "cannot be read"),
        ({"files": {"a": {}}}, "cannot be read"),
        ({"about": 3}, "cannot be read"),
        ({"step": math.inf}, "cannot be read"),
        ({"leaves": {"step": {"shape": [math.inf], "dtype": "int32", "sha256": ""}}}, "cannot be read"),
        ({"files": {"a" * 300: {"bytes": 1, "sha256": ""}}}, "is missing"),
        ({"files": {"a\0b": {"bytes": 1, "sha256": ""}}}, "is missing"),
        ({"files": {"\ud800": {"bytes": 1, "sha256": ""}}}, "is missing"),
        ({"files": {"state": {"bytes": 1, "sha256": ""}}}, "is missing"),
        ({"files": {"../a": {"bytes": 1, "sha256": ""}}}, "names '../a', which lies outside the step"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}, "names '/etc/passwd', which lies outside the step"),
    ],
)
def test_a_manifest_whose_digest_holds_is_checked_all_the_same(step, change, words):
    values = {"format": 2, "step": 7, "score": None, "about": {}, "leaves": {}, "files": {}}
    (step / NAME).write_text(signed(values))
    assert read_manifest(step).files == {}
    (step / NAME).write_text(signed(values | change))
    with pytest.raises(Damaged, match=words):
        read_manifest(step)


def test_a_changed_number_in_the_manifest_is_damage(step):
    text = (step / NAME).read_text()
    (step / NAME).write_text(text.replace('"score": 0.5', '"score": 0.6'))
    with pytest.raises(Damaged, match=r"^pcls_manifest\.json: digest differs$"):
        read_manifest(step)


@pytest.mark.parametrize("score", [None, float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_none(step, score):
    write_manifest(step, 7, LEAVES, score=score, about={})
    assert read_manifest(step).score is None


def test_a_step_without_manifest_was_cut_off(step):
    (step / NAME).unlink()
    with pytest.raises(Damaged, match="no manifest: its save was cut off"):
        read_manifest(step)


def test_the_digest_is_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_digest_of_a_leaf_is_that_of_its_elements_in_order():
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    assert leaf_of(array) == Leaf((2, 3), "int16", hashlib.sha256(array.tobytes()).hexdigest())
    assert leaf_of(np.asfortranarray(array)) == leaf_of(array)
    assert leaf_of(array.T).sha256 == hashlib.sha256(array.T.tobytes()).hexdigest()
    half = np.arange(3, dtype=ml_dtypes.bfloat16)
    assert leaf_of(half) == Leaf((3,), "bfloat16", hashlib.sha256(half.tobytes()).hexdigest())


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.float32([1, 2]), "c": np.float32([3])},
        {"a": np.float32([1, 3]), "b": np.float32([3])},
        {"a": np.float32([[1, 2]]), "b": np.float32([3])},
        {"a": np.float32([1, 2]).view(np.int32), "b": np.float32([3])},
        {"a": np.float32([1, 2])},
    ],
)
def test_the_digest_of_a_state_goes_by_names_shapes_types_and_elements(other):
    state = {"a": leaf_of(np.float32([1, 2])), "b": leaf_of(np.float32([3]))}
    assert state_digest(dict(reversed(state.items()))) == state_digest(state)
    assert state_digest({name: leaf_of(array) for name, array in other.items()}) != state_digest(state)
