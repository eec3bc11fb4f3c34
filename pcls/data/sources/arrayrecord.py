"""A set that `pcls data convert` wrote: image files in ArrayRecord shards, labels beside them, and what it is made of.

A shard is read by `seek` and `read` of its own reader, record by record. `read([...])` of a batch copies the shard's
whole index each time: 15 ms a batch for a shard of 1,250,000 records, against 0.03 ms a record. And array_record's
ArrayRecordDataSource took 900 MB for ten million records, its readers alone 170.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest
from json import JSONDecodeError, loads
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Final, Literal

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pcls.data.sources.source import ImageSource, Stored, Unreadable
from pcls.errors import UserError

FORMAT: Final = 1
DESCRIPTION = "dataset.json"
# Holds what is not finished; `pcls data convert` removes it last.
PROGRESS = ".convert"

Part = Literal["train", "evaluation"]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

ANEW = "remove the folder and convert anew"
AGAIN = f"copy it again, or {ANEW}"

READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
READER_BUFFER = 1 << 15


class Strict(BaseModel):
    """What is read back as exactly what was written."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StoredFile(Strict):
    """A file of the set, its size in bytes, and its digest."""

    # A name and never a path: a set from elsewhere must not lead out of its folder.
    file: Annotated[str, Field(pattern=r"^(train|evaluation)-[A-Za-z0-9_.-]+$")]
    bytes: Count
    sha256: Sha256


class Shard(StoredFile):
    """A file of records."""

    records: Count


class LeftOut(Strict):
    """A record of the source that is not in the set, by its number there."""

    record: Count
    name: str
    reason: str


class Split(Strict):
    """One part of the set.

    Attributes:
      records: in all shards.
      names: SHA-256 of the names of the source's records, so that another source is told apart.
      labels: [records] int32 .npy.
      groups: the same, or None.
    """

    records: Count
    names: Sha256
    shards: tuple[Shard, ...]
    labels: StoredFile
    groups: StoredFile | None
    left_out: tuple[LeftOut, ...]

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All of them."""
        return (*self.shards, self.labels, *([self.groups] if self.groups else []))


class Reencoding(Strict):
    """How images were made smaller: those with a longer side, and those that were no JPEG, as JPEG of this quality."""

    longest_side: Annotated[int, Field(ge=1)]
    quality: Annotated[int, Field(ge=1, le=100)]


class Description(Strict):
    """What dataset.json holds.

    Attributes:
      format: of this description.
      source: what it was made of, in words.
      licence: of the images, as whoever converted them said.
      images: the bytes of the source's files (of pixels: PNG), or re-encoded.
      classes: names in label order.
      splits: `train`, and `evaluation` where the source has one.
    """

    format: Literal[1]
    source: str
    licence: str
    images: Literal["unchanged"] | Reencoding
    classes: tuple[str, ...]
    splits: dict[Part, Split]


class ShardReader:
    """Reads one shard, opened when it is first needed; safe in several threads, and when sent to another process."""

    def __init__(self, path: Path, records: int):
        self.path = path
        self.records = records
        self._lock = Lock()
        self._reader: ArrayRecordReader | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardReader, (self.path, self.records)

    def read(self, positions: Sequence[int]) -> list[bytes | Unreadable]:
        """The records at some positions."""
        # One seeks, then reads: another thread must not seek in between.
        with self._lock:
            return [self._read(position) for position in positions]

    def _read(self, position: int) -> bytes | Unreadable:
        try:
            if self._reader is None:
                self._reader = self._open()
            self._reader.seek(position)
            return self._reader.read()
        except RuntimeError as error:
            # A reader that has met a damaged record fails on every other one too.
            self._reader = None
            return Unreadable(f"{self.path.name}: {_reason(error)}")

    def _open(self) -> ArrayRecordReader:
        reader = ArrayRecordReader(str(self.path), READER_OPTIONS, file_reader_buffer_size=READER_BUFFER)
        # A missing file and a damaged index raise nothing: they hold no records.
        if reader.num_records() != self.records:
            raise RuntimeError("missing, or its index is damaged")
        return reader


def _reason(error: RuntimeError) -> str:
    """`chunk data hash mismatch` out of a sentence with the file, the place, and both hashes."""
    return str(error).removeprefix("Corrupted Riegeli/records file: ").partition(" (")[0].partition(", chunk at")[0]


class ArrayRecordStore:
    """The records of some shards, one behind the other.

    Args:
      shards: in order.
      labels: [n] int32.
    """

    def __init__(self, shards: Sequence[ShardReader], labels: np.ndarray):
        self._shards = shards
        self._ends = np.cumsum([shard.records for shard in shards])
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(self, records: Sequence[int]) -> list[Stored]:
        """Goes to each shard once; a damaged record comes out as `Unreadable`, and costs no other."""
        shards, positions = self._places(np.asarray(records, np.int64))
        images: list[bytes | Unreadable] = [b""] * len(records)
        for shard in np.unique(shards):
            (rows,) = np.nonzero(shards == shard)
            for row, image in zip(rows, self._shards[shard].read(positions[rows].tolist()), strict=True):
                images[row] = image
        labels = self._labels[np.asarray(records, np.int64)].tolist()
        return [Stored(image, label) for image, label in zip(images, labels, strict=True)]

    def name(self, record: int) -> str:
        """`<shard's path> #<record in it>`."""
        (shard,), (position,) = self._places(np.asarray([record]))
        return f"{self._shards[shard].path} #{position}"

    def _places(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shards = np.searchsorted(self._ends, records, side="right")
        return shards, records - np.concatenate([[0], self._ends])[shards]


def open_arrayrecord(folder: Path) -> tuple[ImageSource, ImageSource | None]:
    """Opens a set that `pcls data convert` wrote.

    Sizes of all files and the digests of the labels are compared; records carry checksums of their own, which are
    compared when they are read.

    Raises:
      UserError: it is missing, not finished, damaged, or of another format.
    """
    description = read_description(folder)
    train = _open_split(folder, description, "train")
    return train, _open_split(folder, description, "evaluation") if "evaluation" in description.splits else None


def read_description(folder: Path) -> Description:
    """Reads dataset.json.

    Raises:
      UserError: there is none, or it is damaged or of another format.
    """
    path = folder / DESCRIPTION
    try:
        text = path.read_text(encoding="utf-8")
        found = loads(text).get("format")
        if found != FORMAT:
            raise UserError(f"{path}: has format {found!r}, and this version of pcls reads {FORMAT}")
        description = Description.model_validate_json(text)
    except FileNotFoundError as error:
        raise UserError(_not_there(folder)) from error
    except (JSONDecodeError, UnicodeDecodeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is damaged (no JSON object); {AGAIN}") from error
    except ValidationError as error:
        raise UserError(f"{path}: is damaged ({_first(error)}); {AGAIN}") from error
    if "train" not in description.splits:
        raise UserError(f"{path}: is damaged (no split train); {AGAIN}")
    return description


def _not_there(folder: Path) -> str:
    if (folder / PROGRESS).is_dir():
        return f"{folder}: its conversion is not finished; run the same `pcls data convert` again, and it goes on"
    what = f"it holds no {DESCRIPTION}" if folder.is_dir() else "there is no such folder"
    return f"{folder}: {what}; a folder that `pcls data convert` wrote is needed"


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _open_split(folder: Path, description: Description, part: Part) -> ImageSource:
    split = description.splits[part]
    in_shards = sum(shard.records for shard in split.shards)
    if in_shards != split.records:
        raise UserError(
            f"{folder / DESCRIPTION}: is damaged ({part} has {split.records:,} records, its shards {in_shards:,}); "
            f"{AGAIN}"
        )
    check_sizes(folder, split)
    labels = _column(folder, split.labels, split.records)
    if split.records and not 0 <= int(labels.min()) <= int(labels.max()) < len(description.classes):
        raise UserError(
            f"{folder / split.labels.file}: holds labels from {labels.min()} to {labels.max()}, and there are "
            f"{len(description.classes)} classes; {ANEW}"
        )
    groups = _column(folder, split.groups, split.records) if split.groups else None
    readers = [ShardReader(folder / shard.file, shard.records) for shard in split.shards]
    return ImageSource(ArrayRecordStore(readers, labels), description.classes, labels, groups)


def check_sizes(folder: Path, split: Split) -> None:
    """UserError where a file is missing, or of another size."""
    for file in split.files:
        if problem := _wrong_size(folder, file):
            raise UserError(f"{folder / file.file}: {problem}; {AGAIN}")


def _wrong_size(folder: Path, file: StoredFile) -> str:
    try:
        size = (folder / file.file).stat().st_size
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if size == file.bytes else f"has {size:,} of {file.bytes:,} bytes"


def _column(folder: Path, file: StoredFile, records: int) -> np.ndarray:
    path = folder / file.file
    # A wrong label would be believed, other than a wrong image; 40 MB for ten million records take 0.03 s.
    if digest(path) != file.sha256:
        raise UserError(f"{path}: is damaged (its digest differs); {AGAIN}")
    column = np.load(path, mmap_mode="r")
    if column.shape != (records,) or column.dtype != np.int32:
        raise UserError(f"{path}: holds {column.dtype} {list(column.shape)} instead of int32 [{records}]; {ANEW}")
    return np.asarray(column)


def verify(folder: Path, advance: Callable[[int], None] = lambda records: None) -> list[str]:
    """Compares the digest of every file with what dataset.json says.

    Args:
      folder: of the set.
      advance: told the bytes of each file that has been read.

    Returns:
      A line for each damaged file: its name, and what is wrong.

    Raises:
      UserError: dataset.json is missing or damaged.
    """
    files = [file for split in read_description(folder).splits.values() for file in split.files]

    def problem(file: StoredFile) -> str:
        found = _wrong_size(folder, file) or ("" if digest(folder / file.file) == file.sha256 else "its digest differs")
        advance(file.bytes)
        return f"{file.file}: {found}" if found else ""

    with ThreadPoolExecutor(4) as pool:
        return list(filter(None, pool.map(problem, files)))


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
