"""Sets on disk as Hugging Face's `datasets` writes them by `save_to_disk`; read by pyarrow alone, mapped into memory.

Layout: a folder with `state.json` (which Arrow files), `dataset_info.json` (what the columns mean) and the files, in
Arrow's streaming format; or `dataset_dict.json` and such a folder a split.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pcls.data.sources.folder import EVALUATION_FOLDERS
from pcls.data.sources.source import ImageSource, Stored, Unreadable
from pcls.errors import UserError, first_line

# Which column is meant where several are of the type.
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
SAVE_AGAIN = "save the set again with save_to_disk"


class Columns(NamedTuple):
    """The two columns that matter."""

    image: str
    label: str


class ArrowStore:
    """The images of one split. The files are mapped when first read, anew in each process.

    Args:
      files: Arrow streams, in order.
      columns: of them.
      labels: [n] int32.
      title: what `name` puts before a record's number.
    """

    def __init__(self, files: Sequence[Path], columns: Columns, labels: np.ndarray, title: str):
        self._files = files
        self._columns = columns
        self._labels = labels
        self._title = title

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes no mapped file."""
        return ArrowStore, (self._files, self._columns, self._labels, self._title)

    @cached_property
    def _images(self) -> pa.ChunkedArray:
        return pa.chunked_array([chunk for file in self._files for chunk in _table(file)[self._columns.image].chunks])

    @cached_property
    def _ends(self) -> np.ndarray:
        """Where each record batch ends: a record's batch is found by bisection."""
        return np.cumsum([len(chunk) for chunk in self._images.chunks])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(self, records: Sequence[int]) -> list[Stored]:
        """Copies the records' bytes out of the mapped files."""
        return [Stored(self._image(record), int(self._labels[record])) for record in records]

    def name(self, record: int) -> str:
        """`<folder> #<record>`."""
        return f"{self._title} #{record}"

    def _image(self, record: int) -> bytes | Unreadable:
        batch = int(np.searchsorted(self._ends, record, side="right"))
        start = int(self._ends[batch - 1]) if batch else 0
        image = self._images.chunk(batch)[record - start].as_py()
        if image is None:
            return Unreadable("the set holds no image here")
        if image["bytes"] is None:
            return Unreadable(f"the set holds no bytes here, only the path {image.get('path')}")
        return bytes(image["bytes"])


def open_huggingface(path: Path) -> tuple[ImageSource, ImageSource | None]:
    """Opens a set that `save_to_disk` wrote.

    Args:
      path: the folder.

    Returns:
      The split `train` (or the only one), and the first of the splits val, validation, valid and test that is there.

    Raises:
      UserError: no such set, damaged files, no or several columns that may be the image or the label, labels missing.
    """
    if (path / "state.json").is_file():
        return _open_split(path), None
    if not (path / "dataset_dict.json").is_file():
        raise UserError(f"{path}: no dataset_dict.json or state.json in it; data.path needs a folder of save_to_disk")
    splits = _json(path / "dataset_dict.json").get("splits")
    if not isinstance(splits, list) or "train" not in splits:
        found = ", ".join(map(str, splits)) if isinstance(splits, list) else "none"
        raise UserError(f"{path}: has no split train, only {found}; point data.path at the folder of the split to use")
    train = _open_split(path / "train")
    held_out = next((split for split in EVALUATION_FOLDERS if split in splits), None)
    if held_out is None:
        return train, None
    evaluation = _open_split(path / held_out)
    if evaluation.class_names != train.class_names:
        raise UserError(f"{path}: train and {held_out} differ in the names or the order of the classes; {SAVE_AGAIN}")
    return train, evaluation


def _open_split(folder: Path) -> ImageSource:
    features = _json(folder / "dataset_info.json").get("features")
    if not isinstance(features, dict):
        raise UserError(f"{folder / 'dataset_info.json'}: says nothing of the columns (features); {SAVE_AGAIN}")
    columns = Columns(
        _column(folder, features, "Image", IMAGE_COLUMNS, 'cast_column("image", Image())'),
        _column(folder, features, "ClassLabel", LABEL_COLUMNS, 'class_encode_column("label")'),
    )
    names = features[columns.label].get("names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{folder}: the column {columns.label} has no class names; {SAVE_AGAIN}")
    files = _files(folder)
    labels = _labels(folder, files, columns, len(names))
    return ImageSource(ArrowStore(files, columns, labels, str(folder)), tuple(names), labels)


def _column(folder: Path, features: Mapping[str, Any], kind: str, usual: tuple[str, ...], remedy: str) -> str:
    """The column of a type; of several the one with the usual name."""
    found = [name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == kind]
    if not found:
        raise UserError(
            f"{folder}: no column of type {kind} among {', '.join(features)}; use {remedy} and save it again"
        )
    chosen = found if len(found) == 1 else [name for name in found if name in usual]
    if len(chosen) != 1:
        raise UserError(
            f"{folder}: {', '.join(found)} are all columns of type {kind}; call the right one "
            f"{usual[0]} by rename_column, or take the others out by remove_columns, and save the set again"
        )
    return chosen[0]


def _files(folder: Path) -> list[Path]:
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise UserError(f"{folder}: is a selection of rows of a larger set; call flatten_indices() and {SAVE_AGAIN}")
    try:
        names = [entry["filename"] for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'state.json'}: names no data files; {SAVE_AGAIN}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{folder / 'state.json'}: {name!r} is no file of this folder; {SAVE_AGAIN}")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: is missing, and state.json names it; copy the set again")
    return [folder / name for name in names]


def _labels(folder: Path, files: Sequence[Path], columns: Columns, classes: int) -> np.ndarray:
    """[n] int32, checked; and that the images are what the columns claim."""
    parts = [np.zeros(0, np.int64)]
    for file in files:
        table = _table(file)
        if not set(columns) <= set(table.column_names):
            raise UserError(f"{file}: has the columns {', '.join(table.column_names)}, and not those that it should")
        images, labels = (table.schema.field(column).type for column in columns)
        if not pa.types.is_struct(images) or images.get_field_index("bytes") < 0 or not pa.types.is_integer(labels):
            raise UserError(f"{file}: {columns.image} and {columns.label} are {images} and {labels}; {SAVE_AGAIN}")
        # -1 is what `datasets` writes for records without a label.
        parts.append(table[columns.label].fill_null(-1).to_numpy())
    found = np.concatenate(parts)
    if not len(found):
        raise UserError(f"{folder}: holds no records")
    wrong = np.flatnonzero((found < 0) | (found >= classes))
    if len(wrong):
        says = "no label" if found[wrong[0]] == -1 else f"the label {found[wrong[0]]}"
        raise UserError(
            f"{folder}: record {wrong[0]:,} has {says}; {len(wrong):,} of {len(found):,} records are of none of the "
            f"{classes:,} classes: take them out by filter() and {SAVE_AGAIN}"
        )
    return found.astype(np.int32)


def _table(file: Path) -> pa.Table:
    """A whole file; mapped, so only what is looked at is read."""
    try:
        with file.open("rb") as raw:
            raw.seek(-len(END_OF_STREAM), os.SEEK_END)
            # A stream that is cut between two batches reads as a shorter one.
            if raw.read() != END_OF_STREAM:
                raise UserError(f"{file}: is cut short, or no Arrow stream; copy it again")
        table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
        # Without this a damaged offset is followed wherever it leads, when the record is read.
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: is no Arrow stream, or a damaged one ({first_line(error)}); copy it again") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; {SAVE_AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is no JSON ({first_line(error)}); {SAVE_AGAIN}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: is no JSON object; {SAVE_AGAIN}")
    return values
