"""Sets that `pcls data convert` wrote, whole and damaged."""

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np
import pytest

from pcls.data.convert import convert
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.arrayrecord import open_arrayrecord, verify
from pcls.data.sources.source import ImageSource, Stored, Unreadable
from pcls.errors import UserError

PREPROCESSING = Preprocessing(4, 6, 3, (0.0,) * 3, (1.0,) * 3)
RECORDS, SHARDS = 50, 4
AGAIN = "copy it again, or remove the folder and convert anew"


class Texts:
    """Records of random bytes, all different."""

    def __init__(self, count, seed):
        rng = np.random.default_rng(seed)
        self.images = [rng.bytes(int(size)) for size in rng.integers(20, 3000, count)]

    def __len__(self):
        return len(self.images)

    def __getitems__(self, records):
        return [Stored(self.images[record], record % 3) for record in records]

    def name(self, record):
        return f"text {record}"


def texts(count, seed):
    return ImageSource(Texts(count, seed), ("a", "b", "c"), np.arange(count) % 3, np.arange(count) // 7)


@pytest.fixture(scope="module")
def train():
    return texts(RECORDS, seed=0)


@pytest.fixture(scope="module")
def converted(train, tmp_path_factory):
    """The folder of a converted set; whoever damages it takes a copy."""
    folder = tmp_path_factory.mktemp("converted") / "set"
    convert(train, texts(9, seed=1), folder, description="texts", shards=SHARDS)
    return folder


@pytest.fixture
def own(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "set")


def shard(folder, number):
    return folder / f"train-{number:05d}-of-{SHARDS:05d}.array_record"


def flip(path, place, bit=0):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def images(source, records):
    return [image for image, _ in source.__getitems__(records)]


def test_records_come_by_number_in_any_order_and_more_than_once(converted, train):
    source, _ = open_arrayrecord(converted)
    records = [*np.random.default_rng(0).permutation(RECORDS).tolist(), 7, 7]
    assert source.__getitems__(records) == train.__getitems__(records)
    assert len(source) == RECORDS


def test_labels_groups_and_class_names_are_the_sources(converted, train):
    source, _ = open_arrayrecord(converted)
    assert source.class_names == ("a", "b", "c")
    assert (source.labels.dtype, source.groups.dtype) == (np.int32, np.int32)
    assert source.labels.tolist() == train.labels.tolist()
    assert source.groups.tolist() == train.groups.tolist()


def test_labels_stay_on_the_disk_until_they_are_read(converted):
    assert isinstance(open_arrayrecord(converted)[0].labels.base, np.memmap)


def test_the_evaluation_split_is_opened_beside_the_training_records(converted):
    _, evaluation = open_arrayrecord(converted)
    assert images(evaluation, range(9)) == texts(9, seed=1).store.images


def test_a_record_is_named_by_its_shard_and_its_place_there(converted):
    source, evaluation = open_arrayrecord(converted)
    # 50 records in four shards: 12, 13, 12, 13.
    assert source.name(0) == f"{shard(converted, 0)} #0"
    assert source.name(24) == f"{shard(converted, 1)} #12"
    assert source.name(25) == f"{shard(converted, 2)} #0"
    assert evaluation.name(8) == f"{converted}/evaluation-00000-of-00001.array_record #8"


def test_several_threads_read_the_same_shards_at_once(converted, train):
    source, _ = open_arrayrecord(converted)
    batches = [np.random.default_rng(seed).integers(RECORDS, size=16).tolist() for seed in range(60)]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda records: images(source, records), batches))
    assert read == [images(train, records) for records in batches]


def test_a_source_that_has_read_can_be_sent_to_another_process(converted, train):
    source, _ = open_arrayrecord(converted)
    source.__getitems__([3, 30])
    # What a copy takes along is what a pickle would.
    assert copy.deepcopy(source).__getitems__([3, 30]) == train.__getitems__([3, 30])


@pytest.mark.faults
@pytest.mark.parametrize(
    ("back", "reason"), [(-5, "chunk data hash mismatch"), (40, "chunk header hash mismatch")], ids=["data", "header"]
)
def test_a_flipped_bit_costs_one_record_and_is_told(own, train, back, reason):
    data = shard(own, 1).read_bytes()
    # A record's chunk is a header of 40 bytes, what says how long it is, and its bytes.
    flip(shard(own, 1), data.index(train.store.images[20]) - back)
    source, _ = open_arrayrecord(own)
    expected = images(train, range(RECORDS))
    expected[20] = Unreadable(f"{shard(own, 1).name}: {reason}")
    assert images(source, range(RECORDS)) == expected
    read = source.read(np.array([20]), PREPROCESSING, None)
    assert (read.decoded.tolist(), read.labels.tolist()) == ([False], [2])
    assert source.failure(20, PREPROCESSING) == f"cannot be read ({shard(own, 1).name}: {reason})"


@pytest.mark.faults
def test_a_flipped_bit_in_an_index_costs_its_shard_and_is_told(own, train):
    last = train.store.images[24]
    path = shard(own, 1)
    flip(path, path.read_bytes().index(last) + len(last))
    source, _ = open_arrayrecord(own)
    lost = Unreadable(f"{path.name}: missing, or its index is damaged")
    assert images(source, [11, 12, 24, 25]) == [train.store.images[11], lost, lost, train.store.images[25]]


@pytest.mark.faults
def test_no_flipped_bit_goes_unnoticed(own, train):
    path = shard(own, 2)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    end = whole.index(train.store.images[36]) + len(train.store.images[36])
    lost = 0
    for place in rng.integers(end, size=100):
        flip(path, place, bit=int(rng.integers(8)))
        source, _ = open_arrayrecord(own)
        found = images(source, range(25, 37))
        wrong = [i for i, image in enumerate(found) if image != train.store.images[25 + i]]
        assert all(isinstance(found[i], Unreadable) for i in wrong)
        lost += len(wrong)
        path.write_bytes(whole)
    # The file's first 64 bytes say nothing that is needed.
    assert 90 <= lost <= 110


@pytest.mark.faults
def test_a_shard_that_goes_away_while_it_is_in_use_is_no_exception(own):
    source, _ = open_arrayrecord(own)
    shard(own, 0).unlink()
    ((image, label),) = source.__getitems__([1])
    assert (image, label) == (Unreadable(f"{shard(own, 0).name}: missing, or its index is damaged"), 1)


def edit(folder, change):
    description = json.loads((folder / "dataset.json").read_text())
    change(description)
    (folder / "dataset.json").write_text(json.dumps(description))


def replace_labels(folder, labels):
    """Other labels, with a description that believes them."""
    np.save(folder / "train-labels.npy", labels)
    data = (folder / "train-labels.npy").read_bytes()
    found = {"file": "train-labels.npy", "bytes": len(data), "sha256": sha256(data).hexdigest()}
    edit(folder, lambda d: d["splits"]["train"].update(labels=found))


def unfinished(folder):
    (folder / "dataset.json").unlink()
    (folder / ".convert").mkdir()


DAMAGED = f"SET/dataset.json: is damaged (REASON); {AGAIN}"
FILE_NAME = "^(train|evaluation)-[A-Za-z0-9_.-]+$"
SHARD = "train-00001-of-00004.array_record"
BAD_SETS = [
    (shutil.rmtree, "SET: there is no such folder; a folder that `pcls data convert` wrote is needed"),
    (
        lambda f: (f / "dataset.json").unlink(),
        "SET: it holds no dataset.json; a folder that `pcls data convert` wrote is needed",
    ),
    (unfinished, "SET: its conversion is not finished; run the same `pcls data convert` again, and it goes on"),
    (lambda f: (f / "dataset.json").write_text("{"), DAMAGED.replace("REASON", "no JSON object")),
    (lambda f: (f / "dataset.json").write_bytes(b"\xff{}"), DAMAGED.replace("REASON", "no JSON object")),
    (lambda f: (f / "dataset.json").write_text("[1]"), DAMAGED.replace("REASON", "no JSON object")),
    (lambda f: edit(f, lambda d: d.pop("classes")), DAMAGED.replace("REASON", "classes: Field required")),
    (
        lambda f: edit(f, lambda d: d.update(more=1)),
        DAMAGED.replace("REASON", "more: Extra inputs are not permitted"),
    ),
    (
        lambda f: edit(f, lambda d: d["splits"]["train"].update(records="50")),
        DAMAGED.replace("REASON", "splits.train.records: Input should be a valid integer"),
    ),
    (
        lambda f: edit(f, lambda d: d["splits"]["train"]["shards"][0].update(file="../secret")),
        DAMAGED.replace("REASON", f"splits.train.shards.0.file: String should match pattern '{FILE_NAME}'"),
    ),
    (lambda f: edit(f, lambda d: d["splits"].pop("train")), DAMAGED.replace("REASON", "no split train")),
    (
        lambda f: edit(f, lambda d: d["splits"]["train"].update(records=49)),
        DAMAGED.replace("REASON", "train has 49 records, its shards 50"),
    ),
    (
        lambda f: edit(f, lambda d: d.update(format=2)),
        "SET/dataset.json: has format 2, and this version of pcls reads 1",
    ),
    (lambda f: shard(f, 1).unlink(), f"SET/{SHARD}: cannot be read (No such file or directory); {AGAIN}"),
    (
        lambda f: shard(f, 1).write_bytes(b"0" * 1000),
        f"SET/{SHARD}: has 1,000 of 131,072 bytes; {AGAIN}",
    ),
    (
        lambda f: (f / "train-labels.npy").unlink(),
        f"SET/train-labels.npy: cannot be read (No such file or directory); {AGAIN}",
    ),
    (
        lambda f: flip(f / "train-labels.npy", 200),
        f"SET/train-labels.npy: is damaged (its digest differs); {AGAIN}",
    ),
    (
        lambda f: flip(f / "train-groups.npy", 200),
        f"SET/train-groups.npy: is damaged (its digest differs); {AGAIN}",
    ),
    (
        lambda f: replace_labels(f, np.zeros(49, np.int32)),
        "SET/train-labels.npy: holds int32 [49] instead of int32 [50]; remove the folder and convert anew",
    ),
    (
        lambda f: replace_labels(f, np.zeros(50)),
        "SET/train-labels.npy: holds float64 [50] instead of int32 [50]; remove the folder and convert anew",
    ),
    (
        lambda f: replace_labels(f, np.full(50, 3, np.int32)),
        "SET/train-labels.npy: holds labels from 3 to 3, and there are 3 classes; remove the folder and convert anew",
    ),
]


@pytest.mark.faults
@pytest.mark.parametrize(("damage", "message"), BAD_SETS, ids=[message[4:60] for _, message in BAD_SETS])
def test_a_damaged_set_is_told_in_one_line(own, damage, message):
    damage(own)
    with pytest.raises(UserError) as raised:
        open_arrayrecord(own)
    text = str(raised.value).replace(str(own), "SET")
    assert text == message


def test_verify_finds_nothing_in_a_whole_set_and_counts_its_bytes(converted):
    counts = []
    assert verify(converted, counts.append) == []
    assert sum(counts) == sum(file.stat().st_size for file in converted.iterdir() if file.name != "dataset.json")


@pytest.mark.faults
def test_verify_names_every_damaged_file(own):
    # A bit in the padding that no reader looks at.
    flip(shard(own, 0), shard(own, 0).stat().st_size - 1)
    shard(own, 1).unlink()
    shard(own, 2).write_bytes(b"")
    flip(own / "evaluation-labels.npy", 130)
    assert verify(own) == [
        "train-00000-of-00004.array_record: its digest differs",
        "train-00001-of-00004.array_record: cannot be read (No such file or directory)",
        "train-00002-of-00004.array_record: has 0 of 131,072 bytes",
        "evaluation-labels.npy: its digest differs",
    ]
