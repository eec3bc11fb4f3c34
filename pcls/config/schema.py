"""The recipe's schema. A field exists only where something acts on it.

Every value is checked where it enters (type, range, finiteness); rules that join several fields stand in
`Recipe`. Sections are frozen, so a recipe means one thing for the whole run.
"""

from __future__ import annotations

import math
import re
import warnings
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator
from pydantic_core import PydanticCustomError

from pcls.config.duration import Duration
from pcls.config.policy import parse_policy


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


def _regular_expression(text: str) -> str:
    try:
        with warnings.catch_warnings():
            # What Python's next version may read in another way.
            warnings.simplefilter("error")
            re.compile(text)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        message = "a regular expression is needed ({reason})"
        raise PydanticCustomError("regex", message, {"reason": str(error)}) from None
    return text


Length = Annotated[
    Duration, BeforeValidator(_duration), PlainSerializer(str, return_type=str), Field(description="duration")
]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
Pattern = Annotated[str, Field(min_length=1), AfterValidator(_regular_expression)]
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


class SizePhase(Section):
    """One phase of `data.progressive`.

    Attributes:
      until: the phase's end, counted from the start of the run.
      image_size: height and width in pixels that the model is trained with.
      batches: batches of train.batch_size that one update takes; small images leave the memory for it. Steps go
        on counting batches of train.batch_size; where optimizer.lr_per_256 is set, the rate grows too.
    """

    until: Length
    image_size: Annotated[int, Field(ge=1, le=8192)]
    batches: Annotated[int, Field(ge=1, le=1024)] = 1


class DataSection(Section):
    """What is learned from.

    Attributes:
      source: `digits` (embedded), `idx` (MNIST's file format), `folder` (class/image files), `manifest` (CSV or Parquet
        with the columns path and label), `arrays` (NumPy), `arrayrecord` (made by `pcls data convert`), `webdataset`
        (tar files), `huggingface` (written by `datasets`' save_to_disk) or `tfds:NAME[:split]`.
      path: where the source lies: its folder or file, or a URL such as gs://bucket/folder; `digits` has none, for
        `tfds` it is the data directory.
      cache: folder on this machine for what is fetched from URLs and for indices of tar files; empty: $PCLS_CACHE, or
        ~/.cache/pcls.
      quarantine: a list of records that are left out, as `pcls data doctor` writes it; empty: none.
      image_size: height and width in pixels that the model sees; 0: as the source stores it.
      channels: 1 (grey), 3 (RGB); 0: as the source stores it.
      classes: the classes used, by number in the source's order, renumbered from 0; empty: all.
      per_class: training records used of each class, chosen by `split_seed`; 0: all.
      validation: share of each class held out where the source has no evaluation split of its own; of groups of
        records, whole ones.
      split_seed: seed of the held-out share and of `per_class`; the run's seed leaves them alone.
      train_crop: how a training image of free size is cut: `random` (area and aspect, Inception's) or `center`; null:
        `random`.
      crop_pct: the evaluation resizes image files to `image_size` divided by this before it cuts out the middle; null:
        0.875.
      crop_mode: how it resizes them: the shorter side (`center`), each side by itself (`squash`) or the longer side,
        with a border of the mean colour (`border`); null: `center`.
      interpolation: of that resize: `bilinear`, `bicubic` or `lanczos`; null: `bilinear`.
      tail: where the training set does not divide into steps, the last records of a pass share a step with the next
        pass (`carry`), are left out (`drop`), or have a step to themselves that is filled up with weight 0 (`pad`).
      repeats: how often a step holds each of its images, each time augmented in another way.
      progressive: training phases with other image sizes, in order of their ends; after the last, and in evaluation,
        `image_size` holds. Small images first make an epoch cheaper.
      expect_classes: classes that the source must have; 0: any. `pcls plan` needs no data where this and the next are
        stated.
      expect_records: training records that it must have; 0: any number.
      on_device: keep the training set in the memory of the devices; for small sets of images of one size.
      max_undecodable: share of training records that may fail to decode before the run stops.
      workers: threads that read and decode image files, in each process; 0: as many as help, by a short measurement.
      processes: processes of this machine that read and decode, beside that of the training; for machines with so many
        cores that threads of one process stand in each other's way.
    """

    source: Annotated[str, Field(min_length=1)] = "digits"
    path: str = ""
    cache: str = ""
    quarantine: str = ""
    image_size: Annotated[int, Field(ge=0, le=8192)] = 0
    channels: Literal[0, 1, 3] = 0
    classes: Integers = ()
    per_class: Annotated[int, Field(ge=0)] = 0
    validation: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    train_crop: Literal["random", "center"] | None = None
    crop_pct: Annotated[Number, Field(gt=0, le=1)] | None = None
    crop_mode: Literal["center", "squash", "border"] | None = None
    interpolation: Literal["bilinear", "bicubic", "lanczos"] | None = None
    tail: Literal["carry", "drop", "pad"] = "carry"
    repeats: Annotated[int, Field(ge=1, le=64)] = 1
    progressive: Annotated[tuple[SizePhase, ...], BeforeValidator(_list_as_tuple)] = ()
    expect_classes: Annotated[int, Field(ge=0, le=2**24)] = 0
    expect_records: Annotated[int, Field(ge=0)] = 0
    on_device: bool = False
    max_undecodable: Annotated[Number, Field(ge=0, le=1)] = 0.001
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    processes: Annotated[int, Field(ge=0, le=256)] = 0


class AugmentSection(Section):
    """Augmentation on the device, inside the compiled step.

    The order is shift, flip, policy, brightness and the other colours, greyscale; then mixing; erasing at last. What an
    image draws depends on the run's seed, the epoch and the record only.

    Attributes:
      flip: mirror half of the images left to right.
      shift: move each image by up to this many pixels on both axes (padding and a random crop).
      shift_padding: what moves in: `zero` (black) or `reflect` (the image, mirrored at its border); null: `zero`.
      policy: operations drawn for each image, in timm's spelling: `rand-m9-mstd0.5-inc1` (RandAugment), `trivial`
        (TrivialAugmentWide), `augmix-m5-w4-d2` (AugMix); empty: none.
      brightness: its factor is drawn from 1 - this to 1 + this, not below 0.
      contrast: the same.
      saturation: the same; of RGB images.
      hue: drawn from -this to +this, as a share of the colour circle; of RGB images.
      greyscale: share of images that lose their colours; of RGB images.
      mixup: alpha of the beta distribution from which each pair of neighbours draws its shares of a blend; 0: off.
      cutmix: the same for a box that the two images of a pair exchange; 0: off.
      mix_prob: share of pairs that are mixed; null: 1.
      switch_prob: with both, share of mixed pairs that exchange a box instead of being blended; null: 0.5.
      erase: share of images of which a box of 2 % to 33 % of the area is erased.
      erase_fill: with what: `mean` (the mean colour of the training set) or `noise` (of its mean and deviation); null:
        `mean`.
    """

    flip: bool = False
    shift: Annotated[int, Field(ge=0, le=512)] = 0
    shift_padding: Literal["zero", "reflect"] | None = None
    policy: str = ""
    brightness: Annotated[Number, Field(ge=0, le=10)] = 0.0
    contrast: Annotated[Number, Field(ge=0, le=10)] = 0.0
    saturation: Annotated[Number, Field(ge=0, le=10)] = 0.0
    hue: Annotated[Number, Field(ge=0, le=0.5)] = 0.0
    greyscale: Annotated[Number, Field(ge=0, le=1)] = 0.0
    mixup: Annotated[Number, Field(ge=0, le=100)] = 0.0
    cutmix: Annotated[Number, Field(ge=0, le=100)] = 0.0
    mix_prob: Annotated[Number, Field(gt=0, le=1)] | None = None
    switch_prob: Annotated[Number, Field(gt=0, lt=1)] | None = None
    erase: Annotated[Number, Field(ge=0, le=1)] = 0.0
    erase_fill: Literal["mean", "noise"] | None = None

    @property
    def mixes(self) -> bool:
        """Whether neighbours are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def _policy_is_known(self) -> AugmentSection:
        try:
            if self.policy:
                parse_policy(self.policy)
        except ValueError as error:
            raise _broken_rule("augment.policy", f"is {self.policy[:40]!a} (text); {error}") from None
        return self

    @model_validator(mode="after")
    def _no_dead_options(self) -> AugmentSection:
        if self.shift_padding is not None and not self.shift:
            raise _broken_rule("augment.shift_padding", "has no effect without augment.shift")
        if self.mix_prob is not None and not self.mixes:
            raise _broken_rule("augment.mix_prob", "has no effect without augment.mixup or augment.cutmix")
        if self.switch_prob is not None and not (self.mixup and self.cutmix):
            raise _broken_rule("augment.switch_prob", "has no effect without both augment.mixup and augment.cutmix")
        if self.erase_fill is not None and not self.erase:
            raise _broken_rule("augment.erase_fill", "has no effect without augment.erase")
        return self


class ModelSection(Section):
    """The network.

    Attributes:
      name: a name that `pcls models list` shows.
      init: a run or bundle whose weights the training starts from; empty: from scratch.
      dropout: share of features dropped before the head in training.
      drop_path: stochastic depth: share of examples for which the last block's branch is dropped; it rises linearly
        from 0 at the first block.
      remat: what the backward pass keeps, for each stage of the network: `none` (all that it needs), `products`
        (outputs of convolutions and matrix products; the rest is computed again) or `inputs` (of each block only);
        empty: `none` for all.
    """

    name: Annotated[str, Field(min_length=1)] = "cnn28"
    init: str = ""
    dropout: Fraction = 0.0
    drop_path: Fraction = 0.0
    remat: Annotated[tuple[Literal["none", "products", "inputs"], ...], BeforeValidator(_list_as_tuple)] = ()


class BatchNormSection(Section):
    """What BatchNorm normalises over, and what it remembers.

    Attributes:
      over: `global` (the whole batch over all devices; with `train.accumulate` one micro-batch of it), `groups` (of
        `group_size` consecutive examples; needs no communication, and the same on any number of devices), or
        `per_shard` (what lies on one device: the result depends on how many there are).
      group_size: examples in a group, with `groups`.
      momentum: share of the running statistics that a step keeps.
      recalibrate: after the last step the running statistics are replaced by means over this length of training, taken
        with the weights that are delivered; 0: not.
    """

    over: Literal["global", "groups", "per_shard"] = "global"
    group_size: Annotated[int, Field(ge=0, le=2**24)] = 0
    momentum: Fraction = 0.9
    recalibrate: Length = Duration(0, "steps")

    @model_validator(mode="after")
    def _group_size_with_groups_only(self) -> BatchNormSection:
        if self.over == "groups" and self.group_size < 1:
            raise _broken_rule("batch_norm.group_size", "is 0 (number); groups need a size of 1 or more, such as 32")
        if self.over != "groups" and self.group_size:
            raise _broken_rule("batch_norm.group_size", "has an effect with batch_norm.over=groups only")
        return self


class TrainSection(Section):
    """How long, how large, how exact.

    Attributes:
      duration: length of the training.
      batch_size: images in a global batch, over all devices.
      seed: of the initial weights, the order of records and the augmentation.
      accumulate: micro-batches whose gradients are added up before the update; less memory, the same step.
      precision: type of activations; parameters and statistics are always float32.
      loss: `softmax` (cross-entropy over the classes) or `sigmoid` (binary, of each class by itself).
      label_smoothing: share of the target spread over all classes.
      sam_rho: length of the step against which sharpness-aware minimisation looks ahead, at twice the cost; 0: off.
      ema_decay: decay a step of the averaged weights that are then evaluated and delivered; 0: no average.
      steps_per_dispatch: steps that are given to the devices at once, as one compiled loop; 0: 1 on CPU, where such a
        loop runs convolutions ten times slower, and as the data allow elsewhere.
    """

    duration: Length = Duration(10, "epochs")
    batch_size: Annotated[int, Field(ge=1, le=2**24)] = 128
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    accumulate: Annotated[int, Field(ge=1, le=2**16)] = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    loss: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: Fraction = 0.0
    sam_rho: Annotated[Number, Field(ge=0)] = 0.0
    ema_decay: Fraction = 0.0
    steps_per_dispatch: Annotated[int, Field(ge=0, le=2**16)] = 0


class ScaleRule(Section):
    """One rule of `optimizer.lr_scale` or `optimizer.decay_scale`: what it does to parameters whose path matches.

    Attributes:
      match: a regular expression searched for in paths such as `stages/0/1/conv1/kernel`.
      scale: the factor on their rate (0 keeps them as they are) or on their weight decay.
    """

    match: Pattern
    scale: Annotated[Number, Field(ge=0)]


ScaleRules = Annotated[tuple[ScaleRule, ...], BeforeValidator(_list_as_tuple)]

# What each optimizer and each schedule can be told beside what all share, with its default; None: it must be told.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True},
    "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "lamb": {"b1": 0.9, "b2": 0.999, "eps": 1e-6},
    "lars": {"momentum": 0.9, "trust_coefficient": 0.001, "eps": 1e-8},
    "lion": {"b1": 0.9, "b2": 0.99},
    "adafactor": {"decay_exponent": 0.8, "clipping_threshold": 1.0, "parameter_scale": True, "momentum": 0.0},
    # EfficientNet's; TensorFlow itself starts from eps 1e-10 and no momentum.
    "rmsprop": {"rms_decay": 0.9, "eps": 1e-3, "momentum": 0.9},
    "muon": {"momentum": 0.95, "nesterov": True, "b1": 0.9, "b2": 0.999, "eps": 1e-8},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"warmup_start": 0.0},
    "linear": {"warmup_start": 0.0, "end_lr": 0.0},
    "cosine": {"warmup_start": 0.0, "end_lr": 0.0},
    "step": {"warmup_start": 0.0, "step_every": None, "step_factor": 0.1},
    "one_cycle": {"warmup_start": 0.04, "end_lr": 4e-6},
    "wsd": {"warmup_start": 0.0, "end_lr": 0.0, "cooldown": None, "cooldown_shape": "linear"},
}


class OptimizerSection(Section):
    """The update rule and its schedule.

    An argument that is left out (null) has the default of its optimizer in `OPTIMIZERS` or of its schedule in
    `SCHEDULES`; one that the optimizer or the schedule does not know is an error.

    Attributes:
      name: a key of `OPTIMIZERS`; what each does stands in `pcls.training.optimizers`.
      lr: the peak rate.
      lr_per_256: `lr` is meant for batches of 256 images, and multiplied by train.batch_size / 256.
      schedule: what follows the warm-up, up to the last step: `constant`, `linear` and `cosine` (to `end_lr`), `step`
        (times `step_factor` after every `step_every`), `one_cycle` (its rise is the warm-up, as a cosine; then as
        `cosine`), `wsd` (the peak, then down to `end_lr` within `cooldown`).
      warmup: length of the rise from `warmup_start` to the peak, linear but for `one_cycle`.
      warmup_start: the rate at step 0 as a share of the peak.
      end_lr: the rate at the end as a share of the peak.
      step_every: distance of the drops, counted from step 0.
      step_factor: what each drop leaves.
      cooldown: length of the last phase of `wsd`.
      cooldown_shape: of that phase: `linear`, or `1-sqrt` (1 less the root of its finished share).
      weight_decay: of parameters with two or more dimensions (kernels, not biases or scales). With `sgd`, `lars` and
        `rmsprop` it is L2, added to the gradient before momentum and scaling, as in torch; with the others decoupled.
      decay_scale: ordered rules, the first match gives the factor on `weight_decay`; no match: 1 for parameters with
        two or more dimensions, else 0.
      momentum: of `sgd`, `lars`, `rmsprop`, `adafactor` and `muon`; 0: none.
      nesterov: whether that momentum is Nesterov's.
      b1: share of the mean gradient that a step keeps (with `lion` in the update only).
      b2: share of the mean squared gradient that a step keeps; with `lion` that of the mean gradient.
      eps: added to the denominator, within the root with `rmsprop`.
      rms_decay: share of the mean squared gradient that a step of `rmsprop` keeps.
      decay_exponent: of `adafactor`: step t keeps 1 - t**-decay_exponent of the mean squared gradient.
      clipping_threshold: of `adafactor`: largest root mean square of a parameter's update.
      parameter_scale: of `adafactor`: updates are multiplied by the root mean square of their parameter.
      trust_coefficient: of `lars`.
      clip_norm: largest global norm of the gradient; 0: not clipped.
      adaptive_clip: largest norm of a unit's gradient as a share of the unit's norm, ahead of `clip_norm`; the head
        is left alone; 0: not clipped.
      lr_scale: ordered rules, the first match gives the factor on the rate, no match means 1.
    """

    name: Literal["sgd", "adam", "adamw", "lamb", "lars", "lion", "adafactor", "rmsprop", "muon"] = "adam"
    lr: Annotated[Number, Field(gt=0)] = 1e-3
    lr_per_256: bool = False
    schedule: Literal["constant", "linear", "cosine", "step", "one_cycle", "wsd"] = "cosine"
    warmup: Length = Duration(0, "epochs")
    warmup_start: Annotated[Number, Field(ge=0, le=1)] | None = None
    end_lr: Annotated[Number, Field(ge=0, le=1)] | None = None
    step_every: Length | None = None
    step_factor: Annotated[Number, Field(gt=0, lt=1)] | None = None
    cooldown: Length | None = None
    cooldown_shape: Literal["linear", "1-sqrt"] | None = None
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    decay_scale: ScaleRules = ()
    momentum: Fraction | None = None
    nesterov: bool | None = None
    b1: Fraction | None = None
    b2: Fraction | None = None
    eps: Annotated[Number, Field(gt=0)] | None = None
    rms_decay: Fraction | None = None
    decay_exponent: Annotated[Number, Field(gt=0, le=1)] | None = None
    clipping_threshold: Annotated[Number, Field(ge=1)] | None = None
    parameter_scale: bool | None = None
    trust_coefficient: Annotated[Number, Field(gt=0)] | None = None
    clip_norm: Annotated[Number, Field(ge=0)] = 0.0
    adaptive_clip: Annotated[Number, Field(ge=0)] = 0.0
    lr_scale: ScaleRules = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """What the optimizer is told: what the recipe says, else its defaults."""
        return self._filled(OPTIMIZERS[self.name])

    @property
    def schedule_arguments(self) -> dict[str, Any]:
        """What the schedule is told: what the recipe says, else its defaults."""
        return self._filled(SCHEDULES[self.schedule])

    def _filled(self, defaults: dict[str, Any]) -> dict[str, Any]:
        values = dict(self)
        return {key: default if values[key] is None else values[key] for key, default in defaults.items()}

    @model_validator(mode="after")
    def _no_foreign_arguments(self) -> OptimizerSection:
        for choice, table in ((self.name, OPTIMIZERS), (self.schedule, SCHEDULES)):
            known = {key for defaults in table.values() for key in defaults}
            for key, value in self:
                if key in known - table[choice].keys() and value is not None:
                    theirs = ", ".join(table[choice])
                    raise _broken_rule(f"optimizer.{key}", f"has no effect with {choice}; its arguments: {theirs}")
        return self

    @model_validator(mode="after")
    def _no_dead_options(self) -> OptimizerSection:
        if self.name == "adam" and self.weight_decay:
            raise _broken_rule("optimizer.weight_decay", "has no effect with adam; write optimizer.name=adamw")
        if self.decay_scale and not self.weight_decay:
            raise _broken_rule("optimizer.decay_scale", "has no effect without optimizer.weight_decay")
        if self.nesterov and self.arguments["momentum"] == 0:
            raise _broken_rule("optimizer.nesterov", "has no effect with optimizer.momentum=0")
        if self.warmup_start is not None and self.warmup.value == 0:
            raise _broken_rule("optimizer.warmup_start", "has no effect without optimizer.warmup")
        return self

    @model_validator(mode="after")
    def _phases_have_lengths(self) -> OptimizerSection:
        if self.schedule == "one_cycle" and self.warmup.value == 0:
            raise _broken_rule("optimizer.warmup", "is the rise of one_cycle and cannot be 0; write its length")
        for key, value in self.schedule_arguments.items():
            if value is None or (isinstance(value, Duration) and value.value == 0):
                message = f"is needed with {self.schedule}; write a length such as 10 epochs"
                raise _broken_rule(f"optimizer.{key}", message)
        return self


class EvaluateSection(Section):
    """When and how the held-out records are counted.

    Attributes:
      every: distance of evaluations; one more always follows the last step.
      batch_size: images in a global evaluation batch; 0: the training batch. It changes no result.
      tta: views of an image whose logits are averaged: `none` (the image itself), `mirror` (and its mirror image) or
        `shift` (and both moved by a pixel along the diagonal, forth and back: six passes).
    """

    every: Length = Duration(1, "epochs")
    batch_size: Annotated[int, Field(ge=0, le=2**24)] = 0
    tta: Literal["none", "mirror", "shift"] = "none"


class CheckpointSection(Section):
    """What is kept to resume from.

    Attributes:
      every: distance of checkpoints; one more always follows the last step.
      keep: newest checkpoints kept.
    """

    every: Length = Duration(1, "epochs")
    keep: Annotated[int, Field(ge=2)] = 2


class ObserveSection(Section):
    """Where the numbers go beside the run folder.

    Attributes:
      wandb: a project of Weights & Biases (`pip install 'pcls[wandb]'`); empty: none.
    """

    wandb: Annotated[str, Field(max_length=128)] = ""


class ShardingRule(Section):
    """One rule of `mesh.rules`.

    Attributes:
      match: a regular expression searched for in parameter paths such as `stages/0/1/conv1/kernel`.
      over: of `fsdp` and `model`, the axes that matching parameters are split over; empty: every device holds them
        whole.
    """

    match: Pattern
    over: Annotated[tuple[Literal["fsdp", "model"], ...], BeforeValidator(_list_as_tuple)] = ()


class MeshSection(Section):
    """How devices are laid out, and what is split over them. The batch is always split over `data` and `fsdp`.

    Attributes:
      data: devices along the data axis; -1: all that are left.
      fsdp: devices along the axis that parameters may be split over.
      model: devices along the axis that channels are split over.
      sharding: `replicated` (every device holds the whole state), `zero1` (optimizer state and averaged weights are
        split over all devices), `fsdp` (parameters too, over the fsdp axis), or `auto`: `fsdp` where there is such an
        axis, else `zero1`. With `rules` only `auto` (optimizer state lies as its parameter does) and `zero1`.
      rules: ordered rules over parameter paths in place of the preset's, the first match wins, every parameter matched.
    """

    data: Annotated[int, Field(ge=-1)] = -1
    fsdp: Annotated[int, Field(ge=1)] = 1
    model: Annotated[int, Field(ge=1)] = 1
    sharding: Literal["auto", "replicated", "zero1", "fsdp"] = "auto"
    rules: Annotated[tuple[ShardingRule, ...], BeforeValidator(_list_as_tuple)] = ()

    @model_validator(mode="after")
    def _data_is_not_zero(self) -> MeshSection:
        if self.data == 0:
            raise _broken_rule("mesh.data", "is 0 (number); a number of devices >= 1 is needed, or -1 for all")
        return self

    @model_validator(mode="after")
    def _no_dead_options(self) -> MeshSection:
        if self.rules and self.sharding not in ("auto", "zero1"):
            raise _broken_rule("mesh.sharding", f"{self.sharding} has no effect beside mesh.rules; write auto or zero1")
        if self.fsdp > 1 and not self.rules and self.sharding in ("replicated", "zero1"):
            raise _broken_rule("mesh.fsdp", f"has no effect with mesh.sharding={self.sharding}; write auto or fsdp")
        return self


class Recipe(Section):
    """All that decides a run."""

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    augment: AugmentSection = AugmentSection()
    model: ModelSection = ModelSection()
    batch_norm: BatchNormSection = BatchNormSection()
    train: TrainSection = TrainSection()
    optimizer: OptimizerSection = OptimizerSection()
    evaluate: EvaluateSection = EvaluateSection()
    checkpoint: CheckpointSection = CheckpointSection()
    mesh: MeshSection = MeshSection()
    observe: ObserveSection = ObserveSection()

    @model_validator(mode="after")
    def _batch_divides(self) -> Recipe:
        if self.train.batch_size % self.train.accumulate:
            raise _broken_rule(
                "train.accumulate",
                f"is {self.train.accumulate} and does not divide train.batch_size={self.train.batch_size}",
            )
        return self

    @model_validator(mode="after")
    def _repeats_divide(self) -> Recipe:
        if self.train.batch_size % self.data.repeats:
            raise _broken_rule(
                "data.repeats", f"is {self.data.repeats} and does not divide train.batch_size={self.train.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _one_size_at_once(self) -> Recipe:
        if self.data.progressive and (self.data.on_device or self.train.steps_per_dispatch > 1):
            key = "data.on_device" if self.data.on_device else "train.steps_per_dispatch"
            raise _broken_rule(key, "needs images of one size; leave out data.progressive or this")
        return self

    @property
    def evaluation_batch_size(self) -> int:
        """Images in a global evaluation batch."""
        return self.evaluate.batch_size or self.train.batch_size
