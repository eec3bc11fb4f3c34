"""Sequences of different lengths: text of sktime, and arrays that NumPy saved."""

import copy
import os
from pathlib import Path

import numpy as np
import pytest

from pcls.data.preprocessing import Preprocessing, SequenceFeatures
from pcls.data.sources import sequences
from pcls.data.sources.sequences import RaggedStore, SequenceSource, open_npz_sequences, open_ts
from pcls.data.sources.source import Subset
from pcls.errors import UserError

JAPANESE_VOWELS = Path(__file__).parents[4] / "shared" / "data" / "japanese-vowels"
HEADER = "# about\n\n@problemName x\n@timeStamps false\n@univariate false\n@classLabel true a b\n@data\n"


def padded_to(steps: int, features: int = 2) -> Preprocessing:
    return Preprocessing(steps, features, 1, (), (), sequence=SequenceFeatures())


def source_of(*records, labels=None, class_names=("a", "b")) -> SequenceSource:
    values = [np.asarray(record, np.float32) for record in records]
    lengths = np.array(list(map(len, values)))
    labels = np.arange(len(values)) % 2 if labels is None else np.asarray(labels)
    store = RaggedStore(np.concatenate(values), lengths, labels, "set")
    return SequenceSource(store, class_names, labels, lengths, values[0].shape[1])


def test_sequences_are_padded_by_zeros_after_their_length():
    source = source_of([[1, 2]], [[3, 4], [5, 6], [7, 8]])
    read = source.read(np.array([1, 0]), padded_to(4), None)
    assert (read.images.shape, read.images.dtype) == ((2, 4, 2, 1), np.float32)
    assert read.images[0, :, :, 0].tolist() == [[3, 4], [5, 6], [7, 8], [0, 0]]
    assert read.images[1, :, :, 0].tolist() == [[1, 2], [0, 0], [0, 0], [0, 0]]
    assert (read.lengths.tolist(), read.labels.tolist(), read.decoded.tolist()) == ([3, 1], [1, 0], [True, True])
    assert (read.lengths.dtype, read.labels.dtype) == (np.int32, np.int32)
    assert source.name(1) == "set #1"


def test_a_value_that_is_not_finite_leaves_zeros_and_is_named_by_its_step():
    source = source_of([[1, 2]], [[3, 4], [5, np.nan], [np.inf, 8]])
    read = source.read(np.arange(2), padded_to(3), None)
    assert read.decoded.tolist() == [True, False]
    assert not read.images[1].any()
    assert read.lengths.tolist() == [1, 3]
    assert source.failure(1, padded_to(3)) == "holds a value that is not finite at step 1"
    assert source.failure(0, padded_to(3)) == "could not be read before, and can be now"


def test_fewer_steps_than_the_longest_record_needs_are_an_error_of_the_caller():
    with pytest.raises(ValueError, match="a sequence has 3 steps, and 2 were asked for"):
        source_of([[1, 2]], [[3, 4], [5, 6], [7, 8]]).read(np.arange(2), padded_to(2), None)


def test_a_part_of_sequences_has_their_lengths_and_its_own_classes():
    whole = source_of([[1]], [[2], [3]], [[4], [5], [6]], labels=[0, 1, 2], class_names=("a", "b", "c"))
    part = Subset(Subset(whole, np.array([2, 1])), np.array([1, 0]), (2, 1))
    assert (part.lengths.tolist(), part.lengths.dtype, part.features) == ([2, 3], np.int32, 1)
    assert (part.sequence, part.notice) == (SequenceFeatures(), "")
    read = part.read(np.array([1]), padded_to(3, 1), None)
    assert (read.lengths.tolist(), read.labels.tolist()) == ([3], [0])
    assert read.images.ravel().tolist() == [4, 5, 6]


def test_sequences_are_the_same_in_another_process():
    source = copy.deepcopy(source_of([[1, 2]], [[3, 4], [5, 6]]))
    assert source.read(np.arange(2), padded_to(2), None).images[1, 1].ravel().tolist() == [5, 6]


def ts(tmp_path, text: str | bytes, name: str = "x.ts") -> Path:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_a_line_of_text_is_a_record_with_a_feature_between_colons(tmp_path):
    source, evaluation = open_ts(ts(tmp_path, f"\ufeff{HEADER}1,2,3:4,5,-6e1:b\n\n# words\n 7 : 8 : a \r\n"))
    assert evaluation is None
    assert (source.class_names, source.features, len(source)) == (("a", "b"), 2, 2)
    assert (source.lengths.tolist(), source.labels.tolist()) == ([3, 1], [1, 0])
    read = source.read(np.arange(2), padded_to(3), None)
    assert read.images[0, :, :, 0].tolist() == [[1, 4], [2, 5], [3, -60]]
    assert read.images[1, :, :, 0].tolist() == [[7, 8], [0, 0], [0, 0]]
    assert source.name(1) == f"{tmp_path / 'x.ts'} #1"
    assert source.sequence == SequenceFeatures()


def test_missing_and_too_large_values_of_text_are_not_decoded(tmp_path):
    source, _ = open_ts(ts(tmp_path, f"{HEADER}1,?:2,3:a\n1,2:NaN,3:a\n1,2:3,1e39:b\n1:2:b\n"))
    assert source.read(np.arange(4), padded_to(2), None).decoded.tolist() == [False, False, False, True]
    reasons = [source.failure(record, padded_to(2)) for record in range(3)]
    assert reasons == [f"holds a value that is not finite at step {step}" for step in (1, 0, 1)]


def test_a_folder_has_a_file_to_train_on_and_one_to_evaluate_on(tmp_path):
    ts(tmp_path, f"{HEADER}1:2:a\n3:4:b\n", "X_TRAIN.ts")
    assert open_ts(tmp_path)[1] is None
    ts(tmp_path, f"{HEADER}5,6:7,8:b\n", "X_TEST.ts")
    train, evaluation = open_ts(tmp_path)
    assert (train.lengths.tolist(), evaluation.lengths.tolist()) == ([1, 1], [2])
    assert evaluation.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ROOT: ends before a line @data; this is no whole .ts file of sktime"),
        ("@problemName x\n", "ROOT: ends before a line @data"),
        ("1,2:a\n", "ROOT:1: neither # nor @ begins the line, and no @data came before it"),
        ("@data\n1:a\n", "ROOT:1: no classes before @data; a line as @classLabel true NAME NAME ... is needed"),
        ("@classLabel false\n@data\n1\n", "ROOT:2: no classes before @data"),
        ("@classLabel\n@data\n", "ROOT:1: @classlabel needs true or false"),
        ("@classLabel true a b a\n@data\n", "ROOT:1: names a class twice"),
        (f"@timeStamps TRUE\n{HEADER.replace('@timeStamps false', '')}", "ROOT:1: time stamps are not supported"),
        (f"@dimensions 0\n{HEADER}", "ROOT:1: @dimensions needs a number from 1 to 999,999"),
        (f"@dimensions {'9' * 5000}\n{HEADER}", "ROOT:1: @dimensions needs a number from 1 to 999,999"),
        (HEADER, "ROOT: no records after @data"),
        (f"{HEADER}1:2:c\n", "ROOT:8: the label 'c' is none of @classLabel"),
        (f"{HEADER}1,2\n", "ROOT:8: the label '1,2' is none of @classLabel"),
        (f"{HEADER}a\n", "ROOT:8: the record has no steps; leave it out"),
        (f"{HEADER}1:2:a\n::a\n", "ROOT:9: the record has no steps; leave it out"),
        (f"{HEADER}1,2:3:a\n", "ROOT:8: dimensions of 2 and 1 steps; all of a record must have as many"),
        (f"{HEADER}1:2:a\n1:b\n", "ROOT:9: 1 dimensions before the label, and 2 are needed"),
        (f"@dimensions 3\n{HEADER}1:2:a\n", "ROOT:9: 2 dimensions before the label, and 3 are needed"),
        (f"{HEADER.replace('@univariate false', '@univariate true')}1:2:a\n", "ROOT:8: 2 dimensions before the label"),
        (f"{HEADER}1,x:2,3:a\n", "ROOT:8: is no list of numbers (could not convert string to float: 'x')"),
        (f"{HEADER}1,:2,3:a\n", "ROOT:8: is no list of numbers"),
        (f"@equalLength true\n{HEADER}1:2:a\n1,2:3,4:a\n", "ROOT:10: 2 steps after records of 1, and @equalLength is"),
        (b"\x89PNG\r\n\x1a\n", "ROOT:1: is no UTF-8 text; this is no .ts file of sktime"),
    ],
)
def test_text_that_cannot_be_learned_from_is_refused_with_its_line(tmp_path, text, message):
    file = ts(tmp_path, text)
    with pytest.raises(UserError) as raised:
        open_ts(file)
    assert str(raised.value).replace(str(file), "ROOT").startswith(message)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            f"{HEADER.replace('a b', 'b a')}1:2:a\n",
            "ROOT/X_TEST.ts: @classLabel names other classes, or in another order",
        ),
        (f"{HEADER}1:a\n", "ROOT/X_TEST.ts: 1 dimensions, and X_TRAIN.ts has 2"),
    ],
)
def test_two_files_that_disagree_are_refused(tmp_path, other, message):
    ts(tmp_path, f"{HEADER}1:2:a\n", "X_TRAIN.ts")
    ts(tmp_path, other, "X_TEST.ts")
    with pytest.raises(UserError) as raised:
        open_ts(tmp_path)
    assert str(raised.value).replace(str(tmp_path), "ROOT").startswith(message)


def test_a_folder_without_one_set_of_text_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no file NAME_TRAIN\.ts; name a folder that holds one"):
        open_ts(tmp_path)
    for name in ("X_TRAIN.ts", "Y_TRAIN.ts"):
        ts(tmp_path, HEADER, name)
    with pytest.raises(UserError, match=r"2 files NAME_TRAIN\.ts"):
        open_ts(tmp_path)


def test_text_without_an_end_is_not_taken_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sequences, "MAX_LINE_BYTES", 1000)
    file = ts(tmp_path, f"{HEADER}{'1,' * 501}")
    with pytest.raises(UserError, match=":8: longer than 1,000 bytes"):
        open_ts(file)
    monkeypatch.setattr(sequences, "MAX_TS_BYTES", 1000)
    with pytest.raises(UserError, match=r"bytes of text, more than 1,000; save the records as \.npz"):
        open_ts(file)
    os.mkfifo(tmp_path / "pipe.ts")
    for name in ("pipe.ts", "no.ts"):
        with pytest.raises(UserError, match="there is no such file"):
            open_ts(tmp_path / name)


def npz(tmp_path, **arrays) -> Path:
    np.savez(tmp_path / "x.npz", **{name: np.asarray(array) for name, array in arrays.items()})
    return tmp_path / "x.npz"


RAGGED = {"values": [[1.0, 2], [3, 4], [5, 6]], "lengths": [1, 2], "labels": [0, 1]}
PADDED = {"sequences": [[[1.0, 2], [np.nan, 9]], [[3, 4], [5, 6]]], "lengths": [1, 2], "labels": [0, 1]}


@pytest.mark.parametrize("arrays", [RAGGED, PADDED])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f8"])
def test_arrays_hold_sequences_one_after_the_other_or_padded(tmp_path, arrays, dtype):
    arrays = {name: np.asarray(array, dtype if np.ndim(array) > 1 else None) for name, array in arrays.items()}
    source, evaluation = open_npz_sequences(npz(tmp_path, **arrays))
    assert evaluation is None
    assert (source.class_names, source.features, source.lengths.tolist()) == (("0", "1"), 2, [1, 2])
    read = source.read(np.arange(2), padded_to(2), None)
    assert read.decoded.all()
    assert read.images[..., 0].tolist() == [[[1, 2], [0, 0]], [[3, 4], [5, 6]]]
    assert source.name(1).endswith(f"x.npz {'values' if 'values' in arrays else 'sequences'} #1")


def test_arrays_name_classes_and_an_evaluation_part(tmp_path):
    test = {f"test_{name}": array for name, array in PADDED.items()}
    train, evaluation = open_npz_sequences(npz(tmp_path, **RAGGED, **test, class_names=["x", "y", "z"]))
    assert train.class_names == evaluation.class_names == ("x", "y", "z")
    assert evaluation.read(np.array([0]), padded_to(2), None).images.ravel().tolist() == [1, 2, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": None}, "no array 'lengths' beside values; add it"),
        ({"values": None}, "values or sequences is needed, one of them, and it holds: lengths, labels"),
        ({"sequences": [[[1.0]]]}, "values or sequences is needed, one of them"),
        ({"test_labels": [0]}, "test_values or test_sequences is needed, one of them"),
        ({"lengths": [0, 3]}, "lengths has 0 at record 0; from 1 to the 3 steps of values are allowed"),
        ({"lengths": [1, -2]}, "lengths has -2 at record 1"),
        ({"lengths": [1, 4]}, "lengths has 4 at record 1"),
        ({"lengths": [1, 1]}, "lengths adds up to 2 steps, and values has 3"),
        ({"lengths": [1, 1, 1]}, "lengths has 3 values for 2 labels"),
        ({"lengths": [1.0, 2.0]}, "lengths is float64; an array [n] of whole numbers is needed"),
        ({"lengths": [[1, 2]]}, "lengths has the shape [1, 2]; [n] is needed"),
        ({"labels": [0, 2]}, "labels has 2 at record 1, and only 2 records; classes are numbered from 0 without gaps"),
        ({"labels": [0, -1]}, "labels has -1 at record 1; the classes are 0 to 0"),
        ({"class_names": ["x"]}, "labels has 1 at record 1; the classes are 0 to 0"),
        ({"class_names": [1, 2]}, "class_names is int64; an array [classes] of text is needed"),
        ({"values": [1.0, 2, 3]}, "values has the shape [3]; [total steps, features] is needed"),
        ({"values": [[True]] * 3}, "values is bool; an array [total steps, features] of numbers is needed"),
        ({"values": np.zeros((3, 0))}, "values has the shape [3, 0]: it is empty"),
        (
            {"test_values": [[1.0]], "test_lengths": [1], "test_labels": [0]},
            "1 features to evaluate on, and 2 to train on",
        ),
        (
            {"values": None, "sequences": np.zeros((3, 2, 1))},
            "sequences has 3 records for 2 labels",
        ),
        (
            {"values": None, **PADDED, "lengths": [1, 3]},
            "lengths has 3 at record 1; from 1 to the 2 steps of sequences",
        ),
    ],
)
def test_arrays_that_cannot_be_learned_from_are_refused(tmp_path, change, message):
    arrays = {name: array for name, array in {**RAGGED, **change}.items() if array is not None}
    file = npz(tmp_path, **arrays)
    with pytest.raises(UserError) as raised:
        open_npz_sequences(file)
    assert str(raised.value).startswith(f"{file}: {message}")


def test_arrays_of_objects_and_damaged_archives_are_refused(tmp_path):
    objects = np.empty(2, object)
    with pytest.raises(UserError, match="values holds Python objects, which are never loaded"):
        open_npz_sequences(npz(tmp_path, **{**RAGGED, "values": objects}))
    file = npz(tmp_path, **RAGGED)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"a whole \.npz archive is needed"):
        open_npz_sequences(file)
    with pytest.raises(UserError, match=r"there is no such file; an \.npz archive of sequences is needed"):
        open_npz_sequences(tmp_path / "no.npz")


@pytest.mark.skipif(not JAPANESE_VOWELS.is_dir(), reason="../shared/data/japanese-vowels is not there")
def test_the_japanese_vowels_are_those_that_were_published():
    train, evaluation = open_ts(JAPANESE_VOWELS)
    assert train.class_names == evaluation.class_names == tuple("123456789")
    assert (len(train), len(evaluation), train.features) == (270, 370, 12)
    assert np.bincount(train.labels).tolist() == [30] * 9
    assert np.bincount(evaluation.labels).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert (train.lengths.min(), train.lengths.max(), evaluation.lengths.max()) == (7, 26, 29)
    read = evaluation.read(np.arange(1), padded_to(29, 12), None)
    assert read.images[0, :2, 1, 0].tolist() == pytest.approx([0.024848, 0.008754])
