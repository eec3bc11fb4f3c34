"""A trained model that answers, from a bundle alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pcls.data.augment import normalise
from pcls.data.decode import DecodeError
from pcls.data.preprocessing import Preprocessing
from pcls.deliver.inputs import Picture, read_pixels, read_steps, reading_threads
from pcls.evaluation.thresholds import probabilities as label_probabilities
from pcls.models.folding import fold_batch_norm
from pcls.nn.module import Arrays
from pcls.pretrained.bundle import Bundle

BATCH_SIZE = 32
# Inputs that a thread reads in one go: small files take less time than it takes to hand them over.
READ_TOGETHER = 8
# Of a sequence; a batch of such takes half a GB.
MOST_NUMBERS = 2**22


@dataclass(frozen=True)
class Prediction:
    """The answer for one image or sequence.

    Attributes:
      path: of the file, or `#<place>` of an array or of bytes.
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


@dataclass(frozen=True)
class _Batch:
    """Pictures that are answered together.

    Attributes:
      start: the place of the first.
      pictures: at most `BATCH_SIZE`.
      parts: what threads read of them, in order.
    """

    start: int
    pictures: Sequence[Picture]
    parts: Sequence[Future[list[np.ndarray | str]]] = ()

    def reading(self, pool: ThreadPoolExecutor, read: Callable[[Picture], np.ndarray | str]) -> _Batch:
        """The same, being read."""
        parts = [self.pictures[place : place + READ_TOGETHER] for place in range(0, len(self.pictures), READ_TOGETHER)]
        return replace(self, parts=[pool.submit(lambda some: list(map(read, some)), part) for part in parts])


def _batches(pictures: Iterable[Picture]) -> Iterator[_Batch]:
    remaining = iter(pictures)
    for start in count(0, BATCH_SIZE):
        if not (some := list(islice(remaining, BATCH_SIZE))):
            return
        yield _Batch(start, some)


class Classifier:
    """A model ready to predict.

    `predict` and `stream` do all of it. Who has batches of his own takes the parts: `read` each input, ask for the
    `probabilities` of some together, and make a `prediction` of each row.

    Attributes:
      bundle: what it was made of.
      class_names: in the order of the probabilities.
      thresholds: of each class where records carry several labels; empty: a record has one.
      preprocessing: of the inputs.
    """

    def __init__(self, bundle: Bundle):
        self.bundle = bundle
        self.class_names = bundle.class_names
        self.thresholds = bundle.thresholds
        self.preprocessing = bundle.preprocessing
        definition, params = bundle.runnable()
        stats = dict(bundle.stats)
        if bundle.quantization is None:
            definition, params, stats = fold_batch_norm(definition, params, stats)
        self._any_length = definition.takes_lengths
        calibration, dtype = bundle.calibration, jnp.dtype(bundle.precision)
        self._params, self._stats = jax.device_put((params, stats))

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
          images: one or many of what `read` takes, or an array of many. An unreadable one gives a prediction with
            `error`; the others are not disturbed.
        """
        if isinstance(images, np.ndarray):
            rank = 2 if self.preprocessing.sequence else 3
            return list(self.stream([images] if images.ndim <= rank else images))
        return list(self.stream([images] if isinstance(images, Picture) else images))

    def stream(self, images: Iterable[Picture]) -> Iterator[Prediction]:
        """Like `predict`, batch by batch, for more images than memory holds.

        Threads read one batch while the model answers another: the inputs of two are taken ahead.
        """
        waiting = _batches(images)
        if (first := next(waiting, None)) is None:
            return
        pool = ThreadPoolExecutor(reading_threads(first.pictures, self.preprocessing), "pcls-read")
        batches: deque[_Batch] = deque()
        try:
            for batch in chain([first], waiting):
                batches.append(batch.reading(pool, self._read))
                if len(batches) > 1:
                    yield from self._answers_of(batches.popleft())
            for batch in batches:
                yield from self._answers_of(batch)
        finally:
            # Whoever has enough does not wait for more.
            pool.shutdown(cancel_futures=True)

    def read(self, picture: Picture) -> np.ndarray:
        """Reads one input, decodes it and brings it to size.

        Args:
          picture: the path of a JPEG, PNG or WebP file, its content as bytes, a Pillow image, or an array [height,
            width] or [height, width, 1 or 3] uint8. Of a model that sees other channels: an array [height, width,
            channels] uint8, or a NPY file. Of a model of sequences: an array [steps, features], of numbers as it was
            trained with, or a WAV file where it was trained with sound, else a NPY file.

        Returns:
          [height, width, channels] uint8, or [steps, features] float32.

        Raises:
          DecodeError: why it cannot be had, in a few words and without a path.
        """
        if self.preprocessing.sequence is None:
            return read_pixels(picture, self.preprocessing)
        longest = MOST_NUMBERS // self.preprocessing.width if self._any_length else self.preprocessing.height
        return read_steps(picture, self.preprocessing.sequence, self.preprocessing.width, longest)

    def probabilities(self, inputs: Sequence[np.ndarray], size: int = BATCH_SIZE) -> np.ndarray:
        """The calibrated probabilities of each input; where records carry several labels, of each label by itself.

        Args:
          inputs: from `read`, at most `size`.
          size: of the batch that they are padded to. One compilation each; of sequences one each and each length that
            they are padded to, a multiple of that of training.

        Returns:
          [inputs, classes] float64.

        Raises:
          ValueError: more than `size`, or what `read` would not return.
        """
        images, lengths = self.batch(inputs, size)
        answers = np.asarray(self._answers(self._params, self._stats, images, lengths))[: len(inputs)]
        return label_probabilities(answers) if self.thresholds else answers.astype(np.float64)

    def batch(self, inputs: Sequence[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Inputs padded to a batch, and the steps of each that count; None: pictures.

        Args:
          inputs, size: as `probabilities` takes them.

        Returns:
          [size, height, width, channels] uint8 and None, or [size, steps, features, 1] float32 and [size] int32.
        """
        if len(inputs) > size:
            raise ValueError(f"{len(inputs)} inputs in a batch of {size}")
        batch = _sequences if self.preprocessing.sequence else _pixels
        return batch(inputs, size, self.preprocessing)

    def compile(self, size: int = BATCH_SIZE) -> None:
        """Compiles for batches of that size, of sequences as long as in training: no answer waits for it then."""
        self.probabilities([], size)

    def prediction(self, path: str, probabilities: np.ndarray) -> Prediction:
        """What a row of `probabilities` says.

        Args:
          path: of the file, or what else it is called.
          probabilities: [classes].
        """
        best = int(probabilities.argmax())
        label, shares = self.class_names[best], tuple(probabilities.tolist())
        labels = self._reaching(probabilities) if self.thresholds else (label,)
        return Prediction(path, label, shares[best], shares, "", labels)

    def _reaching(self, probabilities: np.ndarray) -> tuple[str, ...]:
        """The names of the classes that reach their threshold, the most probable first."""
        falling = np.argsort(-probabilities, kind="stable")
        return tuple(self.class_names[label] for label in falling if probabilities[label] >= self.thresholds[label])

    def _answers_of(self, batch: _Batch) -> Iterator[Prediction]:
        read = [one for part in batch.parts for one in part.result()]
        good = [one for one in read if not isinstance(one, str)]
        # Who asks for one alone does not wait for a batch; all others share one compilation.
        size = 1 if batch.start == 0 and len(batch.pictures) == 1 else BATCH_SIZE
        rows = iter(self.probabilities(good, size) if good else ())
        for index, (picture, one) in enumerate(zip(batch.pictures, read, strict=True), batch.start):
            path = str(picture) if isinstance(picture, str | Path) else f"#{index}"
            yield Prediction(path, "", 0.0, (), one) if isinstance(one, str) else self.prediction(path, next(rows))

    def _read(self, picture: Picture) -> np.ndarray | str:
        """What the file or array holds, or why it cannot be had."""
        try:
            return self.read(picture)
        except DecodeError as error:
            return str(error)


def _pixels(pictures: Sequence[np.ndarray], size: int, preprocessing: Preprocessing) -> tuple[np.ndarray, None]:
    """A batch of pictures."""
    images = np.zeros((size, *preprocessing.shape), np.uint8)
    for index, picture in enumerate(pictures):
        if picture.shape != images.shape[1:] or picture.dtype != np.uint8:
            raise ValueError(
                f"input {index} is {picture.dtype}{list(picture.shape)}, and uint8{list(images.shape[1:])} is needed, "
                "as Classifier.read gives it"
            )
        images[index] = picture
    return images, None


def _sequences(
    sequences: Sequence[np.ndarray], size: int, preprocessing: Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    """A batch, and its lengths; padded as in training, longer ones to the next multiple of that."""
    for index, sequence in enumerate(sequences):
        if sequence.ndim != 2 or sequence.shape[1] != preprocessing.width:
            raise ValueError(
                f"input {index} is {list(sequence.shape)}, and [steps, {preprocessing.width}] is needed, as "
                "Classifier.read gives it"
            )
    longest = max(map(len, sequences), default=1)
    steps = -(-longest // preprocessing.height) * preprocessing.height
    images = np.zeros((size, steps, preprocessing.width, 1), np.float32)
    lengths = np.ones(size, np.int32)
    for index, sequence in enumerate(sequences):
        images[index, : len(sequence), :, 0] = sequence
        lengths[index] = len(sequence)
    return images, lengths
