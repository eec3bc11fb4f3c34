"""Sets that TensorFlow Datasets has prepared as ArrayRecord files; read without TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pcls.data.sources.source import ImageSource, Stored, Unreadable
from pcls.errors import UserError, first_line

# Validation first, as in folders: a test split may be unlabelled (ImageNet's is), and serves better for the last word.
EVALUATION_SPLITS = ("validation", "test")


class TfdsStore:
    """One split of a prepared set."""

    def __init__(self, builder: Any, split: str):
        import tensorflow_datasets as tfds

        self._title = f"{builder.info.name} {split}"
        # The stored bytes are decoded here, by the same rules as files in a folder.
        self._encoded = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitems__(self, records: Sequence[int]) -> list[Stored]:
        """Reads a batch of records in one call: ArrayRecord is many times slower one by one."""
        try:
            examples = self._encoded.__getitems__(list(records))
        except RuntimeError as error:
            if len(records) == 1:
                # A damaged record loses its label too; it weighs nothing.
                return [Stored(Unreadable(first_line(error)), 0)]
            # Of many the damaged one is not told: one by one.
            return [stored for record in records for stored in self.__getitems__([record])]
        return [Stored(example["image"], int(example["label"])) for example in examples]

    def name(self, record: int) -> str:
        """`<set> <split> #<record>`."""
        return f"{self._title} #{record}"


def open_tfds(source: str, data_dir: str) -> tuple[ImageSource, ImageSource | None]:
    """Opens `tfds:NAME[:split]`.

    Args:
      source: the recipe's `data.source`; the split is that of training, `train` if unnamed.
      data_dir: where the set was prepared; empty: TensorFlow Datasets' own default.

    Raises:
      UserError: the set is not there, or is not a prepared image classification set in ArrayRecord form.
    """
    import tensorflow_datasets as tfds

    _, name, *rest = source.split(":", 2)
    where = data_dir or "~/tensorflow_datasets"
    if data_dir and not Path(data_dir).is_dir():
        raise UserError(f"{data_dir}: there is no such folder; data.path needs the folder that {name} was prepared in")
    try:
        builder: Any = tfds.builder(name, data_dir=data_dir or None)
        splits = list(builder.info.splits)
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        raise UserError(
            f"tfds:{name} was not found in {where} ({first_line(error)}); prepare it there first"
        ) from error
    split = rest[0] if rest else "train"
    if split.partition("[")[0] not in splits:
        known = f"it has {', '.join(splits)}" if splits else f"it is not prepared in {where}"
        raise UserError(f"tfds:{name} has no split {split!r}; {known}")
    features = builder.info.features
    if "image" not in features or "label" not in features:
        raise UserError(f"tfds:{name} has the features {', '.join(sorted(features))}; image and label are needed")
    if str(builder.info.file_format.value) != "array_record":
        raise UserError(
            f"tfds:{name} is stored as {builder.info.file_format.value}; prepare it with file_format=array_record"
        )
    held_out = next((s for s in EVALUATION_SPLITS if s in splits and s != split.partition("[")[0]), None)
    try:
        train = _source(builder, split)
    except ValueError as error:
        raise UserError(f"tfds:{name} has no split {split!r} ({first_line(error)})") from error
    return train, _source(builder, held_out) if held_out else None


def _source(builder: Any, split: str) -> ImageSource:
    return ImageSource(TfdsStore(builder, split), tuple(builder.info.features["label"].names))
