"""The recipe's data: what is learned from, and how it is read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pcls.config.fields import (
    Integers,
    Length,
    Names,
    Number,
    Section,
    SomePattern,
    broken_rule,
    list_as_tuple,
)

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
# Sources that can say of a record that it carries several labels.
LABEL_SETS = ("manifest", "arrays")
# Columns of a manifest that mean something else than a label.
TAKEN_COLUMNS = ("path", "split", "group")


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
