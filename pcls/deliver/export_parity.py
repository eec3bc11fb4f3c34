"""What an exported file says beside what the model says that it was made of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pcls.data.decode import DecodeError
from pcls.data.preprocessing import Preprocessing
from pcls.deliver.files import kinds_of, named_files
from pcls.deliver.inputs import read_pixels, read_steps
from pcls.errors import UserError
from pcls.run.evaluate import open_run_data
from pcls.run.folder import RunFolder

RECORDS, BATCH_SIZE = 1000, 50


class Limits(NamedTuple):
    """How far two programs may be from each other.

    Attributes:
      relative: norm of the differences of logits by that of the logits.
      agreement: share of records of which both say the same class.
    """

    relative: float
    agreement: float


OF_FLOATS = Limits(1e-5, 0.999)
# A number in the middle of two steps is rounded up by one program and down by the other, and in the layers after it
# there are more. Measured: 5e-4 of cnn28, 2e-3 of ResNet-50, both trained; steps of one layer of cnn28 twice as large:
# 8e-3 and more.
OF_ROUNDED = Limits(5e-3, 0.995)


class Batch(NamedTuple):
    """Inputs as they are before normalisation.

    Attributes:
      images: [n, height, width, channels] uint8, or [n, steps, features, 1] float32.
      lengths: [n] int32, steps that count; None: pictures.
    """

    images: np.ndarray
    lengths: np.ndarray | None


@dataclass(frozen=True)
class Sample:
    """Inputs that two programs are compared on.

    Attributes:
      what: they are, in words.
      batches: of at most `BATCH_SIZE`.
    """

    what: str
    batches: Iterable[Batch]


@dataclass(frozen=True)
class Parity:
    """How near two programs are.

    Attributes:
      what: they were compared on.
      records: how many.
      largest: difference of a logit.
      relative: norm of the differences by that of the logits.
      agreeing: records of which both say the same class.
      limits: that they are held to.
    """

    what: str
    records: int
    largest: float
    relative: float
    agreeing: int
    limits: Limits

    @property
    def holds(self) -> bool:
        """Whether it is the same classifier; nothing that is not a number is."""
        return self.relative <= self.limits.relative and self.agreeing >= self.limits.agreement * self.records

    def __str__(self) -> str:
        return (
            f"over {self.records:,} {self.what}: largest difference of a logit {self.largest:.1e}, relative (L2) "
            f"{self.relative:.1e} (limit {self.limits.relative:.0e}), same class for {self.agreeing:,} "
            f"(limit {self.limits.agreement:.1%})"
        )


def compare(
    sample: Sample,
    expected: Callable[[Batch], np.ndarray],
    found: Callable[[Batch], np.ndarray],
    limits: Limits = OF_FLOATS,
) -> Parity:
    """Runs both programs, [n, classes] logits of a batch each, over a sample."""
    records, agreeing, largest, squares, differences = 0, 0, 0.0, 0.0, 0.0
    for batch in sample.batches:
        ours, theirs = (np.asarray(program(batch), np.float64) for program in (expected, found))
        if ours.shape != theirs.shape:
            raise UserError(f"the exported file gives logits {list(theirs.shape)}, and the model {list(ours.shape)}")
        gap = theirs - ours
        records += len(ours)
        agreeing += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        largest = max(largest, float(np.abs(gap).max()))
        squares, differences = squares + float(np.square(ours).sum()), differences + float(np.square(gap).sum())
    return Parity(sample.what, records, largest, float(np.sqrt(differences / squares)), agreeing, limits)


def sample_of(source: Path, images: str, preprocessing: Preprocessing) -> Sample:
    """Up to `RECORDS` inputs: those of a folder, else held-out ones of a run, else random numbers.

    Args:
      source: what is exported: a run, or a bundle, that of a run in its folder or another one.
      images: a folder of files; empty: the run's.
      preprocessing: of the model.

    Raises:
      UserError: a folder without files that can be read.
    """
    if images:
        return _files(images, preprocessing)
    for folder in (RunFolder(source), RunFolder(source.parent)):
        # Public weights have a name and no folder.
        if source.is_dir() and folder.exists():
            try:
                return _held_out(folder, preprocessing)
            except UserError as error:
                print(f"the run's data cannot be opened ({error})", file=sys.stderr, flush=True)
    return Sample(f"random {preprocessing.records} (real ones: --images FOLDER)", _random(preprocessing))


def _held_out(folder: RunFolder, preprocessing: Preprocessing) -> Sample:
    source = open_run_data(folder, folder.recipe()).evaluation
    records = np.linspace(0, len(source) - 1, min(RECORDS, len(source))).astype(np.int64)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(records), BATCH_SIZE):
            read = source.read(records[start : start + BATCH_SIZE], preprocessing, None)
            yield Batch(read.images, read.lengths)

    return Sample(f"held-out {preprocessing.records} of the run", batches())


def _files(folder: str, preprocessing: Preprocessing) -> Sample:
    if not Path(folder).is_dir():
        raise UserError(f"--images {folder}: is no folder")
    files = named_files([folder], kinds_of(preprocessing), sys.stdin.buffer)[:RECORDS]

    def batches() -> Iterator[Batch]:
        for start in range(0, len(files), BATCH_SIZE):
            yield _read(files[start : start + BATCH_SIZE], preprocessing)

    return Sample(f"{preprocessing.records} of {folder}", batches())


def _read(files: list[str], preprocessing: Preprocessing) -> Batch:
    sequence = preprocessing.sequence
    images = np.zeros((len(files), *preprocessing.shape), np.uint8 if sequence is None else np.float32)
    lengths = None if sequence is None else np.ones(len(files), np.int32)
    for place, file in enumerate(files):
        try:
            if sequence is None:
                images[place] = read_pixels(file, preprocessing)
            else:
                assert lengths is not None
                steps = read_steps(file, sequence, preprocessing.width, preprocessing.height)
                images[place, : len(steps), :, 0], lengths[place] = steps, len(steps)
        except DecodeError as error:
            raise UserError(f"{file}: cannot be read ({error}); take it out of the folder of --images") from error
    return Batch(images, lengths)


def _random(preprocessing: Preprocessing) -> Iterator[Batch]:
    rng = np.random.default_rng(0)
    for _ in range(RECORDS // BATCH_SIZE):
        shape = (BATCH_SIZE, *preprocessing.shape)
        if preprocessing.sequence is None:
            yield Batch(rng.integers(0, 256, shape, np.uint8), None)
            continue
        lengths = rng.integers(1, preprocessing.height + 1, BATCH_SIZE).astype(np.int32)
        mean, std = (np.array(values)[:, None] for values in (preprocessing.mean, preprocessing.std))
        counted = np.arange(preprocessing.height) < lengths[:, None]
        values = rng.normal(mean, std, shape) * counted[:, :, None, None]
        yield Batch(values.astype(np.float32), lengths)
