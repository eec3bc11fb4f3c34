"""A recipe's data section, opened: what is trained on, what is evaluated on, and how both are prepared."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from pcls.config.data import AudioSection, DataSection
from pcls.data.buckets import Bucket, buckets_of, padded_lengths
from pcls.data.decode import convertible
from pcls.data.notices import notices
from pcls.data.preprocessing import GREY, RGB, Preprocessing, SequenceFeatures, imagenet_statistics
from pcls.data.quarantine import read_quarantine, records_kept
from pcls.data.sources.arrays import ArraySource, open_arrays, open_digits, open_idx, pixel_statistics
from pcls.data.sources.cache import cache_folder
from pcls.data.sources.folder import open_folder, open_folder_as_it_is
from pcls.data.sources.remote import (
    is_url,
    local_file,
    local_folder,
    open_remote_folder,
    open_remote_manifest,
    without_secrets,
)
from pcls.data.sources.source import Source, Subset
from pcls.data.sources.targets import SEPARATOR, LabelSets, rarest_labels
from pcls.data.split import few_of_each, held_out, long_tailed
from pcls.data.steps import as_sequences, step_statistics
from pcls.errors import UserError

KINDS = (
    *("idx", "folder", "manifest", "arrays", "arrayrecord", "webdataset", "huggingface"),
    *("audio", "ts", "sequences"),
)
SOURCES = f"digits, {', '.join(KINDS)}, tfds:NAME[:split]"
FILE_KINDS = {
    ".csv": "manifest",
    ".tsv": "manifest",
    ".parquet": "manifest",
    ".npz": "arrays",
    ".tar": "webdataset",
    ".ts": "ts",
}
# What is fetched of a set that a URL names.
REMOTE_FILES = {
    "idx": ("-ubyte", "-ubyte.gz"),
    "arrays": (".npy", ".json"),
    "arrayrecord": (".json", ".npy", ".array_record"),
    "webdataset": (".tar", ".txt", ".json"),
    "huggingface": (".json", ".arrow"),
    "ts": (".ts",),
    "sequences": (".npz",),
}
# What else is kept: indices of long lists and of tar shards.
CACHED = ("manifest", "webdataset")
# What tells the kind of a folder, in this order.
FOLDER_SIGNS = (
    ("*-images[-.]idx3-ubyte*", "idx"),
    ("dataset.json", "arrayrecord"),
    ("dataset_dict.json", "huggingface"),
    ("state.json", "huggingface"),
    ("images.npy", "arrays"),
    ("*.tar", "webdataset"),
    ("train/*.tar", "webdataset"),
    ("*_TRAIN.ts", "ts"),
    ("*.wav", "audio"),
    ("*/*.wav", "audio"),
)
# Those whose images are decoded when asked for.
IMAGE_FILES = ("folder", "manifest", "arrayrecord", "webdataset", "huggingface", "tfds")
# Pictures of free size come at this size when neither the recipe nor the weights say one.
DEFAULT_IMAGE_SIZE = 224
DEFAULT_CROP_PCT = 0.875
# Records whose statistics stand for all, where a set is too large to be held.
MEASURED = 1000


@dataclass(frozen=True)
class Dataset:
    """Two sources with the same classes, and the preprocessing of both.

    Attributes:
      train, evaluation: the sources.
      preprocessing: of both.
      in_memory: whether reading is a copy out of memory, which no thread makes faster.
      padded: the lengths to which sequences are padded, ascending; empty: pictures.
    """

    train: Source
    evaluation: Source
    preprocessing: Preprocessing
    in_memory: bool
    padded: tuple[int, ...] = ()

    @cached_property
    def train_buckets(self) -> tuple[Bucket, ...]:
        """The training records by padded length; empty: pictures."""
        return buckets_of(as_sequences(self.train).lengths, self.padded) if self.padded else ()

    @cached_property
    def evaluation_buckets(self) -> tuple[Bucket, ...]:
        """The same of the evaluation records."""
        return buckets_of(as_sequences(self.evaluation).lengths, self.padded) if self.padded else ()

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should be told of the data, a line each."""
        parts = (self.train, self.evaluation) if self.padded else ()
        of_sequences = filter(None, (as_sequences(part).notice for part in parts))
        return tuple(dict.fromkeys((*of_sequences, *notices(self.train, self.evaluation))))

    def padded_to(self, steps: int) -> Dataset:
        """The same, every sequence padded to one length, none above it."""
        return replace(self, preprocessing=replace(self.preprocessing, height=steps), padded=(steps,))

    @property
    def class_names(self) -> tuple[str, ...]:
        """In label order."""
        return self.train.class_names


def open_dataset(section: DataSection, preprocessing: Preprocessing | None = None) -> Dataset:
    """Opens what a recipe names.

    Args:
      section: the recipe's `data`.
      preprocessing: that of pretrained weights, which then holds, but for the length of sequences and what the recipe
        says of pictures' sizes and crops; None: worked out from the data and the recipe.

    Raises:
      UserError: the data is missing, damaged, or not fit to classify.
    """
    section = _heard_as(section, preprocessing)
    whole, evaluation = open_kept(section)
    _check_classes(section, whole)
    if section.quarantine:
        # The list may have taken a whole class.
        _check_not_empty(whole, whole.labels, section.classes or tuple(range(len(whole.class_names))))
    prepared = _prepared_sequences if section.holds_sequences else _prepared
    dataset = prepared(section, whole, evaluation, preprocessing)
    _check_expected("data.expect_classes", section.expect_classes, len(dataset.class_names), "classes")
    _check_expected("data.expect_records", section.expect_records, len(dataset.train), "training records")
    return dataset


def open_kept(section: DataSection, *, as_it_is: bool = False) -> tuple[Source, Source | None]:
    """The whole set as `open_source` gives it, without the records that `section.quarantine` lists.

    Args:
      section: of the recipe.
      as_it_is: take folders whose classes nothing could be trained on.
    """
    if section.cache and not is_url(section.path) and section.source not in CACHED:
        raise UserError(f"data.cache has no effect with {section.source} on this machine; leave it out")
    as_it_is = as_it_is and section.source == "folder" and not is_url(section.path)
    opened: tuple[Source, Source | None]
    opened = open_folder_as_it_is(Path(section.path).expanduser()) if as_it_is else open_source(section)
    whole, evaluation = opened
    return _without_quarantined(section.quarantine, whole, evaluation) if section.quarantine else (whole, evaluation)


def _without_quarantined(listed: str, whole: Source, evaluation: Source | None) -> tuple[Source, Source | None]:
    path = Path(listed).expanduser()
    sources = [whole] if evaluation is None else [whole, evaluation]
    kept = records_kept(sources, read_quarantine(path), path)
    rest = [
        # Pixels in memory stay such: they are brought to size as a whole.
        source.chosen(records) if isinstance(source, ArraySource) else Subset(source, records)
        for source, records in zip(sources, kept, strict=True)
    ]
    return rest[0], rest[1] if len(rest) > 1 else None


def _prepared(
    section: DataSection, whole: Source, evaluation: Source | None, preprocessing: Preprocessing | None
) -> Dataset:
    if not isinstance(whole, ArraySource) or not isinstance(evaluation, ArraySource | None):
        stored = _stored_channels(section, whole)
        preprocessing = _as_asked(section, preprocessing) if preprocessing else _file_preprocessing(section, stored)
        _check_channels(section, stored, preprocessing.channels)
        train, evaluation = _split(section, whole, evaluation)
        if not preprocessing.mean:
            preprocessing = _measured(train, preprocessing)
        return Dataset(train, evaluation, preprocessing, in_memory=False)
    _check_no_file_settings(section)
    _check_not_empty(whole, whole.labels, section.classes or tuple(range(len(whole.class_names))))
    preprocessing = preprocessing and _without_crop(_as_asked(section, preprocessing))
    shape = preprocessing.shape if preprocessing else _array_shape(section, whole)
    trained = preprocessing.training.shape if preprocessing else shape
    _check_channels(section, whole.images.shape[-1], shape[2])
    # Pixels in memory are brought to size once, not once an epoch.
    train, held = _split(section, whole.resized(*trained), evaluation and evaluation.resized(*shape))
    if evaluation is None and trained != shape:
        _, held = _split(section, whole.resized(*shape), None)
    preprocessing = preprocessing or _array_preprocessing(train, shape)
    _, height, width, _ = whole.images.shape
    if height * shape[1] != width * shape[0]:
        # Their sides were brought to size each by itself; a prediction has to bend a picture as much.
        preprocessing = replace(preprocessing, crop_mode="squash")
    return Dataset(train, held, preprocessing, in_memory=True)


def _as_asked(section: DataSection, preprocessing: Preprocessing) -> Preprocessing:
    """What weights expect, but for what the recipe says of it; one size that it names is that of training too."""
    if section.channels not in (0, preprocessing.channels):
        raise UserError(
            f"data.channels is {section.channels}, and the weights see {preprocessing.channels}; leave it out: "
            "pictures are brought to that"
        )
    if size := section.image_size:
        preprocessing = replace(preprocessing.training, height=size, width=size)
    asked = {key: getattr(section, key) for key in ("crop_pct", "crop_mode", "interpolation")}
    return replace(preprocessing, **{key: value for key, value in asked.items() if value})


def _without_crop(preprocessing: Preprocessing) -> Preprocessing:
    """The same for pictures in memory, which are seen whole; so must be those of later predictions."""
    train = preprocessing.train and replace(preprocessing.train, crop_pct=1.0)
    return replace(preprocessing, crop_pct=1.0, crop_mode="center", interpolation="bilinear", train=train)


def _heard_as(section: DataSection, preprocessing: Preprocessing | None) -> DataSection:
    """The section, which makes of sound the features that pretrained weights expect."""
    features = preprocessing and preprocessing.sequence
    if preprocessing is not None and (features is not None) != section.holds_sequences:
        expected, found = ("sequences", "pictures") if features else ("pictures", "sequences")
        raise UserError(f"the weights expect {expected}, and data.source={section.source} has {found}; name other data")
    if not features:
        return section
    if (features.kind == "log_mel") != (section.source == "audio"):
        sound = "features of sound" if features.kind == "log_mel" else "numbers as they lie"
        raise UserError(f"the weights expect {sound}, and data.source={section.source} has others; name other data")
    values = {key: getattr(features, key) for key in AudioSection.model_fields}
    for key, field in AudioSection.model_fields.items():
        asked = getattr(section.audio, key)
        if asked not in (field.default, values[key]):
            raise UserError(
                f"data.audio.{key} is {asked:g}, and the weights expect {values[key]:g}; leave it out, or train anew"
            )
    return section.model_copy(update={"audio": AudioSection(**values)}) if section.source == "audio" else section


def _prepared_sequences(
    section: DataSection, whole: Source, evaluation: Source | None, preprocessing: Preprocessing | None
) -> Dataset:
    in_memory = section.source != "audio"
    if in_memory:
        _check_no_settings(section, ("workers", "processes"), "sequences")
    _check_not_empty(whole, whole.labels, section.classes or tuple(range(len(whole.class_names))))
    train, evaluation = map(as_sequences, _split(section, whole, evaluation))
    longest = max(int(part.lengths.max(initial=1)) for part in (train, evaluation))
    padded = padded_lengths(train.lengths, longest, section.buckets)
    if preprocessing is None:
        preprocessing = Preprocessing(longest, train.features, 1, *step_statistics(train), sequence=train.sequence)
    elif preprocessing.width != train.features:
        raise UserError(
            f"the weights expect {preprocessing.width} features a step, and {section.source} "
            f"{without_secrets(section.path)} has {train.features}; name other data"
        )
    return Dataset(train, evaluation, replace(preprocessing, height=longest), in_memory, padded)


def _check_no_file_settings(section: DataSection) -> None:
    """UserError for what only image files know."""
    keys = ("train_crop", "crop_pct", "crop_mode", "interpolation", "workers", "processes")
    _check_no_settings(section, keys, "images")


def _check_no_settings(section: DataSection, keys: Sequence[str], records: str) -> None:
    for key in keys:
        if getattr(section, key):
            raise UserError(
                f"data.{key} has no effect with {section.source}, whose {records} are kept whole in memory; "
                "leave it out"
            )


def described_preprocessing(section: DataSection) -> Preprocessing | None:
    """The preprocessing of image files, known without opening them; None where pixels in memory decide it."""
    return _file_preprocessing(section) if section.source.partition(":")[0] in IMAGE_FILES else None


def data_settings(data: str) -> dict[str, str]:
    """Recipe keys for data named in one word.

    Args:
      data: `digits`, `tfds:NAME[:split]`, a source and where it lies (`idx:FOLDER`, `manifest:FILE` ...), or just a
        file, a folder or a URL: what it holds tells the source.

    Raises:
      UserError: none of these.
    """
    kind, _, path = data.partition(":")
    if kind == "digits" or kind == "tfds":
        return {"data.source": data, "data.path": ""}
    if kind in KINDS and path:
        return {"data.source": kind, "data.path": path}
    if is_url(data):
        return {"data.source": FILE_KINDS.get(PurePosixPath(data).suffix, "folder"), "data.path": data}
    return {"data.source": _kind_of(Path(data).expanduser(), data), "data.path": data}


def _kind_of(path: Path, data: str) -> str:
    """What a file or folder looks like."""
    if path.is_file() and path.suffix in FILE_KINDS:
        return "sequences" if path.suffix == ".npz" and _has_lengths(path) else FILE_KINDS[path.suffix]
    if not path.is_dir():
        raise UserError(
            f"data {data!r}: there is no such file or folder of a known kind; name a folder, a file "
            f"({', '.join(FILE_KINDS)}), or one of {SOURCES}, those with a place as in folder:PATH"
        )
    for pattern, kind in FOLDER_SIGNS:
        if any(path.glob(pattern)):
            return kind
    return "folder"


def _has_lengths(archive: Path) -> bool:
    """Whether an archive of NumPy arrays holds sequences; a damaged one is told when it is opened."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return "lengths.npy" in opened.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def open_source(section: DataSection) -> tuple[Source, Source | None]:
    """The whole set, and its own evaluation split where it has one; both of one class.

    Raises:
      UserError: it is missing or damaged, or data.source is not known.
    """
    kind = section.source.partition(":")[0]
    if kind in KINDS and not section.path:
        raise UserError(f"data.path is empty; the source {section.source} needs a place: add data.path=FOLDER")
    if is_url(section.path):
        return _open_remote(kind, section)
    path = Path(section.path).expanduser()
    match kind:
        case "digits":
            if section.path:
                raise UserError(f"data.path is {section.path!r}, and digits come with the package: leave it empty")
            return open_digits(), None
        case "idx":
            _check_folder(section, path)
            train = open_idx(path, "train", section.class_names)
            if 0 < (named := len(section.class_names)) < len(train.class_names):
                last = len(train.class_names) - 1
                raise UserError(f"data.class_names names {named:,} classes, and the labels run to {last:,}; name all")
            return train, open_idx(path, "t10k", train.class_names)
        case "folder":
            _check_folder(section, path)
            return open_folder(path)
        case "manifest":
            from pcls.data.sources.manifest import open_manifest

            return open_manifest(path, cache=_cache(section), sets=_label_sets(section))
        case "arrays":
            return open_arrays(path, several=section.holds_label_sets)
        case "arrayrecord":
            from pcls.data.sources.arrayrecord import open_arrayrecord

            return open_arrayrecord(path)
        case "webdataset":
            from pcls.data.sources.webdataset import open_webdataset

            return open_webdataset(path, _cache(section))
        case "huggingface":
            from pcls.data.sources.huggingface import open_huggingface

            return open_huggingface(path)
        case "ts":
            from pcls.data.sources.sequences import open_ts

            return open_ts(path)
        case "sequences":
            from pcls.data.sources.sequences import open_npz_sequences

            return open_npz_sequences(path)
        case "audio":
            from pcls.data.sources.audio import open_audio

            _check_folder(section, path)
            return open_audio(path, SequenceFeatures("log_mel", **section.audio.model_dump()), section.test_match)
        case "tfds":
            from pcls.data.sources.tfds import open_tfds

            return open_tfds(section.source, section.path)
    raise UserError(f"data.source is {section.source!r}; allowed: {SOURCES}")


def _open_remote(kind: str, section: DataSection) -> tuple[Source, Source | None]:
    """Images of folders and manifests are fetched when asked for; sets of large files before they are opened."""
    cache = _cache(section)
    if kind == "folder":
        return open_remote_folder(section.path, cache)
    if kind == "manifest":
        return open_remote_manifest(section.path, cache, _label_sets(section))
    if kind not in REMOTE_FILES:
        raise UserError(f"data.path is a URL, and {section.source} takes none: copy it to this machine")
    is_file = section.path.endswith(tuple(FILE_KINDS))
    local = local_file(section.path, cache) if is_file else local_folder(section.path, cache, REMOTE_FILES[kind])
    return open_source(section.model_copy(update={"path": str(local)}))


def _label_sets(section: DataSection) -> LabelSets | None:
    separator = section.label_separator or SEPARATOR
    return LabelSets(separator, section.label_columns) if section.holds_label_sets else None


def check_one_label(section: DataSection, what: str) -> None:
    """UserError where records may carry several labels, and something takes one.

    Args:
      section: of the recipe.
      what: takes one.
    """
    if section.holds_label_sets:
        raise UserError(f"{what} is for records of one label, and data.labels is several; see docs/multilabel.md")


def _cache(section: DataSection) -> Path:
    return Path(section.cache).expanduser() if section.cache else cache_folder()


def _check_folder(section: DataSection, path: Path) -> None:
    if not path.is_dir():
        raise UserError(f"data.path {section.path}: there is no such folder")


def _check_classes(section: DataSection, source: Source) -> None:
    wrong = [label for label in section.classes if label >= len(source.class_names)]
    if wrong:
        raise UserError(f"data.classes names class {wrong[0]}; {section.source} has 0 to {len(source.class_names) - 1}")
    if len(set(section.classes)) < len(section.classes):
        raise UserError(f"data.classes names a class twice: {', '.join(map(str, section.classes))}")
    if len(section.classes or source.class_names) < 2:
        raise UserError(f"{section.source}: only one class; a classifier needs two or more")


def _split(section: DataSection, whole: Source, evaluation: Source | None) -> tuple[Source, Source]:
    """The records trained on and evaluated on; of those trained on a long tail where the recipe asks for it."""
    train, held = _parted(section, whole, evaluation)
    if section.long_tail > 1:
        train = Subset(train, np.flatnonzero(long_tailed(train.labels, section.long_tail, section.split_seed)))
    return train, held


def _parted(section: DataSection, whole: Source, evaluation: Source | None) -> tuple[Source, Source]:
    """The records trained on and evaluated on, of the classes that the recipe names."""
    if evaluation is not None:
        _check_labels_known(whole, evaluation)
    if evaluation is not None and not section.classes and not section.per_class:
        return whole, evaluation
    classes = section.classes or tuple(range(len(whole.class_names)))
    records, labels = _of_classes(whole, classes)
    _check_not_empty(whole, labels, classes)
    if evaluation is not None:
        others, _ = _of_classes(evaluation, classes)
        trained = few_of_each(labels, section.per_class, section.split_seed) if section.per_class else slice(None)
        return Subset(whole, records[trained], classes), Subset(evaluation, others, classes)
    groups = None if whole.groups is None else whole.groups[records]
    if section.per_class and groups is not None:
        raise UserError(
            "data.per_class would part the groups of this set: it has no evaluation part, and what is not trained on "
            "is evaluated on; write data.validation instead"
        )
    # Few labels leave the rest to be evaluated on; a share would waste it.
    trained = (
        few_of_each(labels, section.per_class, section.split_seed)
        if section.per_class
        else ~held_out(labels, section.validation, section.split_seed, groups)
    )
    if trained.all():
        where = without_secrets(section.path)
        raise UserError(f"{section.source} {where}: too few records to hold any out for evaluation; add some")
    # A class may have had all its records in groups that are held out.
    _check_not_empty(whole, labels[trained], classes)
    return Subset(whole, records[trained], classes), Subset(whole, records[~trained], classes)


def _of_classes(source: Source, classes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The records of some classes, and the label that each is split by.

    Where records carry several labels, all: one that carries none of the classes says that they are not there.
    """
    if source.targets is not None:
        return np.arange(len(source)), rarest_labels(source.targets[:, classes])
    records = np.flatnonzero(np.isin(source.labels, classes))
    return records, source.labels[records]


def _check_labels_known(train: Source, evaluation: Source) -> None:
    extra = evaluation.class_names[len(train.class_names) :]
    if extra:
        raise UserError(f"the evaluation labels run to class {extra[-1]!r}, which no training record carries")


def _check_expected(key: str, expected: int, found: int, what: str) -> None:
    if expected and expected != found:
        raise UserError(
            f"{key} is {expected:,} and there are {found:,} {what}; check the source, or correct the number"
        )


def _check_not_empty(source: Source, labels: np.ndarray, classes: tuple[int, ...]) -> None:
    if source.targets is not None:
        # A label that no record carries is told, not refused: of many some are rare.
        return
    present = set(map(int, np.unique(labels)))
    for label in classes:
        if label not in present:
            raise UserError(f"class {source.class_names[label]!r} has no training records; check the labels")


def _array_shape(section: DataSection, source: ArraySource) -> tuple[int, int, int]:
    _, height, width, channels = source.images.shape
    return section.image_size or height, section.image_size or width, section.channels or channels


def _array_preprocessing(train: Source, shape: tuple[int, int, int]) -> Preprocessing:
    """Statistics of the training records alone: the evaluation's must not leak into them."""
    everything = train.read(np.arange(len(train)), Preprocessing(*shape, mean=(), std=()), None)
    return Preprocessing(*shape, *pixel_statistics(everything.images))


def _stored_channels(section: DataSection, source: Source) -> int | None:
    """Of pixels that lie in files of arrays; None: each image has its own."""
    if section.source != "arrays":
        return None
    image = source.__getitems__([0])[0].image
    return image.shape[2] if isinstance(image, np.ndarray) else None


def _check_channels(section: DataSection, stored: int | None, wanted: int) -> None:
    """UserError where the images have other channels than the model is to see, and are not grey or RGB."""
    if stored is None and wanted not in (GREY, RGB):
        raise UserError(
            f"data.channels is {wanted}, and the images of {section.source} are files, grey (1) or RGB (3); other "
            "channels come as arrays: data.source=arrays"
        )
    if stored is not None and not convertible(stored, wanted):
        raise UserError(
            f"the images of {section.source} {without_secrets(section.path)} have {stored} channels, and the model is "
            f"to see {wanted}; leave out data.channels, or fit public weights by: pcls models import NAME --channels "
            f"{stored}"
        )


def _measured(train: Source, preprocessing: Preprocessing) -> Preprocessing:
    """With mean and deviation of some of the training records, from all over the set."""
    records = np.linspace(0, len(train) - 1, min(len(train), MEASURED)).astype(np.int64)
    read = train.read(records, preprocessing.training, None)
    mean, std = pixel_statistics(read.images[read.decoded])
    return replace(preprocessing, mean=mean, std=std)


def _file_preprocessing(section: DataSection, stored: int | None = None) -> Preprocessing:
    size = section.image_size or DEFAULT_IMAGE_SIZE
    channels = section.channels or stored or RGB
    # What is no photograph has no customary statistics: it is measured.
    mean, std = imagenet_statistics(channels) if channels in (GREY, RGB) else ((), ())
    return Preprocessing(
        height=size,
        width=size,
        channels=channels,
        mean=mean,
        std=std,
        crop_pct=section.crop_pct or DEFAULT_CROP_PCT,
        crop_mode=section.crop_mode or "center",
        interpolation=section.interpolation or "bilinear",
    )
