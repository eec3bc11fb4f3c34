"""Single records on the report: pictures with what the model says of them."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from pcls.evaluation.charts import percent

MAX_LOSSES, MAX_SUSPECTS = 24, 24
MAX_THUMBNAIL = 112  # Pixels, the size on the page.
# Sides up to this stay PNG, pixel for pixel; larger pictures are photographs, which JPEG shows in a tenth of the bytes.
MAX_PIXELS_KEPT = 64
JPEG_QUALITY = 85
# Bars along time: as many as fit beside a thumbnail.
MAX_BARS = 112


@dataclass(frozen=True)
class Mistake:
    """A record with what the model says of it; usually a wrong answer.

    Attributes:
      thumbnail: uint8 [height, width, 1 or 3], as the model's preprocessing sees it or smaller.
      record: the record's name, as its source gives it.
      label: class number.
      predicted: class number.
      probability: of the predicted class, 0 to 1.
      label_probability: of the label, 0 to 1; NaN: not known.
    """

    thumbnail: np.ndarray
    record: str
    label: int
    predicted: int
    probability: float
    label_probability: float = math.nan

    def __post_init__(self) -> None:
        _check_picture(self.thumbnail, self.record)


@dataclass(frozen=True)
class Evidence:
    """What speaks for a class in one record.

    Attributes:
      of: class number.
      picture: uint8 [height, width, 3], the record with what matters in colour; None: the steps tell it.
      steps: relevance of each step, in order; empty: the picture tells it.
    """

    of: int
    picture: np.ndarray | None = None
    steps: tuple[float, ...] = ()


@dataclass(frozen=True)
class Explained:
    """A record, and what speaks for its predicted class and, where that is wrong, for its label.

    Attributes:
      shown: the record.
      evidence: one part a class.
      time: where the steps lie in the thumbnail: `down` its rows or `right` along its columns; empty: nowhere.
    """

    shown: Mistake
    evidence: tuple[Evidence, ...]
    time: Literal["down", "right", ""] = ""


def _check_picture(pixels: np.ndarray, record: str) -> None:
    shape = pixels.shape
    if pixels.dtype != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape:
        raise ValueError(
            f"thumbnail of {record} is {pixels.dtype} {list(shape)}; uint8 [height, width, 1 or 3] is needed"
        )


def top_losses(mistakes: Sequence[Mistake], limit: int = MAX_LOSSES) -> list[Mistake]:
    """Those whose label the model gives the least, of equal ones those of which it was surest; unknown ones last."""

    def order(mistake: Mistake) -> tuple[float, float]:
        own, sure = mistake.label_probability, mistake.probability
        return (own if math.isfinite(own) else 1.0, -sure if math.isfinite(sure) else 1.0)

    return sorted(mistakes, key=order)[:limit]


def record_view(mistake: Mistake, names: Sequence[str]) -> dict[str, Any]:
    """A record as the page prints it."""
    known = math.isfinite(mistake.label_probability)
    return {
        "image": picture_uri(mistake.thumbnail),
        "coarse": coarse(mistake.thumbnail),
        "record": mistake.record,
        "label": class_name(mistake.label, names),
        "predicted": class_name(mistake.predicted, names),
        "right": mistake.label == mistake.predicted,
        "probability": percent(mistake.probability, 1),
        "label_probability": percent(mistake.label_probability, 1) if known else "",
    }


def record_json(mistake: Mistake, names: Sequence[str]) -> dict[str, Any]:
    """The same without the picture."""
    return {
        "record": mistake.record,
        "label": class_name(mistake.label, names),
        "predicted": class_name(mistake.predicted, names),
        "probability": mistake.probability,
        "label_probability": mistake.label_probability,
    }


def explained_view(explained: Explained, names: Sequence[str]) -> dict[str, Any]:
    """A record and its evidence as the page prints them."""
    strongest = max((abs(value) for part in explained.evidence for value in part.steps), default=0.0)
    return record_view(explained.shown, names) | {
        "time": explained.time,
        "evidence": [
            {
                "of": class_name(part.of, names),
                "image": "" if part.picture is None else picture_uri(part.picture),
                "bars": bars(part.steps, strongest),
            }
            for part in explained.evidence
        ],
    }


def explained_json(explained: Explained, names: Sequence[str]) -> dict[str, Any]:
    """The same without pictures."""
    evidence = [{"of": class_name(part.of, names), "steps": list(part.steps)} for part in explained.evidence]
    return record_json(explained.shown, names) | {"evidence": evidence}


def bars(steps: Sequence[float], strongest: float) -> list[tuple[float, float, float]]:
    """Bars along time: place and breadth as shares of the whole, and length from -1 to 1.

    Args:
      steps: relevances; of many, neighbours are summed.
      strongest: relevance that is as long as can be.
    """
    if not steps:
        return []
    starts = np.unique(np.linspace(0, len(steps), min(len(steps), MAX_BARS), endpoint=False).astype(np.int64))
    ends = np.append(starts[1:], len(steps))
    sums = np.add.reduceat(np.asarray(steps, np.float64), starts)
    scale = max(float(np.abs(sums).max()), strongest, 1e-30)
    return [
        (round(start / len(steps), 4), round((end - start) / len(steps), 4), round(float(value) / scale, 3))
        for start, end, value in zip(starts.tolist(), ends.tolist(), sums, strict=True)
    ]


def class_name(number: int, names: Sequence[str]) -> str:
    """A class by its name; by its number where there is no such class."""
    return names[number] if 0 <= number < len(names) else str(number)


def coarse(pixels: np.ndarray) -> bool:
    """Whether it is small enough to be shown as squares: a 28x28 digit is clearer so than as a blur."""
    return max(pixels.shape) <= MAX_PIXELS_KEPT


def picture_uri(pixels: np.ndarray) -> str:
    """A data: URI of uint8 [height, width, 1 or 3], at most MAX_THUMBNAIL a side."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if coarse(pixels):
        return _data_uri(picture, "png", optimize=True)
    picture.thumbnail((MAX_THUMBNAIL, MAX_THUMBNAIL))
    return _data_uri(picture, "jpeg", quality=JPEG_QUALITY)


def palette_uri(levels: np.ndarray, colours: np.ndarray) -> str:
    """A data: URI of a PNG of at most 256 colours.

    Args:
      levels: uint8 [height, width], numbers of colours.
      colours: uint8 [colours, 4], red, green, blue, opacity.
    """
    picture = Image.fromarray(levels)
    picture.putpalette(colours[:, :3].tobytes())
    return _data_uri(picture, "png", optimize=True, transparency=colours[:, 3].tobytes())


def _data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
