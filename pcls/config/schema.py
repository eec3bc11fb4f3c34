"""The recipe's schema. A field exists only where something acts on it.

Every value is checked where it enters (type, range, finiteness); rules that join several fields stand in
`Recipe`. Sections are frozen, so a recipe means one thing for the whole run.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pcls.config.data import DataSection
from pcls.config.distill import DistillSection
from pcls.config.duration import Duration
from pcls.config.fields import (
    Fraction,
    Length,
    NamedWeights,
    Number,
    Pattern,
    Section,
    broken_rule,
    list_as_tuple,
    no_number,
)
from pcls.config.model import ModelSection, TransferSection
from pcls.config.optimizer import OptimizerSection
from pcls.config.policy import parse_policy


class RunSection(Section):
    """Where the run lives.

    Attributes:
      dir: the run folder; empty: `runs/<recipe's name>`.
    """

    dir: str = ""


class AugmentSection(Section):
    """Augmentation on the device, inside the compiled step.

    The order is shift, flip, policy, brightness and the other colours, greyscale; then mixing; erasing at last. What an
    image draws depends on the run's seed, the epoch and the record only.

    Attributes:
      flip: mirror half of the images left to right: drawn anew in each epoch, or with `alternate` half of them in one
        epoch and the others in the next (Jordan 2024).
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

    flip: Annotated[Literal[False, True, "alternate"], BeforeValidator(no_number)] = False
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
            raise broken_rule("augment.policy", f"is {self.policy[:40]!a} (text); {error}") from None
        return self

    @model_validator(mode="after")
    def _no_dead_options(self) -> AugmentSection:
        if self.shift_padding is not None and not self.shift:
            raise broken_rule("augment.shift_padding", "has no effect without augment.shift")
        if self.mix_prob is not None and not self.mixes:
            raise broken_rule("augment.mix_prob", "has no effect without augment.mixup or augment.cutmix")
        if self.switch_prob is not None and not (self.mixup and self.cutmix):
            raise broken_rule("augment.switch_prob", "has no effect without both augment.mixup and augment.cutmix")
        if self.erase_fill is not None and not self.erase:
            raise broken_rule("augment.erase_fill", "has no effect without augment.erase")
        return self


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
            raise broken_rule("batch_norm.group_size", "is 0 (number); groups need a size of 1 or more, such as 32")
        if self.over != "groups" and self.group_size:
            raise broken_rule("batch_norm.group_size", "has an effect with batch_norm.over=groups only")
        return self


class AsymmetricSection(Section):
    """What `train.loss=asymmetric` makes of easy answers. Source: Ridnik et al. 2021.

    Attributes:
      gamma_pos: the loss of a label that a record carries is multiplied by the error probability to this power.
      gamma_neg: the same of labels that it does not carry.
      clip: is taken from the probability of labels that it does not carry first; what is below it then costs nothing.
    """

    gamma_pos: Annotated[Number, Field(ge=0, le=100)] = 0.0
    gamma_neg: Annotated[Number, Field(ge=0, le=100)] = 4.0
    clip: Fraction = 0.05


class TrainSection(Section):
    """How long, how large, how exact.

    Attributes:
      duration: length of the training.
      batch_size: images in a global batch, over all devices.
      seed: of the initial weights, the order of records and the augmentation.
      accumulate: micro-batches whose gradients are added up before the update; less memory, the same step.
      precision: type of activations; parameters and statistics are always float32.
      quantize: what training computes with rounded, so that the weights learn to stand it: `int8` (weights, and inputs
        of convolutions and dense layers), `int8_weights` or `int4_weights`; parameters and evaluations stay as they
        are, and `pcls compress` rounds them for good. See docs/compress.md.
      loss: `softmax` (cross-entropy over the classes), `sigmoid` (binary, of each class by itself) or, with
        data.labels=several, `asymmetric` (the same, with less weight for easy answers, of labels that a record does not
        carry most of all).
      asymmetric: how much less.
      label_smoothing: share of the target spread over all classes; with data.labels=several over yes and no of each.
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
    quantize: Literal["none", "int8", "int8_weights", "int4_weights"] = "none"
    loss: Literal["softmax", "sigmoid", "asymmetric"] = "softmax"
    asymmetric: AsymmetricSection = AsymmetricSection()
    label_smoothing: Fraction = 0.0
    sam_rho: Annotated[Number, Field(ge=0)] = 0.0
    ema_decay: Fraction = 0.0
    steps_per_dispatch: Annotated[int, Field(ge=0, le=2**16)] = 0

    @model_validator(mode="after")
    def _asymmetric_has_its_loss(self) -> TrainSection:
        for key, info in AsymmetricSection.model_fields.items():
            if self.loss != "asymmetric" and getattr(self.asymmetric, key) != info.default:
                raise broken_rule(f"train.asymmetric.{key}", "has an effect with train.loss=asymmetric only")
        return self


class ImbalanceSection(Section):
    """What the loss does about classes with few records. It knows how many each has in the training set.

    Attributes:
      class_weights: of the loss of a record: `none`, `inverse` (one over its class's records), `effective` (one over
        the effective number of its class's records, Cui et al. 2019) or `given` by weights. A record's is 1 on average.
        With data.labels=several they are of the labels that a record carries, against those that it does not: `inverse`
        (records without the label over records with it) or `given`, each as it stands.
      weights: of classes by name, with `given`, as in `{cat: 1.0, dog: 3.5}`; of those not named 1.
      class_weights_from: they hold from here on; before it all are 1 (deferred re-weighting, Cao et al. 2019).
      logit_adjustment: the logarithms of the classes' shares, times this, are added to the logits in training, so that
        those of rare classes must be larger; 1: balanced softmax. Source: Menon et al. 2021; Ren et al. 2020.
      posthoc_adjustment: the same the other way round, after a training without it: the logarithms of the shares, times
        this, are taken from the bias of the head of what is evaluated and delivered. Source: Menon et al. 2021.
      margin: the right logit of the rarest class is lowered by this in training, that of others by less, as one over
        the fourth root of their records. Source: Cao et al. 2019, there on normalised features.
      focal: the loss of a record is multiplied by its error probability to this power. Source: Lin et al. 2017.
    """

    class_weights: Literal["none", "inverse", "effective", "given"] = "none"
    weights: NamedWeights = ()
    class_weights_from: Length = Duration(0, "steps")
    logit_adjustment: Annotated[Number, Field(ge=0, le=100)] = 0.0
    posthoc_adjustment: Annotated[Number, Field(ge=0, le=100)] = 0.0
    margin: Annotated[Number, Field(ge=0, le=100)] = 0.0
    focal: Annotated[Number, Field(ge=0, le=100)] = 0.0

    @model_validator(mode="after")
    def _later_weights_are_weights(self) -> ImbalanceSection:
        if self.class_weights_from.value and self.class_weights == "none":
            raise broken_rule("imbalance.class_weights_from", "has no effect without imbalance.class_weights")
        return self

    @model_validator(mode="after")
    def _weights_are_given(self) -> ImbalanceSection:
        if self.weights and self.class_weights != "given":
            raise broken_rule("imbalance.weights", "has an effect with imbalance.class_weights=given only")
        if self.class_weights == "given" and not self.weights:
            raise broken_rule("imbalance.class_weights", "given needs imbalance.weights, as in {cat: 1.0, dog: 3.5}")
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
      keep_best: checkpoints kept too that have the best top-1 accuracy, or mAP where records carry several labels, of
        those at whose step the run is evaluated.
      keep_every: distance of checkpoints that are kept for good; 0: none.
      on_failure: what follows when the disk refuses a checkpoint: `stop`, or `go_on` and try again at the next.
      commit: how a checkpoint becomes valid: `rename` of a finished folder, `marker` for mounted buckets, which cannot
        rename a folder at once; `auto`: `marker` on FUSE mounts, else `rename`.
      stop_within: seconds from SIGTERM, SIGUSR1 or a cloud's notice to the end of the process. A checkpoint that is not
        written by then is given up, and the last one stays; 0: as long as it takes.
    """

    every: Length = Duration(1, "epochs")
    keep: Annotated[int, Field(ge=2)] = 2
    keep_best: Annotated[int, Field(ge=0)] = 0
    keep_every: Length = Duration(0, "steps")
    on_failure: Literal["stop", "go_on"] = "stop"
    commit: Literal["auto", "rename", "marker"] = "auto"
    stop_within: Annotated[Number, Field(ge=0, le=86400)] = 300.0


class GuardSection(Section):
    """What is done where numbers, devices or other processes fail.

    Attributes:
      not_finite: so many updates in a row whose loss or gradient is not finite are trouble: the run goes back to its
        last good checkpoint, and passes over the records since. Each one by itself is skipped.
      spike: a loss of more than so many times the mean of the 100 before it is trouble, too; 0: none is.
      rollbacks: how often a run goes back; then it ends with exit code 43.
      verify: distance of steps that are taken twice, whose results must agree bit for bit, and after which all devices
        that hold the same must hold the same bits; else the run ends with exit code 42. Before each checkpoint they are
        compared, too. Such a step needs the memory of a second state. 0 steps: none.
      hang: seconds that a step may take. Then the process tells where it stands, and ends with exit code 42; 0: it
        waits for ever. What is compiled or saved has an hour and half an hour.
    """

    not_finite: Annotated[int, Field(ge=1, le=2**16)] = 20
    spike: Annotated[Number, Field(ge=0)] = 0.0
    rollbacks: Annotated[int, Field(ge=0, le=2**16)] = 3
    verify: Length = Duration(0, "steps")
    hang: Annotated[Number, Field(ge=0, le=86400)] = 900.0

    @model_validator(mode="after")
    def _spike_is_above_the_mean(self) -> GuardSection:
        if 0 < self.spike <= 1:
            raise broken_rule(
                "guard.spike", f"is {self.spike} (number); a number > 1 is needed, such as 3, or 0 for off"
            )
        return self


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
    over: Annotated[tuple[Literal["fsdp", "model"], ...], BeforeValidator(list_as_tuple)] = ()


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
    rules: Annotated[tuple[ShardingRule, ...], BeforeValidator(list_as_tuple)] = ()

    @model_validator(mode="after")
    def _data_is_not_zero(self) -> MeshSection:
        if self.data == 0:
            raise broken_rule("mesh.data", "is 0 (number); a number of devices >= 1 is needed, or -1 for all")
        return self

    @model_validator(mode="after")
    def _no_dead_options(self) -> MeshSection:
        if self.rules and self.sharding not in ("auto", "zero1"):
            raise broken_rule("mesh.sharding", f"{self.sharding} has no effect beside mesh.rules; write auto or zero1")
        if self.fsdp > 1 and not self.rules and self.sharding in ("replicated", "zero1"):
            raise broken_rule("mesh.fsdp", f"has no effect with mesh.sharding={self.sharding}; write auto or fsdp")
        return self


class Recipe(Section):
    """All that decides a run."""

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    augment: AugmentSection = AugmentSection()
    model: ModelSection = ModelSection()
    transfer: TransferSection = TransferSection()
    distill: DistillSection = DistillSection()
    batch_norm: BatchNormSection = BatchNormSection()
    train: TrainSection = TrainSection()
    imbalance: ImbalanceSection = ImbalanceSection()
    optimizer: OptimizerSection = OptimizerSection()
    evaluate: EvaluateSection = EvaluateSection()
    checkpoint: CheckpointSection = CheckpointSection()
    guard: GuardSection = GuardSection()
    mesh: MeshSection = MeshSection()
    observe: ObserveSection = ObserveSection()

    @model_validator(mode="after")
    def _batch_divides(self) -> Recipe:
        if self.train.batch_size % self.train.accumulate:
            raise broken_rule(
                "train.accumulate",
                f"is {self.train.accumulate} and does not divide train.batch_size={self.train.batch_size}",
            )
        return self

    @model_validator(mode="after")
    def _each_label_by_itself(self) -> Recipe:
        several = self.data.holds_label_sets
        if not several and self.train.loss == "asymmetric":
            raise broken_rule("train.loss", "asymmetric is for data.labels=several; write softmax or sigmoid")
        if several and self.imbalance.class_weights == "effective":
            raise broken_rule(
                "imbalance.class_weights", "effective is of records with one label; write inverse or given"
            )
        if several and self.transfer.head == "probe":
            raise broken_rule("transfer.head", "probe fits a head for one label a record; write auto or new")
        return self

    @model_validator(mode="after")
    def _one_right_class(self) -> Recipe:
        for key in ("logit_adjustment", "posthoc_adjustment", "margin", "focal"):
            if self.train.loss != "softmax" and getattr(self.imbalance, key):
                raise broken_rule(f"imbalance.{key}", "is for train.loss=softmax; leave it out, or change the loss")
        return self

    @model_validator(mode="after")
    def _weights_to_transfer(self) -> Recipe:
        for key, info in TransferSection.model_fields.items():
            if not self.model.init and getattr(self.transfer, key) != info.default:
                raise broken_rule(f"transfer.{key}", "has no effect without model.init")
        return self

    @model_validator(mode="after")
    def _zeros_are_not_averaged(self) -> Recipe:
        if self.optimizer.sparsity.final and self.train.ema_decay:
            raise broken_rule(
                "optimizer.sparsity", "needs train.ema_decay=0: an average of zeros and others is no zero"
            )
        return self

    @model_validator(mode="after")
    def _repeats_divide(self) -> Recipe:
        if self.train.batch_size % self.data.repeats:
            raise broken_rule(
                "data.repeats", f"is {self.data.repeats} and does not divide train.batch_size={self.train.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _one_size_at_once(self) -> Recipe:
        several = "data.progressive" if self.data.progressive else "data.buckets" if self.data.buckets > 1 else ""
        if several and (self.data.on_device or self.train.steps_per_dispatch > 1):
            key = "data.on_device" if self.data.on_device else "train.steps_per_dispatch"
            raise broken_rule(key, f"needs batches of one size; leave out {several} or this")
        return self

    @model_validator(mode="after")
    def _pictures_are_augmented(self) -> Recipe:
        if not self.data.holds_sequences:
            return self
        for key, info in AugmentSection.model_fields.items():
            if getattr(self.augment, key) != info.default:
                raise broken_rule(f"augment.{key}", "has no effect on sequences; leave it out")
        if self.evaluate.tta != "none":
            raise broken_rule("evaluate.tta", "has no effect on sequences; leave it out")
        return self

    @property
    def evaluation_batch_size(self) -> int:
        """Images in a global evaluation batch."""
        return self.evaluate.batch_size or self.train.batch_size
