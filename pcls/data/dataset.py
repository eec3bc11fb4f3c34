"""A recipe's data section, opened: what is trained on, what is evaluated on, and how both are prepared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcls.config.schema import DataSection
from pcls.data.preprocessing import Preprocessing, imagenet_statistics
from pcls.data.sources.arrays import ArraySource, open_digits, open_idx, pixel_statistics
from pcls.data.sources.folder import open_folder
from pcls.data.sources.source import Source, Subset
from pcls.data.split import few_of_each, held_out
from pcls.errors import UserError

SOURCES = "digits, idx, folder, tfds:NAME[:split]"
# Pictures of free size come at this size when neither the recipe nor the weights say one.
DEFAULT_IMAGE_SIZE = 224
DEFAULT_CROP_PCT = 0.875


@dataclass(frozen=True)
class Dataset:
    """Two sources with the same classes, the preprocessing of both, and how many threads read them.

    Pixels in memory are read by no thread (0): the copy takes less time than handing it over.
    """

    train: Source
    evaluation: Source
    preprocessing: Preprocessing
    workers: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """In label order."""
        return self.train.class_names


def open_dataset(section: DataSection, preprocessing: Preprocessing | None = None) -> Dataset:
    """Opens what a recipe names.

    Args:
      section: the recipe's `data`.
      preprocessing: that of pretrained weights, which then holds; None: worked out from the data and the recipe.

    Raises:
      UserError: the data is missing, damaged, or not fit to classify.
    """
    whole, evaluation = _open_source(section)
    _check_classes(section, whole)
    dataset = _prepared(section, whole, evaluation, preprocessing)
    _check_expected("data.expect_classes", section.expect_classes, len(dataset.class_names), "classes")
    _check_expected("data.expect_records", section.expect_records, len(dataset.train), "training records")
    return dataset


def _prepared(
    section: DataSection, whole: Source, evaluation: Source | None, preprocessing: Preprocessing | None
) -> Dataset:
    if not isinstance(whole, ArraySource) or not isinstance(evaluation, ArraySource | None):
        train, evaluation = _split(section, whole, evaluation)
        return Dataset(train, evaluation, preprocessing or _file_preprocessing(section), section.workers)
    if section.crop_pct is not None:
        raise UserError(f"data.crop_pct has no effect with {section.source}, whose images are kept whole; leave it out")
    _check_not_empty(whole, whole.labels, section.classes or tuple(range(len(whole.class_names))))
    shape = _array_shape(section, whole, preprocessing)
    # Pixels in memory are brought to size once, not once an epoch.
    whole, evaluation = whole.resized(*shape), evaluation and evaluation.resized(*shape)
    train, evaluation = _split(section, whole, evaluation)
    return Dataset(train, evaluation, preprocessing or _array_preprocessing(train, shape), workers=0)


def described_preprocessing(section: DataSection) -> Preprocessing | None:
    """The preprocessing of image files, known without opening them; None where pixels in memory decide it."""
    return _file_preprocessing(section) if section.source.partition(":")[0] in ("folder", "tfds") else None


def data_settings(data: str) -> dict[str, str]:
    """Recipe keys for data named in one word.

    Args:
      data: `digits`, `idx:FOLDER`, `folder:FOLDER`, `tfds:NAME[:split]`, or just a folder: of idx files, or of one
        folder a class.

    Raises:
      UserError: none of these.
    """
    kind, _, path = data.partition(":")
    if kind == "digits" or kind == "tfds":
        return {"data.source": data, "data.path": ""}
    if kind in ("idx", "folder") and path:
        return {"data.source": kind, "data.path": path}
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise UserError(f"data {data!r}: there is no such folder; a folder or one of {SOURCES} is needed")
    has_idx = any(folder.glob("*-images[-.]idx3-ubyte*"))
    return {"data.source": "idx" if has_idx else "folder", "data.path": data}


def _open_source(section: DataSection) -> tuple[Source, Source | None]:
    """The whole set, and its own evaluation split where it has one; both of one class."""
    match section.source.partition(":")[0]:
        case "digits":
            if section.path:
                raise UserError(f"data.path is {section.path!r}, and digits come with the package: leave it empty")
            return open_digits(), None
        case "idx":
            folder = _needed_folder(section)
            train = open_idx(folder, "train")
            return train, open_idx(folder, "t10k", known_classes=len(train.class_names))
        case "folder":
            return open_folder(_needed_folder(section))
        case "tfds":
            from pcls.data.sources.tfds import open_tfds

            return open_tfds(section.source, section.path)
    raise UserError(f"data.source is {section.source!r}; allowed: {SOURCES}")


def _needed_folder(section: DataSection) -> Path:
    if not section.path:
        raise UserError(f"data.path is empty; the source {section.source} needs a folder: add data.path=FOLDER")
    folder = Path(section.path).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.path {section.path}: there is no such folder")
    return folder


def _check_classes(section: DataSection, source: Source) -> None:
    wrong = [label for label in section.classes if label >= len(source.class_names)]
    if wrong:
        raise UserError(f"data.classes names class {wrong[0]}; {section.source} has 0 to {len(source.class_names) - 1}")
    if len(set(section.classes)) < len(section.classes):
        raise UserError(f"data.classes names a class twice: {', '.join(map(str, section.classes))}")
    if len(section.classes or source.class_names) < 2:
        raise UserError(f"{section.source}: only one class; a classifier needs two or more")


def _split(section: DataSection, whole: Source, evaluation: Source | None) -> tuple[Source, Source]:
    """The records trained on and evaluated on, of the classes that the recipe names."""
    if evaluation is not None:
        _check_labels_known(whole, evaluation)
    if evaluation is not None and not section.classes and not section.per_class:
        return whole, evaluation
    classes = section.classes or tuple(range(len(whole.class_names)))
    records = np.flatnonzero(np.isin(whole.labels, classes))
    labels = whole.labels[records]
    _check_not_empty(whole, labels, classes)
    if evaluation is not None:
        others = np.flatnonzero(np.isin(evaluation.labels, classes))
        trained = few_of_each(labels, section.per_class, section.split_seed) if section.per_class else slice(None)
        return Subset(whole, records[trained], classes), Subset(evaluation, others, classes)
    # Few labels leave the rest to be evaluated on; a share would waste it.
    trained = (
        few_of_each(labels, section.per_class, section.split_seed)
        if section.per_class
        else ~held_out(labels, section.validation, section.split_seed)
    )
    if trained.all():
        raise UserError(f"{section.source} {section.path}: too few images to hold any out for evaluation; add images")
    return Subset(whole, records[trained], classes), Subset(whole, records[~trained], classes)


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
    present = set(map(int, np.unique(labels)))
    for label in classes:
        if label not in present:
            raise UserError(f"class {source.class_names[label]!r} has no training records; check the labels")


def _array_shape(
    section: DataSection, source: ArraySource, preprocessing: Preprocessing | None
) -> tuple[int, int, int]:
    if preprocessing is not None:
        return preprocessing.height, preprocessing.width, preprocessing.channels
    _, height, width, channels = source.images.shape
    return section.image_size or height, section.image_size or width, section.channels or channels


def _array_preprocessing(train: Source, shape: tuple[int, int, int]) -> Preprocessing:
    """Statistics of the training records alone: the evaluation's must not leak into them."""
    everything = train.read(np.arange(len(train)), Preprocessing(*shape, mean=(), std=()), None)
    return Preprocessing(*shape, *pixel_statistics(everything.images))


def _file_preprocessing(section: DataSection) -> Preprocessing:
    size = section.image_size or DEFAULT_IMAGE_SIZE
    channels = section.channels or 3
    mean, std = imagenet_statistics(channels)
    return Preprocessing(size, size, channels, mean, std, section.crop_pct or DEFAULT_CROP_PCT)
