"""Host batches through Grain. One element is one global step, so the state of the input is the step number."""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from pcls.data.buckets import Bucket
from pcls.data.crops import crop_draws
from pcls.data.order import BucketedOrder, Order, evaluation_records
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.source import Source
from pcls.errors import UserError

PREFETCHED_BATCHES = 8
# What Grain says of it, and how often a run puts up with it.
WORKER_DIED = "Worker process was terminated unexpectedly"
MAX_DEATHS = 5
PARENT_CHECK_SECONDS = 1.0
# A prime: of neighbours in a set, many are of one class.
FILLER_DISTANCE = 7919


class Batch(NamedTuple):
    """A batch, or this process's rows of it: numpy arrays on the host, jax arrays on the devices.

    Attributes:
      image: [batch, height, width, channels] uint8: a quarter of float32's bytes; normalised on the device. A sequence
        is a picture whose rows are its steps: [batch, steps, features, 1] float32, zero after its end.
      label: [batch] int32; where records carry several labels, or none, [batch, classes] uint8 of 0 and 1.
      weight: [batch] float32; 0 for padding and for records that could not be decoded.
      record: [batch] int32 record numbers; -1 for padding.
      epoch: [batch] int32; a record's augmentation is a function of the seed, this and its number.
      length: [batch] int32, steps of each sequence that count; None: pictures.
    """

    image: Any
    label: Any
    weight: Any
    record: Any
    epoch: Any
    length: Any = None


class Workers(NamedTuple):
    """Who reads ahead.

    Attributes:
      threads: in each process; 0: read when asked, which is faster where reading is a copy out of memory.
      processes: 0: the threads are this process's own.
    """

    threads: int
    processes: int = 0


class Update(NamedTuple):
    """What one update of the model takes.

    Attributes:
      height, width: of its images; 0: as the preprocessing says. Of sequences the height is the padded length.
      batches: of the recipe's size, taken together.
    """

    height: int = 0
    width: int = 0
    batches: int = 1


class Places(NamedTuple):
    """A batch of a set that lives on the devices.

    Attributes:
      record, epoch: [batch] int32, as in `Batch`.
    """

    record: Any
    epoch: Any


@contextmanager
def training_batches(
    source: Source,
    preprocessing: Preprocessing,
    *,
    order: Order | BucketedOrder,
    rows: Mapping[int, np.ndarray],
    random_crop: bool,
    steps: Sequence[int],
    workers: Workers,
    update_at: Callable[[int], Update] = lambda step: Update(),
    warn: Callable[[str], None] | None = None,
) -> Iterator[Iterator[Batch]]:
    """Streams training batches, read ahead; close it by leaving the `with` block.

    Args:
      source: what is trained on.
      preprocessing: size of the images.
      order: which records a global step holds; its seed is that of the crops too.
      rows: number of images of a global update -> the rows of it that this process feeds.
      random_crop: cut files by random crops instead of the evaluation's.
      steps: the global steps wanted, counted from 0; those at which an update begins.
      workers: who reads.
      update_at: what the update that begins at a step takes.
      warn: hears of worker processes that died and were replaced; None: nobody does.

    Raises:
      UserError: worker processes die again and again.
    """

    def batch(step: int) -> Batch:
        update = update_at(step)
        parts = [order.records_of_step(step + number) for number in range(update.batches)]
        records, epochs = (np.concatenate(part) for part in zip(*parts, strict=True))
        # Of the whole batch: BatchNorm would see others with another number of processes.
        filled = _filled(records, partial(order.fillers, step))
        own = rows[update.batches * order.batch_size]
        records, epochs, filled = records[own], epochs[own], filled[own]
        draws = crop_draws(order.seed, epochs, filled) if random_crop else None
        return _read(source, sized(preprocessing, update), records, filled, epochs, draws)

    try:
        with closing(_read_ahead(batch, steps, workers, warn)) as batches:
            yield batches
    finally:
        if workers.processes:
            # Grain's iterators hold batches in circles: shared memory that is not given back by the end of the program.
            gc.collect()


def training_places(order: Order | BucketedOrder, *, rows: np.ndarray, steps: Sequence[int]) -> Iterator[Places]:
    """The same batches without their images, for a set that lives on the devices."""
    for step in steps:
        records, epochs = order.records_of_step(step)
        yield Places(records[rows].astype(np.int32), epochs[rows].astype(np.int32))


@contextmanager
def evaluation_batches(
    source: Source,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    rows: np.ndarray,
    threads: int,
    buckets: Sequence[Bucket] = (),
) -> Iterator[Iterator[Batch]]:
    """Streams every record once, in file order; the last batch is filled up with weight 0.

    Args:
      source, preprocessing: of the evaluation.
      batch_size: of a global batch.
      rows: of it that this process feeds.
      threads: that read ahead; 0: none.
      buckets: of sequences, one after the other, each in file order and with a last batch of its own; empty: all
        records have one size.
    """
    parts = buckets or (Bucket(preprocessing.height, np.arange(len(source))),)

    def batch(index: int) -> Batch:
        number, own = places[index]
        steps, records = parts[number].steps, parts[number].records
        chosen = evaluation_records(own, batch_size=batch_size, size=len(records))[rows]
        filled = records[_filled(chosen, lambda places: places % len(records))]
        numbers = np.where(chosen < 0, -1, filled)
        return _read(source, replace(preprocessing, height=steps), numbers, filled, np.zeros_like(numbers), None)

    places = [(number, own) for number, part in enumerate(parts) for own in range(-(-len(part.records) // batch_size))]
    with closing(_read_ahead(batch, range(len(places)), Workers(threads), None)) as batches:
        yield batches


def sized(preprocessing: Preprocessing, update: Update) -> Preprocessing:
    """The preprocessing at the size that an update names."""
    return replace(
        preprocessing,
        height=update.height or preprocessing.height,
        width=update.width or preprocessing.width,
    )


def _read(
    source: Source,
    preprocessing: Preprocessing,
    records: np.ndarray,
    filled: np.ndarray,
    epochs: np.ndarray,
    draws: np.ndarray | None,
) -> Batch:
    read = source.read(filled, preprocessing, draws)
    weight = (read.decoded & (records >= 0)).astype(np.float32)
    return Batch(read.images, read.labels, weight, records.astype(np.int32), epochs.astype(np.int32), read.lengths)


def _filled(records: np.ndarray, fillers: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The records, and others where a step is filled up: they weigh nothing, but BatchNorm sees them as it sees all."""
    return np.where(records < 0, fillers(np.arange(len(records)) * FILLER_DISTANCE), records)


def _read_ahead(
    batch: Callable[[int], Batch], steps: Sequence[int], workers: Workers, warn: Callable[[str], None] | None
) -> Generator[Batch]:
    """The batches in order. A worker process that dies is replaced, from the first batch that was not given out on."""
    given = deaths = 0
    while given < len(steps):
        batches = _iterator(batch, steps[given:], workers)
        try:
            for read in batches:
                # Out of the memory that is shared with the process that read it: whoever keeps a batch, as jax may,
                # would keep that from being given back at the end.
                yield Batch(*map(_copied, read)) if workers.processes else read
                given += 1
            return
        except RuntimeError as error:
            if WORKER_DIED not in str(error):
                raise
            deaths += 1
            _tell_of_death(deaths, steps[given], workers, warn, error)
        finally:
            batches.close()


def _copied(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else np.array(array)


def _iterator(batch: Callable[[int], Batch], steps: Sequence[int], workers: Workers) -> Any:
    if not flags.FLAGS.is_parsed():
        # Grain reads absl flags, which fail in a program that never parsed any.
        flags.FLAGS.mark_as_parsed()
    dataset = grain.MapDataset.range(len(steps)).map(lambda index: batch(steps[index]))
    ahead = max(PREFETCHED_BATCHES, workers.threads) if workers.threads else 0
    if not workers.processes:
        return iter(dataset.to_iter_dataset(grain.ReadOptions(workers.threads, ahead)))
    own = grain.ReadOptions(num_threads=workers.threads, prefetch_buffer_size=workers.threads)
    ahead = -(-PREFETCHED_BATCHES // workers.processes)
    processes = grain.MultiprocessingOptions(num_workers=workers.processes, per_worker_buffer_size=ahead)
    return iter(dataset.to_iter_dataset(own).mp_prefetch(processes, worker_init_fn=_end_with_parent))


def _end_with_parent(number: int, count: int) -> None:
    """Ends a reading process soon after the program that started it, also where that was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        # At once: what waits for a queue that nobody empties would wait without end.
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _tell_of_death(
    deaths: int, step: int, workers: Workers, warn: Callable[[str], None] | None, error: RuntimeError
) -> None:
    code = re.search(r"exit code (-?\d+)", str(error))
    text = f"a process that reads images died (exit code {code[1] if code else 'unknown'}) before step {step + 1:,}"
    if deaths > MAX_DEATHS:
        fewer = f"is there too little memory? write data.processes={workers.processes // 2}"
        raise UserError(f"{text}, for the {deaths}th time; {fewer}") from error
    if warn:
        warn(f"{text}; started again ({deaths} of at most {MAX_DEATHS} times)")
