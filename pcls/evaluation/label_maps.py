"""Another set's classes as outputs of a model, and lists of right answers for each record."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.source import Records, Source, Stored
from pcls.errors import UserError

# 50,000 lists of labels are 1 MB.
MAX_BYTES = 1 << 28
IMAGENET_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")
MANY = 5


@dataclass(frozen=True)
class LabelMap:
    """A set's classes, each with the output that it is.

    Attributes:
      outputs: [classes of the set] int64: places among the model's outputs.
      notices: what the reader has to know of the map, a line each.
    """

    outputs: np.ndarray
    notices: tuple[str, ...]


def map_labels(found: Sequence[str], trained: Sequence[str]) -> LabelMap:
    """Finds the model's output of each class of a set.

    Names that are exactly the same are the same class, in whatever order. If none is, and the set's are the numbers of
    outputs (as the folders of ImageNet-V2), class k is output k.

    Args:
      found: the classes of the set that have records.
      trained: the classes of the model, in the order of its outputs.

    Raises:
      UserError: a class that the model lacks, or that it writes in another case.
    """
    places = {name: place for place, name in enumerate(trained)}
    numbers = [int(name) if name.isascii() and name.isdecimal() else -1 for name in found]
    if not any(name in places for name in found) and all(0 <= number < len(trained) for number in numbers):
        if len(set(numbers)) < len(numbers):
            raise UserError("two classes of the set are the same number, as 1 and 01; write one form")
        notice = f"the set's classes are numbers: they are taken for the places of the model's {len(trained):,} outputs"
        return LabelMap(np.array(numbers, np.int64), (notice, *_subset_notice(found, trained)))
    _check_known(found, trained, places)
    outputs = np.array([places[name] for name in found], np.int64)
    ordered = ("the set has the classes in another order than the model; they are matched by name",)
    in_order = bool((np.diff(outputs) > 0).all())
    return LabelMap(outputs, (*(() if in_order else ordered), *_subset_notice(found, trained)))


def _check_known(found: Sequence[str], trained: Sequence[str], places: Mapping[str, int]) -> None:
    unknown = [name for name in found if name not in places]
    if not unknown:
        return
    folded = {name.casefold(): name for name in trained}
    for name in unknown:
        if name.casefold() in folded:
            raise UserError(
                f"the set has the class {name!r}, and the model {folded[name.casefold()]!r}: they differ in case; "
                "write the model's name in the set"
            )
    several = f" and {len(unknown) - 1:,} others of the set" if len(unknown) > 1 else ""
    known = ", ".join(map(repr, trained[:MANY])) + (" ..." if len(trained) > MANY else "")
    raise UserError(
        f"the model has no class {unknown[0]!r}{several}; it has {len(trained):,}: {known}; rename or remove what it "
        "cannot know"
    )


def _subset_notice(found: Sequence[str], trained: Sequence[str]) -> tuple[str, ...]:
    if len(found) == len(trained):
        return ()
    return (
        f"the set has {len(found):,} of the model's {len(trained):,} classes; answers are free to name any of these",
    )


class Relabelled:
    """A source whose labels are a model's outputs.

    Args:
      source: whose pictures are kept as they are.
      outputs: [classes of the source] the model's output of each; -1: none, and no record carries it.
      class_names: of the model, in the order of its outputs.
    """

    groups = None
    targets = None

    def __init__(self, source: Source, outputs: np.ndarray, class_names: tuple[str, ...]):
        self._source = source
        self._outputs = outputs.astype(np.int32)
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self._source)

    def __getitems__(self, records: Sequence[int]) -> list[Stored]:
        """The records as they are stored."""
        return [Stored(image, int(self._outputs[label])) for image, label in self._source.__getitems__(records)]

    @property
    def labels(self) -> np.ndarray:
        """[n] int32, outputs of the model."""
        return self._outputs[self._source.labels]

    def name(self, record: int) -> str:
        """As the source calls it."""
        return self._source.name(record)

    def read(self, records: np.ndarray, preprocessing: Preprocessing, draws: np.ndarray | None) -> Records:
        """Reads records by number."""
        read = self._source.read(records, preprocessing, draws)
        return read._replace(labels=self._outputs[read.labels])

    def failure(self, record: int, preprocessing: Preprocessing) -> str:
        """Why a record could not be decoded."""
        return self._source.failure(record, preprocessing)


def relabelled(source: Source, trained: tuple[str, ...]) -> tuple[Relabelled, tuple[str, ...]]:
    """A set with its classes as the model's outputs, and what the reader has to know; UserError as `map_labels` says.

    Args:
      source: the set; classes without records are no classes of it.
      trained: the classes of the model, in the order of its outputs.
    """
    present = np.unique(source.labels)
    found = map_labels([source.class_names[label] for label in present], trained)
    outputs = np.full(len(source.class_names), -1, np.int64)
    outputs[present] = found.outputs
    return Relabelled(source, outputs, trained), found.notices


def read_label_lists(path: Path, names: Sequence[str], trained: Sequence[str]) -> list[frozenset[int]]:
    """Each record's right answers, from a JSON file.

    Args:
      path: a list with a list of labels for each image of ImageNet's validation set, in the order of their numbers (as
        ImageNet-ReaL's real.json), or an object: name of a file -> list of labels. A label is the number of an output
        or the name of a class.
      names: of the records.
      trained: the classes of the model, in the order of its outputs.

    Returns:
      A set of outputs a record; empty: none is known to be right.

    Raises:
      UserError: the file cannot be read, is neither, or has nothing for a record.
    """
    values = _read_json(path)
    places = {name: place for place, name in enumerate(trained)}
    if isinstance(values, list):
        lists = [values[number] for number in _validation_numbers(path, names, len(values))]
    elif isinstance(values, dict):
        lists = [values.get(own, values.get(PurePosixPath(own).name)) for own in names]
        if None in lists:
            raise UserError(f"{path}: has no list for {names[lists.index(None)]}; each record needs one, maybe empty")
    else:
        raise UserError(f"{path}: is neither a list nor an object of lists of labels")
    return [_outputs(path, name, own, places, len(trained)) for name, own in zip(names, lists, strict=True)]


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: is no list of labels: larger than {MAX_BYTES >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); --labels needs a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON ({error}); --labels needs lists of labels") from error


def _validation_numbers(path: Path, names: Sequence[str], size: int) -> list[int]:
    """Places in the list, from ILSVRC2012_val_00000001 on."""
    found = []
    for name in names:
        number = IMAGENET_VALIDATION.search(PurePosixPath(name).name)
        if number is None:
            raise UserError(
                f"{path}: is a list, and {name} is no image of ImageNet's validation set (ILSVRC2012_val_...) that it "
                "could be in the order of; write an object instead: file name -> labels"
            )
        if not 1 <= int(number[1]) <= size:
            raise UserError(f"{path}: has {size:,} lists, and none for {name}; is it the right file?")
        found.append(int(number[1]) - 1)
    return found


def _outputs(path: Path, name: str, labels: Any, places: Mapping[str, int], outputs: int) -> frozenset[int]:
    if not isinstance(labels, list):
        raise UserError(f"{path}: the entry of {name} is no list of labels")
    found = [places.get(label, -1) if isinstance(label, str) else label for label in labels]
    for label, output in zip(labels, found, strict=True):
        if not isinstance(output, int) or isinstance(output, bool) or not 0 <= output < outputs:
            raise UserError(
                f"{path}: {name} has the label {label!r}; allowed: a class of the model, or 0 to {outputs - 1}"
            )
    return frozenset(found)
