"""Prediction for image files and arrays, from a bundle alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from pcls.data.augment import normalise
from pcls.data.decode import DecodeError, decode, fit
from pcls.data.sources.folder import read_file
from pcls.data.sources.source import Unreadable
from pcls.nn.module import Arrays
from pcls.pretrained.bundle import Bundle

BATCH_SIZE = 32

Picture = str | Path | np.ndarray


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
      path: of the file, or `#<place>` of an array.
      label: the most probable class; empty where the image could not be read.
      probability: of that class, 0 to 1.
      probabilities: of all classes, in the order of `Classifier.class_names`.
      error: why the image could not be read; empty where it was.
    """

    path: str
    label: str
    probability: float
    probabilities: tuple[float, ...]
    error: str


class Classifier:
    """A model ready to predict."""

    def __init__(self, bundle: Bundle):
        self.class_names = bundle.class_names
        self.preprocessing = bundle.preprocessing
        definition, dtype = bundle.definition(), jnp.dtype(bundle.precision)
        self._params, self._stats = jax.device_put((dict(bundle.params), dict(bundle.stats)))

        @jax.jit
        def probabilities(params: Arrays, stats: Arrays, images: jax.Array) -> jax.Array:
            inputs = normalise(images, bundle.preprocessing, dtype)
            return jax.nn.softmax(definition.apply(params, stats, inputs)[0].astype(jnp.float32))

        self._probabilities = probabilities

    def predict(self, images: Picture | Iterable[Picture]) -> list[Prediction]:
        """Classifies images, in their order.

        Args:
          images: paths of JPEG, PNG or WebP files, or arrays [height, width] or [height, width, 1 or 3] uint8; one or
            many. An unreadable one gives a prediction with `error`; the others are not disturbed.
        """
        return list(self.stream([images] if isinstance(images, str | Path | np.ndarray) else images))

    def stream(self, images: Iterable[Picture]) -> Iterator[Prediction]:
        """Like `predict`, batch by batch, for more images than memory holds."""
        remaining, start = iter(images), 0
        while chunk := list(islice(remaining, BATCH_SIZE)):
            yield from self._predict_batch(chunk, start)
            start += len(chunk)

    def _predict_batch(self, pictures: Sequence[Picture], start: int) -> Iterator[Prediction]:
        shape = (BATCH_SIZE, self.preprocessing.height, self.preprocessing.width, self.preprocessing.channels)
        # Always the same shape: one compilation, however many images there are.
        pixels, errors = np.zeros(shape, np.uint8), [""] * len(pictures)
        for index, picture in enumerate(pictures):
            try:
                pixels[index] = self._pixels(picture)
            except DecodeError as error:
                errors[index] = str(error)
            except OSError as error:
                errors[index] = error.strerror or str(error)
        probabilities = np.asarray(self._probabilities(self._params, self._stats, pixels), np.float64)
        for index, (picture, row) in enumerate(zip(pictures, probabilities, strict=False)):
            path = f"#{start + index}" if isinstance(picture, np.ndarray) else str(picture)
            if errors[index]:
                yield Prediction(path, "", 0.0, (), errors[index])
            else:
                best = int(row.argmax())
                yield Prediction(path, self.class_names[best], float(row[best]), tuple(map(float, row)), "")

    def _pixels(self, picture: Picture) -> np.ndarray:
        if not isinstance(picture, np.ndarray):
            data = read_file(str(picture), within=None)
            if isinstance(data, Unreadable):
                raise DecodeError(data.reason)
            return decode(data, self.preprocessing)
        if (
            picture.dtype != np.uint8
            or not picture.size
            or picture.ndim not in (2, 3)
            or (picture.ndim == 3 and picture.shape[2] not in (1, 3))
        ):
            raise DecodeError(f"{picture.dtype}{list(picture.shape)}; uint8 [height, width] or [height, width, 1 or 3]")
        return fit(Image.fromarray(picture[..., 0] if picture.shape[2:] == (1,) else picture), self.preprocessing)
