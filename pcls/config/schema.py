"""The recipe's schema. A field exists only where something acts on it.

Every value is checked where it enters (type, range, finiteness); rules that join several fields stand in
`Recipe`. Sections are frozen, so a recipe means one thing for the whole run.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator
from pydantic_core import PydanticCustomError

from pcls.config.duration import Duration


def _duration(value: Any) -> Duration:
    if isinstance(value, Duration):
        return value
    try:
        return Duration.parse(value)
    except (TypeError, ValueError):
        raise PydanticCustomError("duration", "a duration such as 10 epochs or 600 steps is needed") from None


def _number(value: Any) -> Any:
    # YAML writes 1 for 1.0; booleans are no numbers here, though Python counts them as such.
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _broken_rule(key: str, message: str) -> PydanticCustomError:
    """A rule that joins several fields; `key` is the one whose line the user should look at."""
    return PydanticCustomError("rule", "{key} {message}", {"key": key, "message": message})


def _list_as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Length = Annotated[
    Duration, BeforeValidator(_duration), PlainSerializer(str, return_type=str), Field(description="duration")
]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
Integers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_list_as_tuple)]


class Section(BaseModel):
    """A frozen part of the recipe that knows no other keys than its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class RunSection(Section):
    """Where the run lives.

    Attributes:
      dir: the run folder; empty: `runs/<recipe's name>`.
    """

    dir: str = ""


class DataSection(Section):
    """What is learned from.

    Attributes:
      source: `digits` (embedded), `idx` (MNIST's file format), `folder` (class/image files) or `tfds:NAME[:split]`.
      path: folder of the source's files; `digits` has none, for `tfds` it is the data directory.
      image_size: height and width in pixels that the model sees; 0: as the source stores it.
      channels: 1 (grey), 3 (RGB); 0: as the source stores it.
      classes: the classes used, by number in the source's order, renumbered from 0; empty: all.
      per_class: training records used of each class, chosen by `split_seed`; 0: all.
      validation: share of each class held out where the source has no evaluation split of its own.
      split_seed: seed of the held-out share and of `per_class`; the run's seed leaves them alone.
      train_crop: how a training image of free size is cut: `random` (area and aspect, Inception's) or `center`.
      max_undecodable: share of training records that may fail to decode before the run stops.
      workers: threads that read and decode; sets in memory need none.
    """

    source: Annotated[str, Field(min_length=1)] = "digits"
    path: str = ""
    image_size: Annotated[int, Field(ge=0, le=8192)] = 0
    channels: Literal[0, 1, 3] = 0
    classes: Integers = ()
    per_class: Annotated[int, Field(ge=0)] = 0
    validation: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    train_crop: Literal["random", "center"] = "random"
    max_undecodable: Annotated[Number, Field(ge=0, le=1)] = 0.001
    workers: Annotated[int, Field(ge=1, le=256)] = 2


class AugmentSection(Section):
    """Augmentation on the device, inside the compiled step.

    Attributes:
      flip: mirror half of the images left to right.
      shift: move each image by up to this many pixels on both axes (zero padding and a random crop).
    """

    flip: bool = False
    shift: Annotated[int, Field(ge=0, le=512)] = 0


class ModelSection(Section):
    """The network.

    Attributes:
      name: a name that `pcls models list` shows.
      init: a run or bundle whose weights the training starts from; empty: from scratch.
    """

    name: Annotated[str, Field(min_length=1)] = "cnn28"
    init: str = ""


class TrainSection(Section):
    """How long, how large, how exact.

    Attributes:
      duration: length of the training.
      batch_size: images in a global batch, over all devices.
      seed: of the initial weights, the order of records and the augmentation.
      precision: type of activations; parameters and statistics are always float32.
      label_smoothing: share of the target spread over all classes.
      ema_decay: decay a step of the averaged weights that are then evaluated and delivered; 0: no average.
    """

    duration: Length = Duration(10, "epochs")
    batch_size: Annotated[int, Field(ge=1, le=2**24)] = 128
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    label_smoothing: Fraction = 0.0
    ema_decay: Fraction = 0.0


class LrScale(Section):
    """One rule of `optimizer.lr_scale`: parameters whose path matches learn at `scale` times the rate.

    Attributes:
      match: a regular expression searched for in paths such as `stage2/block1/conv1/kernel`.
      scale: 0 keeps those parameters as they are.
    """

    match: Annotated[str, Field(min_length=1)]
    scale: Annotated[Number, Field(ge=0)]


class OptimizerSection(Section):
    """The update rule and its schedule: linear warm-up, then the decay.

    Attributes:
      name: `adam`, `adamw` or `sgd` (Nesterov momentum).
      lr: the peak rate.
      schedule: `cosine` (to 0 at the end) or `constant`, after the warm-up.
      warmup: length of the linear rise from 0.
      weight_decay: decoupled decay of parameters with two or more dimensions (kernels, not biases or scales).
      momentum: of `sgd`.
      clip_norm: largest global norm of the gradient; 0: not clipped.
      lr_scale: ordered rules, the first match wins, no match means 1.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Annotated[Number, Field(gt=0)] = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Length = Duration(0, "epochs")
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    momentum: Fraction = 0.9
    clip_norm: Annotated[Number, Field(ge=0)] = 0.0
    lr_scale: Annotated[tuple[LrScale, ...], BeforeValidator(_list_as_tuple)] = ()

    @model_validator(mode="after")
    def _no_dead_options(self) -> OptimizerSection:
        if self.name == "adam" and self.weight_decay:
            raise _broken_rule("optimizer.weight_decay", "has no effect with adam; write optimizer.name=adamw")
        if self.name != "sgd" and self.momentum != type(self).model_fields["momentum"].default:
            raise _broken_rule("optimizer.momentum", "has an effect with optimizer.name=sgd only")
        return self


class EvaluateSection(Section):
    """When and how the held-out records are counted.

    Attributes:
      every: distance of evaluations; one more always follows the last step.
      batch_size: images in a global evaluation batch; 0: the training batch. It changes no result.
    """

    every: Length = Duration(1, "epochs")
    batch_size: Annotated[int, Field(ge=0, le=2**24)] = 0


class CheckpointSection(Section):
    """What is kept to resume from.

    Attributes:
      every: distance of checkpoints; one more always follows the last step.
      keep: newest checkpoints kept.
    """

    every: Length = Duration(1, "epochs")
    keep: Annotated[int, Field(ge=2)] = 2


class MeshSection(Section):
    """How devices are laid out. The batch is split over `data` and `fsdp`, parameters over `fsdp`.

    Attributes:
      data: devices along the data axis; -1: all that are left.
      fsdp: devices along the axis that parameters and optimizer state are split over.
    """

    data: Annotated[int, Field(ge=-1)] = -1
    fsdp: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _data_is_not_zero(self) -> MeshSection:
        if self.data == 0:
            raise _broken_rule("mesh.data", "is 0 (number); a number of devices >= 1 is needed, or -1 for all")
        return self


class Recipe(Section):
    """All that decides a run."""

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    augment: AugmentSection = AugmentSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    optimizer: OptimizerSection = OptimizerSection()
    evaluate: EvaluateSection = EvaluateSection()
    checkpoint: CheckpointSection = CheckpointSection()
    mesh: MeshSection = MeshSection()

    @property
    def evaluation_batch_size(self) -> int:
        """Images in a global evaluation batch."""
        return self.evaluate.batch_size or self.train.batch_size
