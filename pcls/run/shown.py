"""Held-out records as pictures with what a run says of them."""

from __future__ import annotations

import numpy as np

from pcls.data.dataset import Dataset
from pcls.data.decode import visible
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.source import Records
from pcls.evaluation.count import Predictions
from pcls.evaluation.sections.records import Mistake


def mistakes(dataset: Dataset, predictions: Predictions, places: np.ndarray) -> list[Mistake]:
    """Some predicted records with thumbnails, in the order of `places` among the predictions."""
    if not len(places):
        return []
    _, pictures = read_shown(dataset, predictions.records[places])
    return [
        mistake_of(dataset, predictions, place, picture)
        for place, picture in zip(places.tolist(), pictures, strict=True)
    ]


def read_shown(dataset: Dataset, records: np.ndarray) -> tuple[Records, list[np.ndarray]]:
    """Held-out records as the model sees them, and a picture of each, uint8 [height, width, 1 or 3]."""
    read = dataset.evaluation.read(records, dataset.preprocessing, None)
    if read.lengths is None:
        return read, [visible(image) for image in read.images]
    pairs = zip(read.images, read.lengths.tolist(), strict=True)
    return read, [picture_of(sequence, length, dataset.preprocessing) for sequence, length in pairs]


def mistake_of(dataset: Dataset, predictions: Predictions, place: int, picture: np.ndarray) -> Mistake:
    """What is said of the record at a place among the predictions."""
    return Mistake(
        thumbnail=picture,
        record=dataset.evaluation.name(int(predictions.records[place])),
        label=int(predictions.labels[place]),
        predicted=int(predictions.predicted[place]),
        probability=float(predictions.probability[place]),
        label_probability=float(np.exp(-predictions.nll[place])),
    )


def picture_of(sequence: np.ndarray, length: int, preprocessing: Preprocessing) -> np.ndarray:
    """A sequence as a picture: time to the right, the first feature at the bottom, grey levels of 3 deviations.

    Args:
      sequence: [steps, features, 1] float32.
      length: steps that count.
      preprocessing: of the sequences.

    Returns:
      [features, length, 1] uint8.
    """
    mean, std = (np.asarray(values)[:, None] for values in (preprocessing.mean, preprocessing.std))
    levels = ((sequence[:length] - mean) / std * (1 / 6) + 0.5) * 255
    return upright(levels.clip(0, 255).astype(np.uint8))


def upright(steps: np.ndarray) -> np.ndarray:
    """Values of [steps, features, ...] in their places of a picture: time to the right, the first feature below."""
    return steps.swapaxes(0, 1)[::-1]
