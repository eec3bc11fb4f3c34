"""The recipe's schema. A field exists only where something acts on it.

Every value is checked where it enters (type, range, finiteness); rules that join several fields stand in
`Recipe`. Sections are frozen, so a recipe means one thing for the whole run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pcls.config.duration import Duration
from pcls.config.fields import (
    Fraction,
    Integers,
    Length,
    NamedWeights,
    Names,
    Number,
    Pattern,
    Section,
    SomePattern,
    broken_rule,
    list_as_tuple,
    no_number,
)
from pcls.config.optimizer import OptimizerSection
from pcls.config.policy import parse_policy

# Sources that can say of a record that it carries several labels.
LABEL_SETS = ("manifest", "arrays")
# Columns of a manifest that mean something else than a label.
TAKEN_COLUMNS = ("path", "split", "group")

# Sources of sequences, and what of `data` concerns pictures alone.
SEQUENCES = ("audio", "ts", "sequences")
OF_PICTURES = (
    "image_size",
    "channels",
    "train_crop",
    "crop_pct",
    "crop_mode",
    "interpolation",
    "progressive",
    "repeats",
)


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


class AudioSection(Section):
    """The steps and features that sound becomes: logarithms of mel filters.

    Attributes:
      sample_rate: in Hz, to which all sound is brought; 0: that of the set.
      mels: filters, and so features of a step.
      window_ms: the sound that a step sees, in milliseconds.
      hop_ms: from one step to the next, in milliseconds.
    """

    sample_rate: Annotated[int, Field(ge=0, le=2**20)] = 0
    mels: Annotated[int, Field(ge=1, le=1024)] = 40
    window_ms: Annotated[Number, Field(gt=0, le=10_000)] = 25.0
    hop_ms: Annotated[Number, Field(gt=0, le=10_000)] = 10.0


class DataSection(Section):
    """What is learned from.

    Attributes:
      source: `digits` (embedded), `idx` (MNIST's file format), `folder` (class/image files), `manifest` (CSV or Parquet
        with the columns path and label), `arrays` (NumPy), `arrayrecord` (made by `pcls data convert`), `webdataset`
        (tar files), `huggingface` (written by `datasets`' save_to_disk) or `tfds:NAME[:split]`. Sequences: `ts`
        (sktime's text format), `sequences` (NumPy) or `audio` (WAV files).
      path: where the source lies: its folder or file, or a URL such as gs://bucket/folder; `digits` has none, for
        `tfds` it is the data directory.
      cache: folder on this machine for what is fetched from URLs and for indices of tar files; empty: $PCLS_CACHE, or
        ~/.cache/pcls.
      quarantine: a list of records that are left out, as `pcls data doctor` writes it; empty: none.
      labels: that a record carries: `one`, or `several`, of which a model answers each by itself; for manifests and
        arrays. See docs/multilabel.md.
      label_separator: between the names in a manifest's column label, with several; empty: `;`.
      label_columns: of a manifest, with several: one column a class, in this order, whose cells are 0 or 1; empty: the
        names stand in its column label.
      image_size: height and width in pixels that the model sees; 0: as the source stores it, or as the weights of
        model.init expect it, which may have been trained at one size and be evaluated at another.
      channels: 1 (grey), 3 (RGB), or as many as an array source holds; 0: as the source stores it.
      classes: the classes used, by number in the source's order, renumbered from 0; empty: all.
      class_names: of `idx`, whose files only number the classes, in that order; empty: the numbers.
      per_class: training records used of each class, chosen by `split_seed`; 0: all.
      validation: share of each class held out where the source has no evaluation split of its own; of groups of
        records, whole ones.
      long_tail: makes the training records unbalanced, to try methods on: the first class keeps all, the last this many
        times fewer, those between exponentially; 1: as they are. Evaluation records stay as they are.
      split_seed: seed of the held-out share, of `per_class` and of `long_tail`; the run's seed leaves them alone.
      train_crop: how a training image of free size is cut: `random` (area and aspect, Inception's) or `center`; null:
        `random`.
      crop_pct: the evaluation resizes image files to `image_size` divided by this before it cuts out the middle; null:
        as the weights of model.init expect it, else 0.875.
      crop_mode: how it resizes them: the shorter side (`center`), each side by itself (`squash`) or the longer side,
        with a border of the mean colour (`border`); null: as the weights expect it, else `center`.
      interpolation: of that resize: `bilinear`, `bicubic` or `lanczos`; null: as the weights expect it, else
        `bilinear`.
      tail: where the training set does not divide into steps, the last records of a pass share a step with the next
        pass (`carry`), are left out (`drop`), or have a step to themselves that is filled up with weight 0 (`pad`).
      repeats: how often a step holds each of its images, each time augmented in another way.
      sampling: in what shares the classes are drawn: as the set has them (`natural`), all the same (`balanced`), as the
        square roots of their records (`square_root`), or from the set's in the first epoch to all the same in the last
        (`progressive`). An epoch is always as many images as the set has: of a class that is drawn more often than it
        has records each comes several times, of one that is drawn more rarely only some, others in the next epoch.
      buckets: to how many different lengths sequences are padded, chosen so that the fewest steps are padding. A batch
        holds sequences of one of them; each is a program to compile.
      audio: the features that sound becomes, with `audio`.
      test_match: of sound files, those in whose path this regular expression is found are evaluated on; empty: a share
        is held out, or the set has an evaluation part of its own.
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
    labels: Literal["one", "several"] = "one"
    label_separator: Annotated[str, Field(max_length=8)] = ""
    label_columns: Names = ()
    image_size: Annotated[int, Field(ge=0, le=8192)] = 0
    channels: Annotated[int, Field(ge=0, le=512)] = 0
    classes: Integers = ()
    class_names: Names = ()
    per_class: Annotated[int, Field(ge=0)] = 0
    validation: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    long_tail: Annotated[Number, Field(ge=1, le=1e6)] = 1.0
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    train_crop: Literal["random", "center"] | None = None
    crop_pct: Annotated[Number, Field(gt=0, le=1)] | None = None
    crop_mode: Literal["center", "squash", "border"] | None = None
    interpolation: Literal["bilinear", "bicubic", "lanczos"] | None = None
    tail: Literal["carry", "drop", "pad"] = "carry"
    repeats: Annotated[int, Field(ge=1, le=64)] = 1
    sampling: Literal["natural", "balanced", "square_root", "progressive"] = "natural"
    buckets: Annotated[int, Field(ge=1, le=64)] = 1
    audio: AudioSection = AudioSection()
    test_match: SomePattern = ""
    progressive: Annotated[tuple[SizePhase, ...], BeforeValidator(list_as_tuple)] = ()
    expect_classes: Annotated[int, Field(ge=0, le=2**24)] = 0
    expect_records: Annotated[int, Field(ge=0)] = 0
    on_device: bool = False
    max_undecodable: Annotated[Number, Field(ge=0, le=1)] = 0.001
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    processes: Annotated[int, Field(ge=0, le=256)] = 0

    @property
    def holds_sequences(self) -> bool:
        """Whether the source is one of sequences, not of pictures."""
        return self.source in SEQUENCES

    @model_validator(mode="after")
    def _sequences_know_no_pictures(self) -> DataSection:
        strangers = OF_PICTURES if self.holds_sequences else ("buckets",)
        for key in strangers:
            if getattr(self, key) != DataSection.model_fields[key].default:
                held = "are sequences" if self.holds_sequences else "are pictures"
                raise broken_rule(
                    f"data.{key}", f"has no effect with {self.source}, whose records {held}; leave it out"
                )
        if self.source != "audio" and (key := self._of_audio()):
            raise broken_rule(key, f"has an effect with data.source=audio only, not with {self.source}")
        return self

    @property
    def holds_label_sets(self) -> bool:
        """Whether a record may carry several labels, or none."""
        return self.labels == "several"

    @model_validator(mode="after")
    def _several_labels(self) -> DataSection:
        if not self.holds_label_sets:
            for key in ("label_separator", "label_columns"):
                if getattr(self, key):
                    raise broken_rule(f"data.{key}", "has an effect with data.labels=several only")
            return self
        if self.source not in LABEL_SETS:
            raise broken_rule(
                "data.labels", f"several is for data.source={' and '.join(LABEL_SETS)}, not for {self.source}"
            )
        for key in ("sampling", "long_tail"):
            if getattr(self, key) != DataSection.model_fields[key].default:
                raise broken_rule(f"data.{key}", "needs records of one label; leave it out with data.labels=several")
        return self

    @model_validator(mode="after")
    def _label_columns(self) -> DataSection:
        columns = self.label_columns
        for key in ("label_separator", "label_columns"):
            if getattr(self, key) and self.source != "manifest":
                raise broken_rule(
                    f"data.{key}", f"has an effect with data.source=manifest only, not with {self.source}"
                )
        if columns and self.label_separator:
            raise broken_rule("data.label_separator", "has no effect beside data.label_columns; leave it out")
        if len(columns) == 1:
            raise broken_rule(
                "data.label_columns",
                "names one class; two or more are needed: yes or no is data.labels=one, two classes",
            )
        if len(set(columns)) < len(columns):
            raise broken_rule("data.label_columns", "names a column twice")
        for name in columns:
            if name in TAKEN_COLUMNS or ";" in name:
                what = "has a semicolon" if ";" in name else "is not a label"
                raise broken_rule("data.label_columns", f"names {name!r}, which {what}; rename the column")
        return self

    @model_validator(mode="after")
    def _classes_drawn_of_all_lengths(self) -> DataSection:
        if self.sampling != "natural" and self.buckets > 1:
            raise broken_rule(
                "data.sampling", f"{self.sampling} draws records of all lengths; leave out data.buckets, or this"
            )
        return self

    @model_validator(mode="after")
    def _names_for_numbers(self) -> DataSection:
        if self.class_names and self.source != "idx":
            raise broken_rule("data.class_names", f"has an effect with data.source=idx only, not with {self.source}")
        if len(set(self.class_names)) < len(self.class_names):
            raise broken_rule("data.class_names", "names a class twice")
        return self

    def _of_audio(self) -> str:
        """A key of sound that is set; empty: none."""
        if self.test_match:
            return "data.test_match"
        keys = AudioSection.model_fields.items()
        return next((f"data.audio.{key}" for key, info in keys if getattr(self.audio, key) != info.default), "")


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


class ModelSection(Section):
    """The network.

    Attributes:
      name: a name that `pcls models list` shows.
      init: a run, a bundle or public weights by name (`pcls models search`) that the training starts from; empty: from
        scratch.
      dropout: share of features dropped before the head in training; by recurrent classifiers between layers too.
      drop_path: stochastic depth: share of examples for which the last block's branch is dropped; it rises linearly
        from 0 at the first block.
      remat: what the backward pass keeps, for each stage of the network: `none` (all that it needs), `products`
        (outputs of convolutions and matrix products; the rest is computed again) or `inputs` (of each block only);
        empty: `none` for all.
      pool: over all positions, before the head: their mean (`avg`), their maximum (`max`), half of the sum of both
        (`avgmax`), or both side by side (`catavgmax`); null: as is customary for the model.
      head: what makes logits of features: `linear`, or `cosine` (30 times the cosine of the angle between the features
        and the kernel of each class: classes with few records get no shorter kernels; Cao et al. 2019).
      widths: channels of the two convolutions of `cnn28`, and units of its hidden layer, as in `[32, 64, 64]`; two
        numbers: no hidden layer; of the three groups of `speednet`, as in `[64, 256, 256]`; empty: those.
      read: what is a step where an image is read as a sequence: one of its `rows` or `columns`, of the `pixels` row by
        row, of the `patches` row by row, or of the pixels along a `hilbert` curve; null: as is customary for the model.
        Sequences are read by rows, which are their steps.
      patch: height and width of a patch in pixels, with `patches`; 0: 4.
      hidden: states of a recurrent layer in each direction; 0: as is customary for the model.
      layers: recurrent layers; 0: the same.
      bidirectional: recurrent layers run from both ends; null: the same.
      truncate: steps that gradients go back over in layers that run step by step; 0: all.
      chunk: of layers that run step by step, the backward pass keeps one state in so many steps and runs the steps
        between again: less memory for long sequences, about a third more time; 0: it keeps all.
      form: how recurrences run: linear ones `sequential` (step by step) or `parallel` (by associative scans), an LSTM
        `sequential` or by `cudnn` (NVIDIA GPUs, float32); null: as was measured to be faster on the device.
    """

    name: Annotated[str, Field(min_length=1)] = "cnn28"
    init: str = ""
    dropout: Fraction = 0.0
    drop_path: Fraction = 0.0
    remat: Annotated[tuple[Literal["none", "products", "inputs"], ...], BeforeValidator(list_as_tuple)] = ()
    pool: Literal["avg", "max", "avgmax", "catavgmax"] | None = None
    head: Literal["linear", "cosine"] = "linear"
    widths: Annotated[tuple[Annotated[int, Field(ge=1, le=2**16)], ...], BeforeValidator(list_as_tuple)] = ()
    read: Literal["rows", "columns", "pixels", "patches", "hilbert"] | None = None
    patch: Annotated[int, Field(ge=0, le=8192)] = 0
    hidden: Annotated[int, Field(ge=0, le=2**16)] = 0
    layers: Annotated[int, Field(ge=0, le=1024)] = 0
    bidirectional: bool | None = None
    truncate: Annotated[int, Field(ge=0, le=2**24)] = 0
    chunk: Annotated[int, Field(ge=0, le=2**24)] = 0
    form: Literal["sequential", "parallel", "cudnn"] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What is chosen of the network beside its name."""
        return self.model_dump(exclude={"name", "init"})

    @property
    def architecture(self) -> dict[str, Any]:
        """What of that decides which weights there are, where it is not as is customary for the model."""
        return self.model_dump(
            include={"pool", "head", "widths", "read", "patch", "hidden", "layers", "bidirectional"},
            exclude_defaults=True,
        )

    @model_validator(mode="after")
    def _patch_with_patches_only(self) -> ModelSection:
        if self.patch and self.read != "patches":
            raise broken_rule("model.patch", "has no effect without model.read=patches")
        return self


class RenameRule(Section):
    """One rule of `transfer.rename`.

    Attributes:
      match: a regular expression searched for in the paths of the weights.
      to: what stands in place of what it matches; `\\1` is its first group.
    """

    match: Pattern
    to: str


class TransferSection(Section):
    """What becomes of the weights of `model.init`.

    Attributes:
      rename: ordered rules, the first that matches a path of the weights renames it to a path of the model.
      skip: regular expressions searched for in paths: of the model, what is drawn anew; of the weights, what is not
        used.
      head: `auto` (kept where the classes have the same names, else drawn anew), `new` (drawn anew) or `probe` (fitted
        to the features that the weights give, as the best linear classifier of them, before the training starts).
    """

    rename: Annotated[tuple[RenameRule, ...], BeforeValidator(list_as_tuple)] = ()
    skip: Annotated[tuple[Pattern, ...], BeforeValidator(list_as_tuple)] = ()
    head: Literal["auto", "new", "probe"] = "auto"


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
    """

    every: Length = Duration(1, "epochs")
    keep: Annotated[int, Field(ge=2)] = 2
    keep_best: Annotated[int, Field(ge=0)] = 0
    keep_every: Length = Duration(0, "steps")
    on_failure: Literal["stop", "go_on"] = "stop"
    commit: Literal["auto", "rename", "marker"] = "auto"


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
    batch_norm: BatchNormSection = BatchNormSection()
    train: TrainSection = TrainSection()
    imbalance: ImbalanceSection = ImbalanceSection()
    optimizer: OptimizerSection = OptimizerSection()
    evaluate: EvaluateSection = EvaluateSection()
    checkpoint: CheckpointSection = CheckpointSection()
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
