"""Host batches: a pure function of the step, padded with weight 0, from any number of threads."""

import copy
import gc
import io
import multiprocessing
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcls.data.buckets import buckets_of
from pcls.data.order import BucketedOrder, Order
from pcls.data.pipeline import Batch, Update, Workers, evaluation_batches, training_batches
from pcls.data.preprocessing import Preprocessing, SequenceFeatures
from pcls.data.sources.folder import open_folder
from pcls.data.sources.sequences import RaggedStore, SequenceSource
from pcls.data.sources.source import Records
from pcls.errors import UserError
from pcls.training.sizes import BucketSizes

PREPROCESSING = Preprocessing(2, 3, 1, (0.0,), (1.0,))


class Numbers:
    """37 records whose pixels are their number; with draws, one pixel is drawn. Some cannot be decoded."""

    class_names = ("a", "b", "c")

    def __init__(self, broken: tuple[int, ...] = (), delay: float = 0):
        self.labels = (np.arange(37) % 3).astype(np.int32)
        self.broken = broken
        self.delay = delay

    def __len__(self) -> int:
        return 37

    def name(self, record: int) -> str:
        return f"#{record}"

    def failure(self, record: int, preprocessing: Preprocessing) -> str:
        return "broken"

    def read(self, records, preprocessing, draws) -> Records:
        time.sleep(self.delay * (int(records[0]) % 3))
        decoded = ~np.isin(records, self.broken)
        images = np.zeros((len(records), 2, 3, 1), np.uint8)
        images[:] = (records * decoded)[:, None, None, None]
        if draws is not None:
            images[:, 0, 0, 0] = draws[:, 0, 0] * 256
        return Records(images, self.labels[records], decoded)


def train(source, steps, *, workers=2, rows=None, seed=5, random_crop=True, batch_size=8):
    rows = np.arange(batch_size) if rows is None else rows
    options = {
        "order": Order(37, batch_size, seed),
        "rows": {batch_size: rows},
        "random_crop": random_crop,
        "steps": steps,
    }
    with training_batches(source, PREPROCESSING, workers=Workers(workers), **options) as batches:
        return list(batches)


def evaluate(source, batch_size, *, workers=2, rows=None):
    rows = np.arange(batch_size) if rows is None else rows
    with evaluation_batches(source, PREPROCESSING, batch_size=batch_size, rows=rows, threads=workers) as batches:
        return list(batches)


def assert_same(some, others):
    assert len(some) == len(others) > 0
    for batch, other in zip(some, others, strict=True):
        for name in batch._fields:
            assert np.array_equal(getattr(batch, name), getattr(other, name)), name


def test_a_batch_holds_the_records_of_its_step():
    for step, batch in enumerate(train(Numbers(), range(12), random_crop=False)):
        records, epochs = Order(37, 8, 5).records_of_step(step)
        assert np.array_equal(batch.record, records)
        assert np.array_equal(batch.epoch, epochs)
        assert np.array_equal(batch.image[:, 1, 2, 0], records)
        assert np.array_equal(batch.label, records % 3)
        assert batch.weight.tolist() == [1.0] * 8


def test_shapes_and_types_are_those_that_the_step_compiles_for():
    (batch,) = train(Numbers(), range(1))
    assert batch.length is None
    assert [(a.shape, a.dtype.name) for a in batch[:-1]] == [
        ((8, 2, 3, 1), "uint8"),
        ((8,), "int32"),
        ((8,), "float32"),
        ((8,), "int32"),
        ((8,), "int32"),
    ]


def test_a_stream_that_starts_at_step_5_goes_on_as_one_from_the_start():
    assert_same(train(Numbers(), range(5, 12)), train(Numbers(), range(12))[5:])


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_any_number_of_threads_gives_the_same_batches(workers):
    slow = Numbers(delay=0.002)
    assert_same(train(slow, range(20), workers=workers), train(Numbers(), range(20), workers=2))
    assert_same(evaluate(slow, 8, workers=workers), evaluate(Numbers(), 8))


def test_the_rows_of_any_split_into_processes_make_up_the_global_batch():
    whole = train(Numbers(), range(7))
    rows = np.random.default_rng(0).permutation(8)
    for parts in (np.split(rows, 2), np.split(rows, [1, 4])):
        streams = [train(Numbers(), range(7), rows=part) for part in parts]
        for step, batch in enumerate(whole):
            for name in batch._fields[:-1]:
                joined = np.concatenate([getattr(stream[step], name) for stream in streams])
                assert np.array_equal(joined, getattr(batch, name)[np.concatenate(parts)])


def test_each_step_has_the_image_size_that_it_is_told():
    class Sized(Numbers):
        def read(self, records, preprocessing, draws):
            images = np.zeros((len(records), preprocessing.height, preprocessing.width, 1), np.uint8)
            return Records(images, self.labels[records], np.ones(len(records), bool))

    def size_at(step):
        return 4 if step < 3 else 7

    for steps, workers in ((range(6), 3), (range(6), 0), (range(2, 6), 2)):
        options = {"order": Order(37, 8, 5), "rows": {8: np.arange(8)}, "random_crop": False, "steps": steps}
        with training_batches(
            Sized(),
            PREPROCESSING,
            workers=Workers(workers),
            update_at=lambda step: Update(size_at(step), size_at(step)),
            **options,
        ) as batches:
            found = [batch.image.shape for batch in batches]
        assert found == [(8, size_at(step), size_at(step), 1) for step in steps]


def test_the_image_size_changes_neither_records_nor_crops():
    whole = train(Numbers(), range(6))
    options = {"order": Order(37, 8, 5), "rows": {8: np.arange(8)}, "random_crop": True, "steps": range(6)}
    with training_batches(
        Numbers(), PREPROCESSING, workers=Workers(2), update_at=lambda step: Update(2 + step, 2 + step), **options
    ) as batches:
        # `Numbers` has one size only, whatever it is asked for.
        assert_same(list(batches), whole)


def test_an_update_may_take_several_batches_together():
    whole = train(Numbers(), range(10))
    kinds = {0: 2, 2: 2, 4: 3, 7: 1, 8: 1, 9: 1}
    options = {"order": Order(37, 8, 5), "random_crop": True, "steps": list(kinds)}
    options["rows"] = {8 * batches: np.arange(8 * batches) for batches in (1, 2, 3)}
    options["update_at"] = lambda step: Update(batches=kinds[step])
    with training_batches(Numbers(), PREPROCESSING, workers=Workers(2), **options) as batches:
        found = list(batches)
    assert [len(batch.record) for batch in found] == [16, 16, 24, 8, 8, 8]
    for name in Batch._fields[:-1]:
        joined, expected = (np.concatenate([getattr(b, name) for b in some]) for some in (found, whole))
        assert np.array_equal(joined, expected), name


def test_crops_differ_between_epochs_and_between_seeds():
    def crops(seed: int, epoch: int) -> dict[int, int]:
        batches = train(Numbers(), range(10), seed=seed)  # 80 places: two epochs and a bit
        return {
            int(record): int(pixel)
            for batch in batches
            for record, pixel, e in zip(batch.record, batch.image[:, 0, 0, 0], batch.epoch, strict=True)
            if e == epoch
        }

    assert len(crops(5, 0)) == 37
    for other in (crops(5, 1), crops(6, 0)):
        # Of 37 draws out of 256, some fall together by chance.
        assert sum(other[record] == pixel for record, pixel in crops(5, 0).items()) < 5


def test_the_last_evaluation_batch_is_filled_up_with_weight_0():
    batches = evaluate(Numbers(), 8)
    assert len(batches) == 5
    assert np.concatenate([b.record for b in batches]).tolist() == [*range(37), -1, -1, -1]
    assert np.concatenate([b.weight for b in batches]).tolist() == [1.0] * 37 + [0.0] * 3
    assert [len(b.image) for b in batches] == [8] * 5


def test_a_batch_larger_than_the_set_counts_each_record_once():
    (batch,) = evaluate(Numbers(), 64)
    assert batch.weight.sum() == 37


def test_rows_that_hold_only_padding_have_weight_0():
    (batch,) = evaluate(Numbers(), 64, rows=np.arange(40, 64))
    assert batch.weight.sum() == 0
    assert set(batch.record.tolist()) == {-1}


def test_a_record_that_cannot_be_decoded_comes_out_as_zeros_of_weight_0():
    batches = evaluate(Numbers(broken=(0, 20)), 8)
    records, weights = (np.concatenate([getattr(b, name) for b in batches]) for name in ("record", "weight"))
    assert records[weights == 0].tolist() == [0, 20, -1, -1, -1]
    images = np.concatenate([b.image for b in batches])
    assert images[20].max() == 0
    assert images[21].min() == 21


def test_a_step_that_is_filled_up_has_rows_of_weight_0():
    options = {"order": Order(37, 8, 5, "pad"), "rows": {8: np.arange(8)}, "random_crop": True, "steps": range(5)}
    with training_batches(Numbers(), PREPROCESSING, workers=Workers(2), **options) as batches:
        *_, last = batches
    assert last.weight.tolist() == [1.0] * 5 + [0.0] * 3
    # Others than one and the same: BatchNorm sees them.
    assert len(set(last.image[5:, 1, 2, 0].tolist())) == 3
    assert last.record[5:].tolist() == [-1] * 3


def test_a_step_is_filled_up_alike_by_any_number_of_processes():
    def last(rows):
        options = {"order": Order(35, 8, 5, "pad"), "rows": {8: rows}, "random_crop": True, "steps": range(5)}
        with training_batches(Numbers(), PREPROCESSING, workers=Workers(0), **options) as batches:
            return list(batches)[-1]

    one, *two = last(np.arange(8)), last(np.arange(4)), last(np.arange(4, 8))
    np.testing.assert_array_equal(np.concatenate([batch.image for batch in two]), one.image)


SMALL = Preprocessing(6, 5, 3, (0.0,) * 3, (1.0,) * 3)


@pytest.fixture
def stream(write_images):
    """A function to batches of a folder of 12 images, read by threads or processes."""
    rng = np.random.default_rng(0)
    files = {f"{'ab'[i % 2]}/{i}.jpg": encoded(rng.integers(0, 256, (20, 30, 3), np.uint8)) for i in range(12)}
    source, _ = open_folder(write_images(files))

    def start(workers: Workers, steps: range, warn=None):
        options = {"order": Order(12, 4, 5), "rows": {4: np.arange(4)}, "random_crop": True, "steps": steps}
        return training_batches(source, SMALL, workers=workers, warn=warn, **options)

    return start


def encoded(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def shared_memory() -> set[str]:
    folder = Path("/dev/shm")
    return {name.name for name in folder.glob("psm_*")} if folder.is_dir() else set()


def test_a_process_that_is_killed_is_replaced_and_every_batch_comes_once(stream):
    before, told = shared_memory(), []
    with stream(Workers(1, processes=2), range(30), told.append) as batches:
        found = [next(batches) for _ in range(3)]
        multiprocessing.active_children()[0].kill()
        found += list(batches)
    with stream(Workers(2), range(30)) as batches:
        assert_same(found, list(batches))
    assert len(told) == 1
    assert re.fullmatch(r"a process that reads .* \(exit code -9\) before step \d+; started again \(1 of .*\)", told[0])
    assert multiprocessing.active_children() == []
    gc.collect()
    # The batch that the dead process had made and not handed over stays until this program ends; no other does.
    assert within_seconds(lambda: len(shared_memory() - before) <= len(Batch._fields))


def within_seconds(condition) -> bool:
    # Others that run at the same time have shared memory too, and give it back.
    return any(condition() or time.sleep(0.05) for _ in range(1200))


KILLED = """
import os, sys
from pathlib import Path
import multiprocessing
import numpy as np
from pcls.data.order import Order
from pcls.data.pipeline import Workers, training_batches
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.folder import open_folder

if __name__ == "__main__":
    source = open_folder(Path(sys.argv[1]))[0]
    options = {"order": Order(len(source), 4, 5), "rows": {4: np.arange(4)}, "random_crop": True, "steps": range(10**6)}
    size = Preprocessing(6, 5, 3, (0.0,) * 3, (1.0,) * 3)
    with training_batches(source, size, workers=Workers(1, processes=1), **options) as batches:
        next(batches)
        print(multiprocessing.active_children()[0].pid, flush=True)
        os.kill(os.getpid(), 9)
"""


@pytest.mark.faults
def test_the_processes_of_a_killed_program_end_and_leave_no_memory(write_images, tmp_path):
    root = write_images({f"{'ab'[i % 2]}/{i}.png": i for i in range(6)})
    program, before = tmp_path / "killed.py", shared_memory()
    program.write_text(KILLED)
    done = subprocess.run([sys.executable, str(program), str(root)], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -9
    reader = int(done.stdout)
    assert within_seconds(lambda: not Path(f"/proc/{reader}").exists() or "Z" in status(reader))
    assert within_seconds(lambda: shared_memory() <= before)


def status(process: int) -> str:
    """Its state, as in R, S and Z."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_processes_that_die_again_and_again_end_the_run(stream, monkeypatch):
    class Dying:
        def __init__(self, *_):
            self.left = 1

        def __iter__(self):
            return self

        def __next__(self):
            raise RuntimeError("Worker process was terminated unexpectedly with exit code -9. Search the logs above")

        def close(self):
            pass

    monkeypatch.setattr("pcls.data.pipeline._iterator", Dying)
    told = []
    with stream(Workers(1, processes=4), range(30), told.append) as batches, pytest.raises(UserError) as raised:
        next(batches)
    assert len(told) == 5
    assert str(raised.value) == (
        "a process that reads images died (exit code -9) before step 1, for the 6th time; "
        "is there too little memory? write data.processes=2"
    )


def test_no_steps_are_no_batches():
    assert train(Numbers(), range(5, 5)) == []


def test_the_threads_end_with_the_block():
    before = set(threading.enumerate())
    options = {"order": Order(37, 8, 0), "rows": {8: np.arange(8)}, "random_crop": False, "steps": range(10**6)}
    with training_batches(Numbers(delay=0.001), PREPROCESSING, workers=Workers(4), **options) as batches:
        next(batches)
        assert set(threading.enumerate()) - before
    for _ in range(100):
        if not set(threading.enumerate()) - before:
            return
        time.sleep(0.05)
    raise AssertionError(set(threading.enumerate()) - before)


def test_an_error_while_reading_reaches_the_loop():
    class Failing(Numbers):
        def read(self, records, preprocessing, draws):
            raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        train(Failing(), range(3))


# Sequences


LENGTHS = np.random.default_rng(2).permutation(np.repeat([3, 5, 9], [7, 12, 4]))
PADDED = (3, 6, 9)
SEQUENCES = Preprocessing(9, 2, 1, (0.0,) * 2, (1.0,) * 2, sequence=SequenceFeatures())


def sequences() -> SequenceSource:
    """23 records whose numbers are their own number plus 1."""
    values = np.repeat(np.arange(23) + 1, LENGTHS).astype(np.float32)[:, None] * np.ones((1, 2), np.float32)
    labels = np.arange(23) % 3
    return SequenceSource(RaggedStore(values, LENGTHS, labels, "test"), ("a", "b", "c"), labels, LENGTHS, 2)


def assert_padded(batch: Batch, steps: int):
    """Each row is the number of its record for as long as it is, then zero."""
    assert (batch.image.shape[1:], batch.image.dtype) == ((steps, 2, 1), np.float32)
    assert batch.length.dtype == np.int32
    counted = np.arange(steps) < batch.length[:, None]
    rows = batch.record >= 0
    assert np.array_equal(batch.length[rows], LENGTHS[batch.record[rows]])
    expected = np.where(counted, batch.record[:, None] + 1, 0)
    assert np.array_equal(batch.image[rows, :, 1, 0], expected[rows])


@pytest.mark.parametrize("tail", ["carry", "drop", "pad"])
def test_a_batch_of_sequences_is_padded_to_the_length_of_its_bucket(tail):
    order = BucketedOrder(buckets_of(LENGTHS, PADDED), 4, 5, tail)
    sizes = BucketSizes(order, 2, 40)
    # As it is sent to reading processes.
    update_at = copy.deepcopy(sizes.update_at)
    options = {"order": order, "rows": {4: np.arange(4)}, "random_crop": False, "steps": sizes.updates_from(3)}
    with training_batches(sequences(), SEQUENCES, workers=Workers(2), update_at=update_at, **options) as batches:
        found = list(batches)
    assert len(found) == 37
    for step, batch in enumerate(found, 3):
        assert batch.record.tolist() == order.records_of_step(step)[0].tolist()
        assert batch.weight.tolist() == (batch.record >= 0).tolist()
        assert_padded(batch, order.buckets[order.place_of_step(step)[0]].steps)
    assert {batch.image.shape[1] for batch in found} == set(PADDED)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 64])
@pytest.mark.parametrize("parts", [1, 2])
def test_every_sequence_is_evaluated_once_bucket_by_bucket(batch_size, parts):
    buckets, found = buckets_of(LENGTHS, PADDED), []
    for rows in np.array_split(np.arange(batch_size), parts):
        options = {"batch_size": batch_size, "rows": rows, "threads": 0, "buckets": buckets}
        with evaluation_batches(sequences(), SEQUENCES, **options) as batches:
            found += [batch for batch in batches if len(rows)]
    counted = np.concatenate([batch.record[batch.weight > 0] for batch in found])
    assert sorted(counted.tolist()) == list(range(23))
    for batch in found:
        assert_padded(batch, next(steps for steps in PADDED if steps >= batch.length.max()))
    if parts == 1:
        assert counted.tolist() == [record for bucket in buckets for record in bucket.records.tolist()]
        assert len(found) == sum(-(-len(bucket.records) // batch_size) for bucket in buckets)


def test_without_buckets_all_sequences_are_padded_to_the_longest():
    options = {"order": Order(23, 4, 5), "rows": {4: np.arange(4)}, "random_crop": False, "steps": range(6)}
    with training_batches(sequences(), SEQUENCES, workers=Workers(0), **options) as batches:
        for batch in batches:
            assert_padded(batch, 9)
