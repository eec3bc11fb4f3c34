"""A list of images: CSV, TSV or Parquet with the columns `path` and `label`, and at choice `split` and `group`.

Where records carry several labels, or none, `label` has their names; or each label has a column of its own.
"""

from __future__ import annotations

import json
import posixpath
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from pcls.data.sources.cache import cache_folder, cache_key, kept
from pcls.data.sources.folder import FileStore, shown
from pcls.data.sources.paths import ENDS, PathColumn
from pcls.data.sources.source import ImageSource, Store
from pcls.data.sources.table import Table
from pcls.data.sources.targets import ROWS_AT_ONCE, LabelSets, check_size, rarest_labels
from pcls.errors import UserError

# What a cell of `split` may say, and the part that it means. Validation goes before test, as in folders.
SPLITS = {"train": "train", **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"), "test": "test"}
EVALUATION_SPLITS = ("validation", "test")

# Longer files are read and checked once; their columns stay in the cache, from where every process maps them. 10
# million paths of 25 characters are 370 MB with their ends and labels, and each worker would be sent them.
MAPPED_FROM = 8 << 20
INDEX_VERSION = 1

LABELS_AT_ONCE = 1 << 20
# What else people part names by.
SEPARATORS = ("|", ";", ",", "/", "+")
DOT, SLASH = ord("."), ord("/")
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Keeps k bytes of a little-endian word.
HEADS = np.array([(1 << 8 * k) - 1 for k in range(9)], np.uint64)


@dataclass(frozen=True)
class Part:
    """The rows of one split.

    Attributes:
      files: paths, relative or absolute, without `..`.
      labels: [n] int32.
      groups: [n] int32, or None.
      targets: [n, classes] uint8, where records carry several labels; `labels` are then the rarest.
    """

    files: PathColumn
    labels: np.ndarray
    groups: np.ndarray | None
    targets: np.ndarray | None = None


@dataclass(frozen=True)
class Manifest:
    """A manifest, read and checked.

    Attributes:
      class_names: in label order: numbers by value, names lexically.
      train: the rows to train on.
      evaluation: the rows of the split validation, else test, else None.
    """

    class_names: tuple[str, ...]
    train: Part
    evaluation: Part | None

    def sources(self, store: Callable[[Part], Store]) -> tuple[ImageSource, ImageSource | None]:
        """Both parts over the stores of their images."""

        def source(part: Part) -> ImageSource:
            return ImageSource(store(part), self.class_names, part.labels, part.groups, part.targets)

        return source(self.train), None if self.evaluation is None else source(self.evaluation)


def open_manifest(
    path: Path, root: Path | None = None, cache: Path | None = None, sets: LabelSets | None = None
) -> tuple[ImageSource, ImageSource | None]:
    """Opens a manifest of image files.

    Args:
      path: a .csv, .tsv or .parquet file.
      root: the folder where relative paths start, which they must not leave. None: that of the manifest.
      cache: where the columns of a long manifest are kept; None: `cache_folder()`.
      sets: how records carry several labels, or none; None: each carries one.

    Returns:
      The rows to train on, and those of the split validation, or test where there is none.

    Raises:
      UserError: the file, the row, and what is wrong with it.
    """
    root = path.parent if root is None else root
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; the images of {path} are looked for there")
    manifest = read_manifest(path, str(path), cache or cache_folder(), sets=sets)
    return manifest.sources(lambda part: FileStore(root, part.files, part.labels))


def column_of(path: Path, column: str, names: Sequence[str]) -> list[str]:
    """The values of a column for records of `open_manifest`, as text; empty where the cell is.

    Args:
      path: of the manifest, whose images lie where its paths start: in its folder.
      column: any of it.
      names: of the records.

    Raises:
      UserError: there is no such column, or no row for a record.
    """
    table = Table(path, str(path), column)
    table.status()
    wanted, found = set(names), {}
    for row, batch in table.batches():
        files = _normal(table, row, batch["path"], absolute=True).to_pylist()
        for file, value in zip(files, batch[column].to_pylist(), strict=True):
            # As a `FileStore` names it.
            name = shown(str(path.parent / file))
            if name in wanted:
                found[name] = "" if value is None else str(value)
    if missing := next((name for name in names if name not in found), None):
        raise UserError(f"{path}: has no row for {missing} any more; train anew, or bring the row back")
    return [found[name] for name in names]


def read_manifest(
    path: Path, title: str, cache: Path, *, absolute: bool = True, sets: LabelSets | None = None
) -> Manifest:
    """Reads and checks a manifest; a long one only once, until it is written anew.

    Args:
      path: the file.
      title: what messages call it.
      cache: where the columns of a long one are kept.
      absolute: whether its paths may be absolute.
      sets: how records carry several labels, or none; None: each carries one.

    Raises:
      UserError: the file, the row, and what is wrong with it.
    """
    table = Table(path, title, sets=sets)
    status = table.status()
    if status.st_size < MAPPED_FROM:
        with tempfile.TemporaryDirectory(prefix="pcls-") as folder:
            _write_index(table, Path(folder), absolute)
            return _read_index(Path(folder), mapped=False)

    def fill(folder: Path) -> None:
        folder.mkdir()
        _write_index(table, folder, absolute)

    labelled = () if sets is None else (sets.separator, sets.columns)
    key = cache_key(INDEX_VERSION, path.resolve(), status.st_size, status.st_mtime_ns, absolute, *labelled)
    index = kept(cache / "manifests" / key, fill)
    try:
        return _read_index(index, mapped=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{index}: is damaged ({error}); remove it, and it is made anew") from error


def _read_index(folder: Path, *, mapped: bool) -> Manifest:
    about = json.loads((folder / "about.json").read_text())
    evaluation = about["evaluation"]
    return Manifest(
        tuple(about["class_names"]),
        _read_part(folder, "train", len(about["class_names"]), mapped=mapped),
        _read_part(folder, evaluation, len(about["class_names"]), mapped=mapped) if evaluation else None,
    )


def _read_part(folder: Path, split: str, classes: int, *, mapped: bool) -> Part:
    text, ends, labels, groups, targets = (
        folder / f"{split}.{what}" for what in ("text", "ends", "labels", "groups", "targets")
    )
    files = PathColumn.map(text, ends) if mapped else PathColumn(np.fromfile(text, np.uint8), np.fromfile(ends, ENDS))
    return Part(
        files,
        _numbers(labels, np.int32, mapped),
        _numbers(groups, np.int32, mapped) if groups.exists() else None,
        _numbers(targets, np.uint8, mapped).reshape(-1, classes) if targets.exists() else None,
    )


def _numbers(file: Path, kind: type[np.generic], mapped: bool) -> np.ndarray:
    return np.memmap(file, kind, "r") if mapped else np.fromfile(file, kind)


class _Codes:
    """Numbers for values, in the order in which they first come."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def encode(self, column: pa.DictionaryArray) -> np.ndarray:
        """[n] int32."""
        values = map(str, column.dictionary.to_pylist())
        table = np.array([self.of.setdefault(value, len(self.of)) for value in values], np.int32)
        return table[column.indices.to_numpy()]


class _Rows:
    """The files that the rows of one split are written to, and how many rows each label has, by its code."""

    def __init__(self, folder: Path, split: str):
        self.counts = np.zeros(0, np.int64)
        self._prefix = f"{folder}/{split}."
        self._bytes = 0

    def append(self, paths: pa.StringArray, labels: np.ndarray, groups: np.ndarray | None) -> None:
        """Writes rows."""
        text, starts = _packed(paths)
        self._write("text", text)
        self._write("ends", starts[1:].astype(ENDS) + self._bytes)
        self._write("labels", labels)
        if groups is not None:
            self._write("groups", groups)
        self._bytes += len(text)
        counts = np.bincount(labels, minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts

    def _write(self, what: str, values: np.ndarray) -> None:
        with Path(self._prefix + what).open("ab") as file:
            file.write(values.data)


def _write_index(table: Table, folder: Path, absolute: bool) -> None:
    """Checks every row, and writes the columns of the parts to files of a folder."""
    labels, groups, hashes = _Codes(), _Codes(), bytearray()
    parts = {split: _Rows(folder, split) for split in ("train", *EVALUATION_SPLITS)}
    for row, batch in _one_ahead(table.batches()):
        paths = _normal(table, row, batch["path"], absolute)
        hashes += _hashes(*_packed(paths)).data
        label = labels.encode(batch["label"])
        group = groups.encode(batch["group"]) if "group" in batch.schema.names else None
        for split, chosen in _by_split(table, row, batch):
            if chosen is None:
                parts[split].append(paths, label, group)
            else:
                parts[split].append(paths.filter(chosen), label[chosen], None if group is None else group[chosen])
    if not hashes:
        raise UserError(f"{table.title}: holds no rows; one row an image is needed")
    _check_unique(table, np.frombuffer(hashes, np.uint64), absolute)
    del hashes
    counts = {split: dict(zip(labels.of, rows.counts.tolist(), strict=False)) for split, rows in parts.items()}
    finish = _finish if table.sets is None else _finish_sets
    finish(table, folder, list(labels.of), counts)


def _one_ahead(batches: Iterator[tuple[int, pa.RecordBatch]]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The same batches; one is read while the one before is worked on, both outside of Python's lock."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = reader.submit(next, batches, None)
            yield batch


def _by_split(table: Table, row: int, batch: pa.RecordBatch) -> Iterator[tuple[str, np.ndarray | None]]:
    """The splits in a batch, and which rows are of them; None: all."""
    if "split" not in batch.schema.names:
        yield "train", None
        return
    values, codes = batch["split"].dictionary.to_pylist(), batch["split"].indices.to_numpy()
    splits = np.array([SPLITS.get(value, "") for value in values])[codes]
    if (wrong := splits == "").any():
        index = int(wrong.argmax())
        table.fail(row + index, f"split is {values[codes[index]]!r}; allowed: {', '.join(SPLITS)}")
    for split in ("train", *EVALUATION_SPLITS):
        if (chosen := splits == split).any():
            yield split, chosen


def _finish(table: Table, folder: Path, texts: list[str], counts: Mapping[str, Mapping[str, int]]) -> None:
    """Numbers the classes in their order, and leaves only the parts that are trained and evaluated on.

    Args:
      texts: the labels, by their code.
      counts: split -> label -> rows.
    """
    trained = {text: rows for text, rows in counts["train"].items() if rows}
    if not trained:
        raise UserError(f"{table.title}: no row is of the split train")
    names = _ordered(table, trained)
    if len(names) < 2:
        raise UserError(f"{table.title}: only one class, {names[0]!r}; a classifier needs two or more")
    evaluation = next((split for split in EVALUATION_SPLITS if any(counts[split].values())), None)
    for text, rows in counts[evaluation].items() if evaluation else ():
        if rows and text not in trained:
            raise UserError(f"{table.title}: class {text!r} has rows of the split {evaluation} and none of train")
    number = {name: label for label, name in enumerate(names)}
    final = np.array([number.get(text, -1) for text in texts], np.int32)
    for split in ("train", evaluation) if evaluation else ("train",):
        _renumber(folder / f"{split}.labels", final)
    _leave(folder, names, evaluation)


def _leave(folder: Path, names: Sequence[str], evaluation: str | None) -> None:
    (folder / "about.json").write_text(json.dumps({"class_names": list(names), "evaluation": evaluation}))
    for file in folder.iterdir():
        if file.stem not in ("about", "train", evaluation):
            file.unlink()


def _finish_sets(table: Table, folder: Path, texts: list[str], counts: Mapping[str, Mapping[str, int]]) -> None:
    """The same for records that carry several labels, or none; a text is then the names of all that one carries.

    A class that no record carries, or none to train on, is not refused: of many labels some are rare.
    """
    sets = table.sets
    assert sets is not None
    if not any(counts["train"].values()):
        raise UserError(f"{table.title}: no row is of the split train")
    carried = [_names(table, text) for text in texts]
    evaluation = next((split for split in EVALUATION_SPLITS if any(counts[split].values())), None)
    parts = ("train", evaluation) if evaluation else ("train",)
    if not sets.columns:
        _check_separator(table, texts, sets.separator)
    rows: dict[str, int] = defaultdict(int)
    for split in parts:
        for text, own in zip(texts, carried, strict=True):
            for name in own:
                rows[name] += counts[split].get(text, 0)
    names = sets.columns or _ordered(table, {name: count for name, count in rows.items() if count})
    if len(names) < 2:
        raise UserError(f"{table.title}: fewer than two labels ({', '.join(names) or 'none'}); two or more are needed")
    number = {name: label for label, name in enumerate(names)}
    check_size(table.title, max(len(texts), sum(sum(counts[split].values()) for split in parts)), len(names))
    table_of_sets = np.zeros((len(texts), len(names)), np.uint8)
    for row, own in zip(table_of_sets, carried, strict=True):
        row[[number[name] for name in own if name in number]] = 1
    for split in parts:
        _write_targets(folder, split, table_of_sets)
    _leave(folder, names, evaluation)


def _names(table: Table, text: str) -> tuple[str, ...]:
    assert table.sets is not None
    try:
        return table.sets.names(text)
    except ValueError as error:
        table.fail(
            _row_of_text(table, text), f"{error} between its separators {table.sets.separator!r}; write it, or none"
        )


def _check_separator(table: Table, texts: Sequence[str], separator: str) -> None:
    """UserError where no record carries two labels: the names are probably parted by something else."""
    if any(separator in text for text in texts):
        return
    other = next((other for other in SEPARATORS for text in texts if other in text), None)
    if other:
        text = next(text for text in texts if other in text)
        raise UserError(
            f"{table.title}: no label has the separator {separator!r}, and {text!r} has {other!r}; write "
            f"data.label_separator={other!r}"
        )
    if all(text.strip() for text in texts):
        raise UserError(
            f"{table.title}: no label has the separator {separator!r}, so that each record carries one; write "
            "data.label_separator as the file has it, or data.labels=one"
        )


def _write_targets(folder: Path, split: str, sets: np.ndarray) -> None:
    """Writes which labels each record carries, and in place of the number of this set the rarest of them."""
    labels = np.memmap(folder / f"{split}.labels", np.int32, "r+")
    with (folder / f"{split}.targets").open("wb") as file:
        for start in range(0, len(labels), ROWS_AT_ONCE):
            file.write(sets[labels[start : start + ROWS_AT_ONCE]].data)
    targets = np.memmap(folder / f"{split}.targets", np.uint8, "r").reshape(-1, sets.shape[1])
    labels[:] = rarest_labels(targets)


def _renumber(file: Path, final: np.ndarray) -> None:
    labels = np.memmap(file, np.int32, "r+")
    for start in range(0, len(labels), LABELS_AT_ONCE):
        some = labels[start : start + LABELS_AT_ONCE]
        some[:] = final[some]


def _ordered(table: Table, rows: Mapping[str, int]) -> list[str]:
    """Class names in label order, from how many rows each has."""
    numbers = {text: int(text) for text in rows if text.isascii() and text.isdecimal()}
    if not numbers:
        return sorted(rows)
    if names := [text for text in rows if text not in numbers]:
        # The rarer kind is the slip.
        named = sum(rows[text] for text in names) > sum(rows[text] for text in numbers)
        odd, other = (next(iter(numbers)), names[0]) if named else (names[0], next(iter(numbers)))
        what = "a number, and others are names" if named else "no whole number, and others are"
        table.fail(_row_of_label(table, odd), f"label {odd!r} is {what}, as {other!r}; use one kind in all rows")
    ordered = sorted(numbers, key=lambda text: (numbers[text], text))
    for text, following in pairwise(ordered):
        if numbers[text] == numbers[following]:
            table.fail(_row_of_label(table, text), f"label {text!r} is {following!r} in other rows; write one form")
    return ordered


def _row_of_label(table: Table, label: str) -> int:
    return _row_where(table, lambda text: label in (table.sets.names(text) if table.sets else (text,)))


def _row_of_text(table: Table, text: str) -> int:
    return _row_where(table, lambda other: other == text)


def _row_where(table: Table, found: Callable[[str], bool]) -> int:
    for row, batch in table.batches():
        for index, text in enumerate(map(str, batch["label"].to_pylist())):
            if found(text):
                return row + index
    raise ValueError("no row has such a label")


def _packed(paths: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all paths, and [n + 1] int64: where each starts among them, and where the last ends."""
    _, offsets, data = paths.buffers()
    starts = np.frombuffer(offsets, np.int32)[paths.offset : paths.offset + len(paths) + 1].astype(np.int64)
    text = np.frombuffer(data or b"", np.uint8)[starts[0] : starts[-1]]
    return text, starts - starts[0]


def _normal(table: Table, row: int, paths: pa.StringArray, absolute: bool) -> pa.StringArray:
    """Checked paths, without `.`, `..` and doubled slashes."""
    text, starts = _packed(paths)
    if (empty := starts[1:] == starts[:-1]).any():
        table.fail(row + int(empty.argmax()), "path is empty")
    rooted = text[starts[:-1]] == SLASH
    if not absolute and rooted.any():
        table.fail(row + int(rooted.argmax()), "path is absolute; paths have to start at the manifest's own folder")
    # Only paths with two of these bytes side by side may need it, and nearly none has them.
    marks = (text == DOT) | (text == SLASH)
    if not (marks[1:] & marks[:-1]).any():
        return paths
    return pa.array([_normal_path(table, row + i, path) for i, path in enumerate(paths.to_pylist())], pa.string())


def _normal_path(table: Table, row: int, path: str) -> str:
    if "://" in path:
        table.fail(row, "path is a URL; open the manifest itself by a URL, with paths that start at its folder")
    normal = posixpath.normpath(path)
    if normal == ".." or normal.startswith("../"):
        table.fail(row, f"path {path!r} leads out of the folder where paths start")
    return normal


def _hashes(text: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """A number for each path; repeats are found by them in a third of the texts' memory.

    Returns:
      [n] uint64.
    """
    left = np.diff(starts)
    at = starts[:-1].copy()
    # The eight bytes from every place on; those after the end are cut off below.
    words = np.ndarray((len(text) + 1,), "<u8", np.concatenate([text, np.zeros(8, np.uint8)]), strides=(1,))
    hashes = left.astype(np.uint64) * GOLDEN
    for _ in range(0, int(left.max()), 8):
        word = words.take(at, mode="clip")
        hashes ^= word if left.min() >= 8 else word & HEADS.take(left, mode="clip")
        hashes *= GOLDEN
        hashes ^= hashes >> np.uint64(32)
        at += 8
        left -= 8
    return hashes


def _check_unique(table: Table, hashes: np.ndarray, absolute: bool) -> None:
    """Refuses a path that stands in two rows.

    Args:
      hashes: [n] uint64, of all paths; sorted in place.
    """
    half = len(hashes) // 2
    hashes.partition(half)
    with ThreadPoolExecutor(2) as sorters:
        list(sorters.map(np.ndarray.sort, (hashes[:half], hashes[half:])))
    repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if not len(repeated):
        return
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for row, batch in table.batches():
        paths = _normal(table, row, batch["path"], absolute)
        for index in np.flatnonzero(np.isin(_hashes(*_packed(paths)), repeated)).tolist():
            found[paths[index].as_py()].append((row + index, str(batch["label"][index].as_py())))
    twice = {path: rows for path, rows in found.items() if len(rows) > 1}
    if twice:
        _fail_of_repeats(table, twice)


def _fail_of_repeats(table: Table, twice: Mapping[str, list[tuple[int, str]]]) -> None:
    """Tells of a path with two labels, if there is one: it harms more."""
    path = next((path for path, rows in twice.items() if len({label for _, label in rows}) > 1), next(iter(twice)))
    (first, label), *rest = twice[path]
    row, other = next((place for place in rest if place[1] != label), rest[0])
    labels = f"the labels {label!r} and {other!r}" if other != label else f"the same label {label!r}"
    more = f" ({len(twice):,} paths are repeated)" if len(twice) > 1 else ""
    table.fail(row, f"path {path!r} stands in row {first} too, with {labels}{more}; each image needs one row")
