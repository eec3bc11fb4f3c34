"""What limits the input: the rate of each stage by itself, and of all together."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pcls.data.crops import crop_draws
from pcls.data.decode import DecodeError, decode, random_part, resized
from pcls.data.order import Order
from pcls.data.pipeline import Workers, training_batches
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.source import Source, Stored
from pcls.errors import UserError

IMAGES, ROUNDS = 128, 5
SECONDS = 3.0


@dataclass(frozen=True)
class InputRates:
    """Images/s by stage.

    Attributes:
      stages: `read`, `decode`, `crop`, `batch` and `transfer`, each by itself on one core; of pixels in memory `batch`
        and `transfer` only.
      together: of the pipeline as a training runs it, with all its threads.
      threads: of it.
      cores: that this process may use.
      kilobytes: mean size of a record as it is stored.
      undecodable: of the images looked at, those that could not be decoded.
    """

    stages: dict[str, float]
    together: float
    threads: int
    cores: int
    kilobytes: float
    undecodable: int

    @property
    def shares(self) -> dict[str, float]:
        """Of the time that one image takes, the share of each stage."""
        whole = sum(1 / rate for rate in self.stages.values())
        return {stage: 1 / rate / whole for stage, rate in self.stages.items()}

    @property
    def limit(self) -> str:
        """The stage that takes the most time."""
        return min(self.stages, key=lambda stage: self.stages[stage])

    def hosts(self, wanted: float) -> int:
        """How many machines like this one read so many images/s."""
        return math.ceil(wanted / self.together)


def measure_input(
    source: Source, preprocessing: Preprocessing, *, threads: int, cores: int, transfer: Callable[[np.ndarray], None]
) -> InputRates:
    """Measures random training crops of a source.

    Args:
      source: what would be trained on.
      preprocessing: the size of the images.
      threads: of the pipeline; 0: none, for pixels that lie in memory at their size.
      cores: that this process may use.
      transfer: brings a batch of images to the devices, and waits for it.
    """
    rng = np.random.default_rng(0)
    records = [rng.integers(len(source), size=IMAGES) for _ in range(ROUNDS)]
    stored = source.__getitems__(records[0].tolist())
    if threads:
        parts, decoding = _parts(stored, preprocessing)
        if not parts:
            raise UserError(
                f"none of {IMAGES} images can be decoded, {source.name(int(records[0][0]))} among them; "
                "pcls data doctor says why"
            )
        images = [resized(part, preprocessing) for part in parts]
        stages = {
            "read": _rate(lambda number: source.__getitems__(records[number].tolist())),
            "decode": decoding,
            "crop": _rate(lambda _: [resized(part, preprocessing) for part in parts], len(parts)),
            "batch": _rate(lambda _: np.stack(images), len(images)),
        }
    else:
        images = list(source.read(records[0], preprocessing, None).images)
        stages = {"batch": _rate(lambda number: source.read(records[number], preprocessing, None))}
    batches = [np.stack(images) for _ in range(ROUNDS)]
    stages["transfer"] = _rate(lambda number: transfer(batches[number]), len(images))
    return InputRates(
        stages=stages,
        together=_pipeline_rate(source, preprocessing, threads),
        threads=threads,
        cores=cores,
        kilobytes=statistics.mean(map(_size, stored)) / 1000,
        undecodable=len(stored) - len(images),
    )


def _parts(stored: Sequence[Stored], preprocessing: Preprocessing) -> tuple[list[np.ndarray], float]:
    """What a random crop needs of each image, and the rate at which it is had."""
    parts, numbers = [], np.arange(len(stored))
    draws = crop_draws(0, numbers, numbers)
    start = time.perf_counter()
    for (image, _), of_image in zip(stored, draws, strict=True):
        if isinstance(image, np.ndarray):
            parts.append(image)
        elif isinstance(image, bytes):
            part = random_part(image, preprocessing, of_image)
            try:
                parts.append(decode(image, preprocessing, of_image) if part is None else part)
            except DecodeError:
                # Counted by who compares the lengths.
                continue
    return parts, len(stored) / (time.perf_counter() - start)


def _size(stored: Stored) -> int:
    image = stored.image
    return image.nbytes if isinstance(image, np.ndarray) else len(image) if isinstance(image, bytes) else 0


def _rate(stage: Callable[[int], object], images: int = IMAGES) -> float:
    """Images/s of a stage: the median over its rounds."""
    rates = []
    for number in range(ROUNDS):
        start = time.perf_counter()
        stage(number)
        rates.append(images / max(time.perf_counter() - start, 1e-9))
    return statistics.median(rates)


def _pipeline_rate(source: Source, preprocessing: Preprocessing, threads: int) -> float:
    """Images/s of the training's own stream over some seconds, after its first batches."""
    rows, warm_up = {IMAGES: np.arange(IMAGES)}, max(2, threads)
    order, steps = Order(len(source), IMAGES, seed=0), range(10**9)
    with training_batches(
        source, preprocessing, order=order, rows=rows, random_crop=True, steps=steps, workers=Workers(threads)
    ) as batches:
        for _ in range(warm_up):
            next(batches)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            next(batches)
            count += IMAGES
        return count / (time.perf_counter() - start)
