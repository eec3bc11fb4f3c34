"""The rows of a manifest: a CSV, TSV or Parquet file as batches of columns, with a place for each complaint."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pcls.data.sources.targets import SEPARATOR, LabelSets
from pcls.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
PARQUET = (".parquet", ".pq")
SUFFIXES = (*DELIMITERS, *PARQUET)
NEEDED = ("path", "label")
COLUMNS = (*NEEDED, "split", "group")
# Those whose values may be numbers.
NUMBERED = ("label", "group")

# What the cell of a column that is a label may say, and what programs write for the same.
CELLS = {"0": 0, "0.0": 0, "False": 0, "false": 0, "1": 1, "1.0": 1, "True": 1, "true": 1}

ROWS_AT_ONCE = 1 << 15
BYTES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Table:
    """A manifest's file.

    Rows are counted from 1, and in text files the header is one: as editors and spreadsheets number them.

    Attributes:
      path: the file.
      title: what messages call it.
      extra: one more column to read, of any type and with any gaps; empty: none.
      sets: how records carry several labels, or none; None: each carries one.
    """

    path: Path
    title: str
    extra: str = ""
    sets: LabelSets | None = None

    def status(self) -> os.stat_result:
        """The file's status.

        Raises:
          UserError: it is no file, or of no kind that a manifest can be.
        """
        if self.path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{self.title}: a manifest's name ends with {', '.join(SUFFIXES)}")
        if not self.path.is_file():
            what = "is no regular file" if self.path.exists() else "there is no such file"
            raise UserError(f"{self.title}: {what}; a manifest of image paths and labels is needed")
        return self.path.stat()

    def fail(self, row: int, what: str) -> NoReturn:
        """Raises a UserError about a row."""
        raise UserError(f"{self.title}, row {row}: {what}")

    def batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The number of a batch's first row, and its columns: path as strings, the others as dictionaries; no nulls.

        Where each label has a column of its own, the column `label` has the names of those that a record carries.
        """
        row = 1 if self._is_parquet else 2
        try:
            for batch in self._parquet() if self._is_parquet else self._text():
                columns = {name: self._checked(batch, name, row) for name in batch.schema.names}
                yield row, pa.record_batch(self._with_label(columns, row))
                row += len(batch)
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(f"{self.title}: cannot be read ({reason})") from error

    @property
    def _is_parquet(self) -> bool:
        return self.path.suffix.lower() in PARQUET

    @property
    def _label_columns(self) -> tuple[str, ...]:
        return self.sets.columns if self.sets else ()

    def _with_label(self, columns: dict[str, pa.Array], row: int) -> dict[str, pa.Array]:
        if self.sets is None or not self.sets.columns:
            return columns
        carried = np.stack([self._cells(name, columns.pop(name), row) for name in self.sets.columns], 1)
        found, codes = np.unique(carried, axis=0, return_inverse=True)
        names = np.array(self.sets.columns, object)
        texts = [self.sets.separator.join(names[one == 1]) for one in found]
        label = pa.DictionaryArray.from_arrays(pa.array(codes.ravel(), pa.int32()), pa.array(texts, pa.string()))
        return columns | {"label": label}

    def _cells(self, name: str, column: pa.DictionaryArray, row: int) -> np.ndarray:
        """[rows] uint8."""
        texts = list(map(str, column.dictionary.to_pylist()))
        values = np.array([CELLS.get(text, 2) for text in texts], np.uint8)
        cells = values[column.indices.to_numpy()]
        if (wrong := cells > 1).any():
            index = int(wrong.argmax())
            self.fail(row + index, f"{name} is {texts[column.indices[index].as_py()]!r}; 0 or 1 is needed")
        return cells

    def _checked(self, batch: pa.RecordBatch, name: str, row: int) -> pa.Array:
        column = batch.column(name)
        if name not in COLUMNS and name not in self._label_columns:
            return column
        if name == "label" and self.sets:
            # Nothing in it: the record carries no label.
            return pc.fill_null(column.cast(pa.string()), "").dictionary_encode()
        if column.null_count:
            self.fail(row + column.is_null().index(True).as_py(), f"{name} is empty{_hint(name, column)}")
        if name == "path":
            return column.cast(pa.string())
        column = column.dictionary_encode()
        if name in self._label_columns:
            return column
        if not pa.types.is_integer(column.type.value_type):
            blank = pc.equal(pc.utf8_trim_whitespace(column.dictionary), "").to_numpy(zero_copy_only=False)
            if blank.any() and (found := blank[column.indices]).any():
                self.fail(row + int(found.argmax()), f"{name} is empty{_hint(name, column.dictionary)}")
        return column

    def _known_columns(self, names: list[str]) -> list[str]:
        needed = ("path", *self._label_columns) if self._label_columns else NEEDED
        if missing := [name for name in needed if name not in names]:
            has = ", ".join(names[:20]) or "none"
            what = "data.label_columns names it" if self._label_columns else "path and label are needed"
            raise UserError(f"{self.title}: no column {missing[0]!r}; {what}, and it has: {has}")
        known = [name for name in COLUMNS if name in names and not (name == "label" and self._label_columns)]
        known += self._label_columns
        if self.extra and self.extra not in names:
            raise UserError(f"{self.title}: no column {self.extra!r}; it has: {', '.join(names[:20])}")
        if self.extra and self.extra not in known:
            known.append(self.extra)
        if twice := [name for name in known if names.count(name) > 1]:
            raise UserError(f"{self.title}: two columns {twice[0]!r}; remove or rename one")
        return known

    def _text(self) -> Iterator[pa.RecordBatch]:
        delimiter = DELIMITERS[self.path.suffix.lower()]
        ragged: list[pacsv.InvalidRow] = []

        def refuse(row: pacsv.InvalidRow) -> str:
            ragged.append(row)
            return "error"

        columns = self._known_columns(self._header(delimiter))
        coded = pa.dictionary(pa.int32(), pa.string())
        names = (*COLUMNS, *self._label_columns)
        types = {name: coded if name in names and name != "path" else pa.string() for name in columns}
        try:
            with pacsv.open_csv(
                self.path,
                # One thread: rows are numbered in complaints only then.
                pacsv.ReadOptions(use_threads=False, block_size=BYTES_AT_ONCE),
                # A name may hold a newline, in quotes.
                pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse),
                pacsv.ConvertOptions(include_columns=columns, column_types=types, strings_can_be_null=False),
            ) as reader:
                yield from reader
        except pa.ArrowInvalid as error:
            if ragged:
                row = ragged[0]
                self.fail(row.number, f"{row.actual_columns} columns instead of {row.expected_columns}")
            if "UTF8" in str(error):
                self._fail_of_encoding()
            # What it says of a file that holds a header alone.
            if "Empty CSV" not in str(error):
                raise

    def _header(self, delimiter: str) -> list[str]:
        try:
            # utf-8-sig: Excel begins its files with a byte order mark.
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                return next((row for row in csv.reader(file, delimiter=delimiter) if row), [])
        except UnicodeDecodeError:
            self._fail_of_encoding()
        except csv.Error as error:
            raise UserError(f"{self.title}: cannot be read ({error})") from error

    def _fail_of_encoding(self) -> NoReturn:
        with self.path.open("rb") as file:
            row = next(number for number, line in enumerate(file, 1) if not _is_utf8(line))
        self.fail(row, "is not UTF-8 text; save the file as UTF-8")

    def _parquet(self) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.path) as file:
            schema = file.schema_arrow
        columns = self._known_columns(schema.names)
        known = [name for name in columns if name in COLUMNS and name not in self._label_columns]
        for name in known:
            self._check_type(name, schema.field(name).type)
        coded = [name for name in known if name != "path" and not pa.types.is_integer(schema.field(name).type)]
        for name in self._label_columns:
            self._check_cells(name, schema.field(name).type)
        # No pre-buffer: it would hold the bytes of a whole row group.
        with pq.ParquetFile(self.path, read_dictionary=coded, pre_buffer=False) as file:
            row = 1
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                self._check_encoding(batch, row)
                yield batch
                row += len(batch)

    def _check_type(self, name: str, kind: pa.DataType) -> None:
        held = kind.value_type if pa.types.is_dictionary(kind) else kind
        is_text = pa.types.is_string(held) or pa.types.is_large_string(held) or pa.types.is_string_view(held)
        if not is_text and not (name in NUMBERED and pa.types.is_integer(held)):
            allowed = "text or whole numbers are" if name in NUMBERED else "text is"
            raise UserError(f"{self.title}: the column {name!r} is of type {kind}; {allowed} needed")

    def _check_cells(self, name: str, kind: pa.DataType) -> None:
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if not is_text and not is_number:
            raise UserError(f"{self.title}: the column {name!r} is of type {kind}; 0 or 1 is needed in each row")

    def _check_encoding(self, batch: pa.RecordBatch, row: int) -> None:
        # Arrow takes a writer's word that text is UTF-8, and that offsets point into it.
        for name in batch.schema.names:
            try:
                batch.column(name).validate(full=True)
            except pa.ArrowInvalid:
                self.fail(row, f"{name} is not UTF-8 text, here or in the next {len(batch):,} rows")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _hint(name: str, values: pa.Array) -> str:
    """What to try where a label is empty and others look like several at once."""
    if name != "label" or not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return ""
    several = pc.any(pc.match_substring(values, SEPARATOR)).as_py()
    return (
        f"; others hold several, with {SEPARATOR} between: data.labels=several lets a record carry none"
        if several
        else ""
    )
