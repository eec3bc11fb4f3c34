"""Pictures of what speaks for an answer."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from pcls.config.model import ModelSection
from pcls.data.decode import visible
from pcls.deliver.classifier import Classifier
from pcls.errors import UserError
from pcls.evaluation.saliency import coloured, patch_relevance, step_relevance
from pcls.models.reading import CUSTOMARY_PATCH
from pcls.run.explain import method_text, reading, relevance
from pcls.run.shown import picture_of, upright

# The longer side of a picture, in pixels, that smaller ones are enlarged to by a whole factor.
SIDE = 224


class Explainer:
    """Draws what speaks for a class, as the report of a run does.

    Args:
      classifier: whose answers are explained.
    """

    def __init__(self, classifier: Classifier):
        bundle = classifier.bundle
        self._classifier = classifier
        self._section = ModelSection.model_validate({"name": bundle.model, **bundle.options})
        self._order = reading(self._section)
        # The arrays are arguments: as constants they would be compiled in.
        self._relevance = jax.jit(
            functools.partial(
                relevance, bundle.definition(), bundle.preprocessing, bundle.precision, self._section, self._order
            )
        )
        self._arrays = jax.device_put((dict(bundle.params), dict(bundle.stats)))

    @property
    def method(self) -> str:
        """How it is found, in words."""
        sequences = self._classifier.preprocessing.sequence is not None
        return method_text(self._section, self._order, sequences=sequences)

    def picture(self, one: np.ndarray, number: int) -> np.ndarray:
        """One input in pale grey, with what speaks for a class in blue and what against it in orange.

        Args:
          one: from `Classifier.read`.
          number: of the class.

        Returns:
          [height, width, 3] uint8; of a sequence time to the right.
        """
        images, lengths = self._classifier.batch([one], 1)
        found = np.asarray(self._relevance(*self._arrays, images, lengths, np.array([number], np.int32)))[0]
        if lengths is None:
            return coloured(visible(images[0]), self._heat(found))
        length = int(lengths[0])
        picture = picture_of(images[0], length, self._classifier.preprocessing)
        return coloured(picture, upright(self._heat(found[:length])))

    def _heat(self, found: np.ndarray) -> np.ndarray:
        """[height, width] of the relevance [height, width, channels]."""
        if self._order == "rows":
            return np.broadcast_to(step_relevance(found, "rows")[:, None], found.shape[:2])
        if self._order == "columns":
            return np.broadcast_to(step_relevance(found, "columns")[None], found.shape[:2])
        if self._order == "patches":
            return patch_relevance(found, self._section.patch or CUSTOMARY_PATCH)
        return np.asarray(found.sum(-1))


def picture_name(place: int, path: str) -> str:
    """`000012-cat_3.png`: sorted as the answers are, and a name that any disk takes."""
    return f"{place:06}-{re.sub('[^A-Za-z0-9._-]', '_', Path(path).stem)[:60]}.png"


def save_picture(pixels: np.ndarray, file: Path) -> None:
    """Writes pixels [height, width, 3] as PNG, small ones enlarged; UserError where it cannot be."""
    factor = max(1, SIDE // max(pixels.shape[:2]))
    image = Image.fromarray(pixels.repeat(factor, 0).repeat(factor, 1))
    try:
        image.save(file, "PNG")
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror or error})") from error
