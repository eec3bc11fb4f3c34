"""Host batches through Grain. One element is one global step, so the state of the input is the step number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from pcls.data.order import evaluation_records, records_of_step
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.source import CropRng, Source

PREFETCHED_BATCHES = 8


class Batch(NamedTuple):
    """A batch, or this process's rows of it: numpy arrays on the host, jax arrays on the devices.

    Attributes:
      image: [batch, height, width, channels] uint8: a quarter of float32's bytes; normalised on the device.
      label: [batch] int32.
      weight: [batch] float32; 0 for padding and for records that could not be decoded.
      record: [batch] int32 record numbers; -1 for padding.
      epoch: [batch] int32; a record's augmentation is a function of the seed, this and its number.
    """

    image: Any
    label: Any
    weight: Any
    record: Any
    epoch: Any


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
    batch_size: int,
    rows: np.ndarray,
    seed: int,
    random_crop: bool,
    steps: range,
    workers: int,
    size_at: Callable[[int], int] | None = None,
) -> Iterator[Iterator[Batch]]:
    """Streams training batches, read ahead by threads; close it by leaving the `with` block.

    Args:
      source: what is trained on.
      preprocessing: size of the images.
      batch_size: of the global batch.
      rows: the rows of the global batch that this process feeds.
      seed: of order and crops.
      random_crop: cut files by random crops instead of the evaluation's.
      steps: the global steps wanted, from 0.
      workers: threads; 0: read when asked, which is faster where reading is a copy out of memory.
      size_at: height and width at a step; None: those of `preprocessing`.
    """

    def batch(step: int) -> Batch:
        records, epochs = records_of_step(step, batch_size=batch_size, size=len(source), seed=seed)
        records, epochs = records[rows], epochs[rows]
        rng: CropRng = (lambda i: np.random.default_rng((seed, epochs[i], records[i]))) if random_crop else None
        size = size_at(step) if size_at else None
        sized = replace(preprocessing, height=size, width=size) if size else preprocessing
        return _read(source, sized, records, epochs, rng)

    with _read_ahead(batch, steps, workers) as batches:
        yield batches


def training_places(*, size: int, batch_size: int, rows: np.ndarray, seed: int, steps: range) -> Iterator[Places]:
    """The same batches without their images, for a set of `size` records that lives on the devices."""
    for step in steps:
        records, epochs = records_of_step(step, batch_size=batch_size, size=size, seed=seed)
        yield Places(records[rows].astype(np.int32), epochs[rows].astype(np.int32))


@contextmanager
def evaluation_batches(
    source: Source, preprocessing: Preprocessing, *, batch_size: int, rows: np.ndarray, workers: int
) -> Iterator[Iterator[Batch]]:
    """Streams every record once, in file order; the last batch is filled up with weight 0."""

    def batch(index: int) -> Batch:
        records = evaluation_records(index, batch_size=batch_size, size=len(source))[rows]
        return _read(source, preprocessing, records, np.zeros_like(records), None)

    with _read_ahead(batch, range(-(-len(source) // batch_size)), workers) as batches:
        yield batches


def _read(source: Source, preprocessing: Preprocessing, records: np.ndarray, epochs: np.ndarray, rng: CropRng) -> Batch:
    # Padding reads record 0 like any other: rare, and it keeps one shape and one path.
    read = source.read(np.maximum(records, 0), preprocessing, rng)
    weight = (read.decoded & (records >= 0)).astype(np.float32)
    return Batch(read.images, read.labels, weight, records.astype(np.int32), epochs.astype(np.int32))


@contextmanager
def _read_ahead(batch: Callable[[int], Batch], indices: range, workers: int) -> Iterator[Iterator[Batch]]:
    if not flags.FLAGS.is_parsed():
        # Grain reads absl flags, which fail in a program that never parsed any.
        flags.FLAGS.mark_as_parsed()
    dataset = grain.MapDataset.range(indices.start, indices.stop).map(batch)
    ahead = max(PREFETCHED_BATCHES, workers) if workers else 0
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=ahead)
    batches = iter(dataset.to_iter_dataset(options))
    try:
        yield batches
    finally:
        batches.close()
