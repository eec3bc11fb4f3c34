"""What a model's weights expect of an image. One object: trained with, saved with the weights, predicted with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

# Channels of image files; arrays may hold others.
GREY, RGB = 1, 3
MAX_CHANNELS = 512
# Of a picture's side, or of a sequence: far above any.
MAX_SIZE = 1 << 24

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")
CROP_MODES = ("center", "squash", "border")
SEQUENCE_KINDS = ("values", "log_mel")


@dataclass(frozen=True)
class SequenceFeatures:
    """What the numbers of a step are.

    Attributes:
      kind: one of `SEQUENCE_KINDS`: numbers as they lie (`values`), or logarithms of mel filter energies (`log_mel`).
      sample_rate: of the sound, in Hz; 0 with `values`, as the others.
      mels: filters, and so features of a step.
      window_ms: the sound that a step sees, in milliseconds.
      hop_ms: from one step to the next, in milliseconds.
    """

    kind: str = "values"
    sample_rate: int = 0
    mels: int = 0
    window_ms: float = 0.0
    hop_ms: float = 0.0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SequenceFeatures:
        """Reads plain values back; TypeError or ValueError where they are not those."""
        return cls(
            kind=_one_of(SEQUENCE_KINDS, values["kind"]),
            sample_rate=int(values["sample_rate"]),
            mels=int(values["mels"]),
            window_ms=float(values["window_ms"]),
            hop_ms=float(values["hop_ms"]),
        )


@dataclass(frozen=True)
class TrainingSize:
    """The images of training, where those of evaluation are of another size. Source: Touvron et al. 2019.

    Attributes:
      height, width: pixels.
      crop_pct: of images that training cuts as evaluation does.
    """

    height: int
    width: int
    crop_pct: float

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainingSize:
        """Reads plain values back; TypeError or ValueError where they are not those."""
        return cls(_size(values["height"]), _size(values["width"]), float(values["crop_pct"]))


@dataclass(frozen=True)
class Preprocessing:
    """From any picture or sequence to the numbers that the first layer sees.

    A sequence is held as a picture of one channel whose rows are its steps.

    Attributes:
      height, width: pixels in evaluation and prediction; of sequences the steps of the longest, padded, and the
        features of a step.
      channels: 1 (grey, or a sequence), 3 (RGB), or any other number of what was measured at each pixel.
      mean, std: of x / 255, one a channel; of sequences of x, one a feature, over the steps that count. Applied on the
        device.
      crop_pct: the evaluation resizes to the size divided by this, then cuts the size out of the middle.
      crop_mode: how it resizes, one of `CROP_MODES`: the shorter side, so that something is cut off (`center`); each
        side by itself, which bends the picture (`squash`); or the longer side, with a border of the mean (`border`).
      interpolation: of that resize, antialiased; one of `INTERPOLATIONS`.
      sequence: what the features of a step are; None: a picture.
      train: size of the images of training; None: that of evaluation.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    crop_mode: str = "center"
    interpolation: str = "bilinear"
    sequence: SequenceFeatures | None = None
    train: TrainingSize | None = None

    @property
    def training(self) -> Preprocessing:
        """What training sees."""
        return self if self.train is None else replace(self, train=None, **asdict(self.train))

    def trained_at(self, size: TrainingSize) -> Preprocessing:
        """The same, with the size of training; where that is the one of evaluation, none is held."""
        same = (size.height, size.width, size.crop_pct) == (self.height, self.width, self.crop_pct)
        return replace(self, train=None if same else size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """[height, width, channels]."""
        return self.height, self.width, self.channels

    def of_channel(self, channel: int) -> Preprocessing:
        """What one channel is brought to, as a grey image."""
        own = slice(channel, channel + 1)
        return replace(self, channels=1, mean=self.mean[own], std=self.std[own])

    @property
    def records(self) -> str:
        """What a person calls the records: `images` or `sequences`."""
        return "images" if self.sequence is None else "sequences"

    def to_json(self) -> dict[str, Any]:
        """Plain values for model.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocessing:
        """Reads `to_json` back; TypeError or ValueError where it is not that."""
        # Weights that were saved before there were sequences, or sizes of training, lack the keys.
        sequence, train = values.get("sequence"), values.get("train")
        return cls(
            height=_size(values["height"]),
            width=_size(values["width"]),
            channels=_size(values["channels"]),
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
            crop_pct=float(values["crop_pct"]),
            crop_mode=_one_of(CROP_MODES, values["crop_mode"]),
            interpolation=_one_of(INTERPOLATIONS, values["interpolation"]),
            sequence=None if sequence is None else SequenceFeatures.from_json(sequence),
            train=None if train is None else TrainingSize.from_json(train),
        )


def _size(value: Any) -> int:
    """ValueError for what no picture or sequence has."""
    if not 1 <= value <= MAX_SIZE:
        raise ValueError(f"a size of {value!r}; 1 to {MAX_SIZE:,} are possible")
    return int(value)


def _one_of(allowed: tuple[str, ...], value: Any) -> str:
    if value not in allowed:
        raise ValueError(f"{value!r} is none of {', '.join(allowed)}")
    return str(value)


def imagenet_statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """ImageNet's mean and deviation of x / 255: by channel for RGB, their average for grey."""
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)
