"""Prediction for files and arrays of images or sequences, from a bundle alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pcls.data.augment import normalise
from pcls.data.decode import DecodeError, convertible, decode, fit_pixels
from pcls.data.preprocessing import GREY, RGB, Preprocessing, SequenceFeatures
from pcls.data.sources.arrays import DAMAGED_HEADER
from pcls.data.sources.audio import check_audio, log_mel
from pcls.data.sources.folder import read_file
from pcls.data.sources.source import Unreadable
from pcls.errors import first_line
from pcls.evaluation.thresholds import probabilities as label_probabilities
from pcls.nn.module import Arrays
from pcls.pretrained.bundle import Bundle

BATCH_SIZE = 32
# Of a sequence; a batch of such takes half a GB.
MOST_NUMBERS = 2**22

Picture = str | Path | np.ndarray


@dataclass(frozen=True)
class Prediction:
    """The answer for one image or sequence.

    Attributes:
      path: of the file, or `#<place>` of an array.
      label: the most probable class; empty where the file could not be read.
      probability: of that class, 0 to 1.
      probabilities: of all classes, in the order of `Classifier.class_names`; where records carry several labels each
        by itself.
      error: why it could not be read; empty where it was.
      labels: the classes that it is given: the most probable one; or, where records carry several labels, those that
        reach their threshold, the most probable first, which may be none.
    """

    path: str
    label: str
    probability: float
    probabilities: tuple[float, ...]
    error: str
    labels: tuple[str, ...] = ()


class Classifier:
    """A model ready to predict."""

    def __init__(self, bundle: Bundle):
        self.class_names = bundle.class_names
        self.thresholds = bundle.thresholds
        self.preprocessing = bundle.preprocessing
        definition, dtype = bundle.definition(), jnp.dtype(bundle.precision)
        self._any_length = definition.takes_lengths
        calibration = bundle.calibration
        self._params, self._stats = jax.device_put((dict(bundle.params), dict(bundle.stats)))

        @jax.jit
        def answers(params: Arrays, stats: Arrays, images: jax.Array, lengths: jax.Array | None) -> jax.Array:
            """Probabilities; where records carry several labels logits, which thresholds were chosen by."""
            inputs = normalise(images, bundle.preprocessing, dtype, lengths)
            logits = definition.apply(params, stats, inputs, lengths=lengths)[0].astype(jnp.float32)
            if bundle.thresholds:
                return logits
            return jax.nn.softmax(logits if calibration is None else calibration(logits))

        self._answers = answers

    def predict(self, images: Picture | Iterable[Picture]) -> list[Prediction]:
        """Classifies images or sequences, in their order.

        Args:
          images: paths of JPEG, PNG or WebP files, or arrays [height, width] or [height, width, 1 or 3] uint8; one or
            many. Of a model that sees other channels: arrays [height, width, channels] uint8, and paths of NPY files.
            Of a model of sequences: arrays [steps, features], of numbers as it was trained with, and paths of WAV files
            where it was trained with sound, else of NPY files. An unreadable one gives a prediction with `error`; the
            others are not disturbed.
        """
        return list(self.stream([images] if isinstance(images, str | Path | np.ndarray) else images))

    def stream(self, images: Iterable[Picture]) -> Iterator[Prediction]:
        """Like `predict`, batch by batch, for more images than memory holds."""
        remaining, start = iter(images), 0
        while chunk := list(islice(remaining, BATCH_SIZE)):
            yield from self._predict_batch(chunk, start)
            start += len(chunk)

    def _predict_batch(self, pictures: Sequence[Picture], start: int) -> Iterator[Prediction]:
        read = [self._read(picture) for picture in pictures]
        batch = _sequences if self.preprocessing.sequence else _pixels
        images, lengths = batch([None if isinstance(one, str) else one for one in read], self.preprocessing)
        answers = np.asarray(self._answers(self._params, self._stats, images, lengths))
        probabilities = label_probabilities(answers) if self.thresholds else answers.astype(np.float64)
        for index, (picture, one, row) in enumerate(zip(pictures, read, probabilities, strict=False)):
            path = f"#{start + index}" if isinstance(picture, np.ndarray) else str(picture)
            if isinstance(one, str):
                yield Prediction(path, "", 0.0, (), one)
            else:
                best = int(row.argmax())
                name = self.class_names[best]
                yield Prediction(path, name, float(row[best]), tuple(map(float, row)), "", self._given(row))

    def _given(self, row: np.ndarray) -> tuple[str, ...]:
        """The names of the classes that a record is given, by the probabilities of all."""
        if not self.thresholds:
            return (self.class_names[int(row.argmax())],)
        falling = np.argsort(-row, kind="stable")
        return tuple(self.class_names[label] for label in falling if row[label] >= self.thresholds[label])

    def _read(self, picture: Picture) -> np.ndarray | str:
        """What the file or array holds, or why it cannot be had."""
        try:
            if self.preprocessing.sequence is None:
                return _picture(picture, self.preprocessing)
            longest = MOST_NUMBERS // self.preprocessing.width if self._any_length else self.preprocessing.height
            return _sequence(picture, self.preprocessing.sequence, self.preprocessing.width, longest)
        except DecodeError as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)


def _pixels(pictures: Sequence[np.ndarray | None], preprocessing: Preprocessing) -> tuple[np.ndarray, None]:
    """A batch; always the same shape: one compilation, however many images there are."""
    images = np.zeros((BATCH_SIZE, *preprocessing.shape), np.uint8)
    for index, picture in enumerate(pictures):
        if picture is not None:
            images[index] = picture
    return images, None


def _sequences(sequences: Sequence[np.ndarray | None], preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """A batch, and its lengths; padded as in training, longer ones to the next multiple of that."""
    longest = max((len(sequence) for sequence in sequences if sequence is not None), default=1)
    steps = -(-longest // preprocessing.height) * preprocessing.height
    images = np.zeros((BATCH_SIZE, steps, preprocessing.width, 1), np.float32)
    lengths = np.ones(BATCH_SIZE, np.int32)
    for index, sequence in enumerate(sequences):
        if sequence is not None:
            images[index, : len(sequence), :, 0] = sequence
            lengths[index] = len(sequence)
    return images, lengths


def _picture(picture: Picture, preprocessing: Preprocessing) -> np.ndarray:
    """[height, width, channels] uint8; DecodeError where it cannot be had."""
    wanted = preprocessing.channels
    needed = f"uint8 [height, width{'] or [height, width, 1 or 3' if wanted in (GREY, RGB) else f', {wanted}'}]"
    if not isinstance(picture, np.ndarray):
        if wanted in (GREY, RGB):
            return decode(_bytes(picture), preprocessing)
        picture = _npy(Path(picture), needed)
    pixels = picture[..., None] if picture.ndim == 2 else picture
    if pixels.dtype != np.uint8 or not pixels.size or pixels.ndim != 3 or not convertible(pixels.shape[2], wanted):
        raise DecodeError(f"{picture.dtype}{list(picture.shape)}; {needed}")
    return fit_pixels(pixels, preprocessing)


def _sequence(picture: Picture, features: SequenceFeatures, width: int, longest: int) -> np.ndarray:
    """[steps, width] float32; DecodeError where it cannot be had, or is longer than the model can see."""
    if isinstance(picture, np.ndarray):
        values = picture
    elif features.kind == "log_mel":
        check_audio(features)
        values = log_mel(_bytes(picture), features)
    else:
        values = _npy(Path(picture), f"numbers [steps, {width}]")
    if values.dtype.kind not in "fiu" or values.ndim != 2 or values.shape[1] != width or not len(values):
        raise DecodeError(f"{values.dtype}{list(values.shape)}; numbers [steps, {width}] are needed")
    if len(values) > longest:
        raise DecodeError(f"{len(values):,} steps; a prediction takes {longest:,} at most")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise DecodeError("holds a value that is not finite")
    return values


def _npy(path: Path, needed: str) -> np.ndarray:
    # A pipe would be waited for without end.
    if path.exists() and not path.is_file():
        raise DecodeError("not a file")
    try:
        # Mapped: a header that claims more than the file holds is refused before memory is taken.
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, *DAMAGED_HEADER) as error:
        reason = first_line(error)
        raise DecodeError(f"no .npy file, in which numpy.save puts {needed} ({reason})") from error


def _bytes(path: str | Path) -> bytes:
    data = read_file(str(path), within=None)
    if isinstance(data, Unreadable):
        raise DecodeError(data.reason)
    return data
