"""Sequences of different lengths: a source that pads them, sktime's `.ts` files, and arrays that NumPy saved."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np

from pcls.data.preprocessing import Preprocessing, SequenceFeatures
from pcls.data.sources.arrays import Header, checked_labels, class_names_of, member_array, member_header
from pcls.data.sources.source import Records, Store, Stored, StoredSource, Unreadable
from pcls.errors import UserError, first_line

TRAIN_END, TEST_END = "_TRAIN.ts", "_TEST.ts"
MAX_TS_BYTES = 1 << 32
# A record is a line: 4 million numbers of 8 characters.
MAX_LINE_BYTES = 1 << 25
MISSING = "?"
DIMENSIONS = re.compile("[1-9][0-9]{0,5}")

NPZ_FORMS = (("values", "lengths", "labels"), ("sequences", "lengths", "labels"))
EVALUATION_PREFIX = "test_"
VALUES = SequenceFeatures()


class SequenceSource(StoredSource):
    """A source over stored sequences, which it pads when asked for them.

    Args:
      store: where they lie; its records are [steps, features] float32.
      class_names: in label order.
      labels: [n] integers.
      lengths: [n] integers, the steps of each; 1 or more.
      features: numbers in a step.
      groups: [n] integers, or None.
      sequence: what the numbers are.
      notice: what the user should be told of the set, once, in one line; empty: nothing.
    """

    def __init__(
        self,
        store: Store,
        class_names: tuple[str, ...],
        labels: np.ndarray,
        lengths: np.ndarray,
        features: int,
        groups: np.ndarray | None = None,
        sequence: SequenceFeatures = VALUES,
        notice: str = "",
    ):
        self.store = store
        self.class_names = class_names
        self.labels = np.asarray(labels, np.int32)
        self.lengths = np.asarray(lengths, np.int32)
        self.features = features
        self.groups = groups
        self.sequence = sequence
        self.notice = notice

    def read(self, records: np.ndarray, preprocessing: Preprocessing, draws: np.ndarray | None) -> Records:
        """Reads the records and pads them by zeros to `preprocessing.height` steps; one that fails is zeros.

        Args:
          records: [n] int64.
          preprocessing: its height must hold the longest of them.
          draws: of random crops, which sequences know none of.

        Raises:
          ValueError: a record is longer than the height.
        """
        lengths = self.lengths[records]
        longest = int(lengths.max(initial=0))
        if longest > preprocessing.height:
            raise ValueError(f"a sequence has {longest:,} steps, and {preprocessing.height:,} were asked for")
        images = np.zeros((len(records), preprocessing.height, self.features, 1), np.float32)
        decoded = np.zeros(len(records), bool)
        for index, (values, _) in enumerate(self.store.__getitems__(records.tolist())):
            # Weight 0 downstream where it fails: counted and named there by `failure`, and limited.
            if isinstance(values, np.ndarray) and not self._fault(values, int(lengths[index])):
                images[index, : len(values), :, 0] = values
                decoded[index] = True
        return Records(images, self.labels[records], decoded, lengths)

    def failure(self, record: int, preprocessing: Preprocessing) -> str:
        """Reads once more for the reason; rare, so that batches need not carry texts."""
        (stored,) = self.store.__getitems__([record])
        if isinstance(stored.image, Unreadable):
            return f"cannot be read ({stored.image.reason})"
        assert isinstance(stored.image, np.ndarray)
        fault = self._fault(stored.image, int(self.lengths[record]))
        return fault or "could not be read before, and can be now"

    def _fault(self, values: np.ndarray, length: int) -> str:
        """What is wrong with a sequence; empty: nothing."""
        if values.shape != (length, self.features):
            return f"has changed: the shape {list(values.shape)} instead of {[length, self.features]}"
        if not np.isfinite(values).all():
            step = int(np.isfinite(values).all(axis=1).argmin())
            return f"holds a value that is not finite at step {step:,}"
        return ""


class RaggedStore:
    """Sequences in memory, one after the other.

    Args:
      values: [total steps, features] float32.
      lengths: [n] integers that add up to the total.
      labels: [n] integers.
      title: what `name` puts before a record's number.
    """

    def __init__(self, values: np.ndarray, lengths: np.ndarray, labels: np.ndarray, title: str):
        self._values = values
        self._ends = np.cumsum(lengths, dtype=np.int64)
        self._labels = labels
        self._title = title

    def __len__(self) -> int:
        return len(self._ends)

    def __getitems__(self, records: Sequence[int]) -> list[Stored]:
        """The steps, without a copy."""
        return [Stored(self._steps(record), int(self._labels[record])) for record in records]

    def name(self, record: int) -> str:
        """`<title> #<record>`."""
        return f"{self._title} #{record}"

    def _steps(self, record: int) -> np.ndarray:
        return self._values[self._ends[record - 1] if record else 0 : self._ends[record]]


def _float32(values: Sequence[float] | np.ndarray) -> np.ndarray:
    # What is too large becomes infinite, which is told of the record that holds it.
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)


def open_ts(path: Path) -> tuple[SequenceSource, SequenceSource | None]:
    """Opens sktime's text format: a file, or a folder that holds X_TRAIN.ts and X_TEST.ts.

    A line is a record: `a,b,c:d,e,f:label`, where each part between colons is one feature at all steps. `?` and NaN
    stand for missing values; a record that holds one is not decoded. Classes are those of the header, in its order.

    Returns:
      The records to train on; and those to evaluate on, where the folder has such.

    Raises:
      UserError: the file, the line, and what is wrong with it.
    """
    files = _ts_files(path)
    train, *others = [_read_ts(file) for file in files]
    for file, other in zip(files[1:], others, strict=True):
        if other.class_names != train.class_names:
            raise UserError(f"{file}: @classLabel names other classes, or in another order, than {files[0].name}")
        if other.features != train.features:
            raise UserError(f"{file}: {other.features} dimensions, and {files[0].name} has {train.features}")
    return train, others[0] if others else None


def _ts_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    names = sorted(path.glob(f"*{TRAIN_END}"))
    if len(names) != 1:
        found = f"{len(names)} files NAME{TRAIN_END}" if names else f"no file NAME{TRAIN_END}"
        raise UserError(f"{path}: {found}; name a folder that holds one, with NAME{TEST_END} beside it, or a .ts file")
    test = path / f"{names[0].name.removesuffix(TRAIN_END)}{TEST_END}"
    return [names[0], test] if test.is_file() else names


def _read_ts(path: Path) -> SequenceSource:
    # A pipe would be waited for without end.
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; a .ts file, or a folder with NAME{TRAIN_END}, is needed")
    try:
        if (size := path.stat().st_size) > MAX_TS_BYTES:
            way = "save the records as .npz for data.source=sequences"
            raise UserError(f"{path}: {size:,} bytes of text, more than {MAX_TS_BYTES:,}; {way}")
        with path.open("rb") as file:
            lines = _lines(path, file)
            return _ts_source(path, _ts_header(path, lines), lines)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _lines(path: Path, file: BinaryIO) -> Iterator[Line]:
    """Those that say something."""
    for number in count(1):
        line = file.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise UserError(f"{path}:{number}: longer than {MAX_LINE_BYTES:,} bytes; this is no .ts file of sktime")
        try:
            text = line.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: is no UTF-8 text; this is no .ts file of sktime") from error
        if text and not text.startswith("#"):
            yield Line(path, number, text)


class Line(NamedTuple):
    """A line of a text file."""

    path: Path
    number: int
    text: str

    def fail(self, what: str) -> NoReturn:
        """Says that it is at fault."""
        raise UserError(f"{self.path}:{self.number}: {what}")


class TsHeader(NamedTuple):
    """What the lines with an `@` say, as far as it matters.

    Attributes:
      class_names: in their order.
      features: dimensions; 0: not said.
      equal_length: whether all records have as many steps.
    """

    class_names: tuple[str, ...]
    features: int
    equal_length: bool


def _ts_header(path: Path, lines: Iterator[Line]) -> TsHeader:
    said: dict[str, Line] = {}
    for line in lines:
        key = line.text.split()[0].lower()
        if not key.startswith("@"):
            line.fail("neither # nor @ begins the line, and no @data came before it; this is no .ts file of sktime")
        if key == "@data":
            return _checked_header(line, said)
        said[key] = line
    raise UserError(f"{path}: ends before a line @data; this is no whole .ts file of sktime")


def _checked_header(data: Line, said: Mapping[str, Line]) -> TsHeader:
    """Takes the keys that say what the records do not."""
    if "@classlabel" not in said or not _is_true(said["@classlabel"]):
        data.fail("no classes before @data; a line as @classLabel true NAME NAME ... is needed")
    if "@timestamps" in said and _is_true(said["@timestamps"]):
        said["@timestamps"].fail("time stamps are not supported; save the records at equal steps, without them")
    class_names = tuple(said["@classlabel"].text.split()[2:])
    if len(set(class_names)) < len(class_names):
        said["@classlabel"].fail("names a class twice")
    equal_length = "@equallength" in said and _is_true(said["@equallength"])
    if "@univariate" in said and _is_true(said["@univariate"]):
        return TsHeader(class_names, 1, equal_length)
    return TsHeader(class_names, _dimensions(said["@dimensions"]) if "@dimensions" in said else 0, equal_length)


def _is_true(line: Line) -> bool:
    key, value, *_ = (*line.text.lower().split(), "")
    if value not in ("true", "false"):
        line.fail(f"{key} needs true or false")
    return value == "true"


def _dimensions(line: Line) -> int:
    _, *words = line.text.split()
    if len(words) != 1 or not DIMENSIONS.fullmatch(words[0]):
        line.fail("@dimensions needs a number from 1 to 999,999")
    return int(words[0])


def _ts_source(path: Path, header: TsHeader, lines: Iterator[Line]) -> SequenceSource:
    number_of = {name: number for number, name in enumerate(header.class_names)}
    features = header.features
    records: list[np.ndarray] = []
    labels: list[int] = []
    for line in lines:
        *dimensions, label = map(str.strip, line.text.split(":"))
        if label not in number_of:
            line.fail(f"the label {label[:40]!r} is none of @classLabel")
        features = features or len(dimensions)
        record = _ts_record(line, dimensions, features)
        if header.equal_length and records and len(record) != len(records[0]):
            line.fail(f"{len(record):,} steps after records of {len(records[0]):,}, and @equalLength is true")
        records.append(record)
        labels.append(number_of[label])
    if not records:
        raise UserError(f"{path}: no records after @data")
    lengths = np.array(list(map(len, records)), np.int32)
    store = RaggedStore(np.concatenate(records), lengths, np.array(labels, np.int32), str(path))
    return SequenceSource(store, header.class_names, np.array(labels), lengths, features)


def _ts_record(line: Line, dimensions: list[str], features: int) -> np.ndarray:
    """[steps, features] float32."""
    if not any(dimensions):
        line.fail("the record has no steps; leave it out")
    if len(dimensions) != features:
        line.fail(f"{len(dimensions)} dimensions before the label, and {features} are needed")
    columns = [_ts_values(line, text) for text in dimensions]
    if odd := [column for column in columns if len(column) != len(columns[0])]:
        line.fail(f"dimensions of {len(columns[0])} and {len(odd[0])} steps; all of a record must have as many")
    return np.stack(columns, axis=1)


def _ts_values(line: Line, text: str) -> np.ndarray:
    try:
        return _float32([float("nan" if word.strip() == MISSING else word) for word in text.split(",")])
    except ValueError as error:
        line.fail(f"is no list of numbers ({first_line(error)})")


def open_npz_sequences(path: Path) -> tuple[SequenceSource, SequenceSource | None]:
    """Opens sequences that NumPy saved into an `.npz` archive; held in memory.

    Its arrays: `labels` [n] and `lengths` [n], integers, with `values` [total steps, features], all records one after
    the other, or with `sequences` [n, steps, features], padded by anything; at choice `class_names` [classes] text, and
    the same with the prefix `test_` to evaluate on. Without names the classes are 0 to the largest label.

    Returns:
      The records to train on, and those of `test_labels` where there are such.

    Raises:
      UserError: the file, the array, and what is wrong with it.
    """
    arrays = _npz_arrays(path)
    names = class_names_of(path, arrays)
    train = _npz_source(path, arrays, "", names)
    if f"{EVALUATION_PREFIX}labels" not in arrays:
        return train, None
    evaluation = _npz_source(path, arrays, EVALUATION_PREFIX, names)
    if evaluation.features != train.features:
        raise UserError(f"{path}: {evaluation.features} features to evaluate on, and {train.features} to train on")
    return train, evaluation


def _npz_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; an .npz archive of sequences is needed")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _npz_members(path, {name.removesuffix(".npy"): name for name in archive.namelist()})
            headers = {name: member_header(path, archive, name, member) for name, member in members.items()}
            for name, header in headers.items():
                _check_form(name.removeprefix(EVALUATION_PREFIX), header, partial(_refuse, path, name))
            return {
                name: member_array(archive, members[name], header).reshape(header.shape)
                for name, header in headers.items()
            }
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: cannot be read ({reason}); a whole .npz archive is needed") from error


def _npz_members(path: Path, found: Mapping[str, str]) -> dict[str, str]:
    """Array -> member of the archive, of all that belong to the one or the other form."""
    chosen = ["class_names"]
    for prefix in ("", EVALUATION_PREFIX):
        forms = [[f"{prefix}{name}" for name in form] for form in NPZ_FORMS]
        if prefix and not any(name in found for form in forms for name in form):
            continue
        whole = [form for form in forms if form[0] in found]
        if len(whole) != 1:
            holds = ", ".join(list(found)[:20]) or "nothing"
            raise UserError(f"{path}: {forms[0][0]} or {forms[1][0]} is needed, one of them, and it holds: {holds}")
        if missing := [name for name in whole[0] if name not in found]:
            raise UserError(f"{path}: no array {missing[0]!r} beside {whole[0][0]}; add it")
        chosen += whole[0]
    return {name: found[name] for name in chosen if name in found}


def _refuse(path: Path, name: str, what: str) -> NoReturn:
    raise UserError(f"{path}: {name} {what}")


def _check_form(name: str, header: Header, fail: Callable[[str], NoReturn]) -> None:
    """Type and number of sizes of one array."""
    kinds, type_, shape = {
        "class_names": ("U", "text", "[classes]"),
        "labels": ("iu", "whole numbers", "[n]"),
        "lengths": ("iu", "whole numbers", "[n]"),
        "values": ("fiu", "numbers", "[total steps, features]"),
        "sequences": ("fiu", "numbers", "[n, steps, features]"),
    }[name]
    if header.dtype.kind not in kinds or not header.dtype.itemsize:
        fail(f"is {header.dtype}; an array {shape} of {type_} is needed")
    if len(header.shape) != shape.count(",") + 1:
        fail(f"has the shape {list(header.shape)}; {shape} is needed")
    if not all(header.shape):
        fail(f"has the shape {list(header.shape)}: it is empty")


def _npz_source(
    path: Path, arrays: Mapping[str, np.ndarray], prefix: str, class_names: tuple[str, ...]
) -> SequenceSource:
    labels = checked_labels(path, f"{prefix}labels", arrays[f"{prefix}labels"], len(class_names))
    form = "values" if f"{prefix}values" in arrays else "sequences"
    values, lengths = arrays[f"{prefix}{form}"], arrays[f"{prefix}lengths"]
    if len(lengths) != len(labels):
        _refuse(path, f"{prefix}lengths", f"has {len(lengths):,} values for {len(labels):,} labels")
    if form == "sequences" and len(values) != len(labels):
        _refuse(path, f"{prefix}sequences", f"has {len(values):,} records for {len(labels):,} labels")
    longest = values.shape[-2]
    if len(wrong := np.flatnonzero((lengths < 1) | (lengths > longest))):
        has = f"has {int(lengths[wrong[0]]):,} at record {int(wrong[0]):,}"
        _refuse(path, f"{prefix}lengths", f"{has}; from 1 to the {longest:,} steps of {prefix}{form} are allowed")
    lengths = lengths.astype(np.int64)
    if form == "sequences":
        values = values[np.arange(longest) < lengths[:, None]]
    if (total := int(lengths.sum())) != len(values):
        _refuse(path, f"{prefix}lengths", f"adds up to {total:,} steps, and {prefix}values has {len(values):,}")
    store = RaggedStore(_float32(values), lengths, labels, f"{path} {prefix}{form}")
    return SequenceSource(store, class_names, labels, lengths, values.shape[-1])
