"""Where the samples of tar shards lie: one pass over the headers of each shard, and a cache of what it found.

Nothing is unpacked. The cache holds two arrays and a JSON file a set of shards, and knows it by the path, size and time
of each shard.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from pcls.data.sources.cache import cache_key, kept
from pcls.data.sources.folder import EVALUATION_FOLDERS, EXTENSIONS
from pcls.errors import UserError

SPLITS = ("train", *EVALUATION_FOLDERS)
LABEL_EXTENSIONS = (".cls", ".json")
LABEL_KEYS = ("label", "class")
MAX_LABEL_BYTES = 1 << 20
# Python refuses to read numbers of thousands of digits.
MAX_DIGITS = 20
MAX_LABEL = (1 << 24) - 1
COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
INDEX_VERSION = 1

# How shards say the class.
BY_NUMBER, BY_NAME, BY_FOLDER = "labels are numbers", "labels are names", "folders are the classes"
SAMPLE_WORDS = "an image (.jpg, .jpeg, .png, .webp) and a .cls or .json of one name, or an image in its class's folder"

# `name_end`: where the sample's name ends in the index's `names`; it starts where the one before ends.
SAMPLE = np.dtype([("shard", "<i4"), ("label", "<i4"), ("offset", "<i8"), ("size", "<i8"), ("name_end", "<i8")])


class Index(NamedTuple):
    """Where the images of some shards lie.

    Attributes:
      samples: [n] of SAMPLE, in the order of the shards and of the images in them.
      names: [bytes] uint8, the names of the image members, one after the other.
      classes: what the labels number, where the shards say it in words; None: the labels are numbers in the shards.
    """

    samples: np.ndarray
    names: np.ndarray
    classes: tuple[str, ...] | None

    def name(self, sample: int) -> str:
        """The image member's name in its shard."""
        start = self.samples["name_end"][sample - 1] if sample else 0
        return self.names[start : self.samples["name_end"][sample]].tobytes().decode("utf-8", "surrogateescape")


def cached_index(shards: list[Path], cache: Path) -> Index:
    """The index of some shards, from the cache; a damaged one is made again.

    Raises:
      UserError: a shard is damaged, or holds what no shard should; the cache cannot be written.
    """
    stats = [shard.stat() for shard in shards]
    state = [(shard.absolute(), stat.st_size, stat.st_mtime_ns) for shard, stat in zip(shards, stats, strict=True)]
    folder = cache / "webdataset" / cache_key(INDEX_VERSION, *itertools.chain(*state))
    index = _load(kept(folder, lambda part: _save(_index(shards), part)))
    if index is not None:
        return index
    shutil.rmtree(folder, ignore_errors=True)
    index = _load(kept(folder, lambda part: _save(_index(shards), part)))
    if index is None:
        raise UserError(f"{folder}: can't be read back after it was written; check the disk, or set PCLS_CACHE")
    return index


def _load(folder: Path) -> Index | None:
    try:
        header = json.loads((folder / "index.json").read_bytes())
        # Mapped: an index of many millions is opened at once, and only the pages in use take memory.
        samples, names = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("samples", "names"))
        index = Index(samples, names, header["classes"] and tuple(header["classes"]))
        return index if samples.dtype == SAMPLE and header["crc"] == _crc(index) else None
    # Whatever ails a cache, it is made again.
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _save(index: Index, folder: Path) -> None:
    folder.mkdir()
    np.save(folder / "samples.npy", index.samples)
    np.save(folder / "names.npy", index.names)
    (folder / "index.json").write_text(json.dumps({"classes": index.classes, "crc": _crc(index)}))


def _crc(index: Index) -> int:
    return zlib.crc32(index.names.data, zlib.crc32(index.samples.view(np.uint8).data))


def _index(shards: list[Path]) -> Index:
    kinds: dict[str, Path] = {}
    words: dict[str, int] = {}
    arrays, names = [], []
    for number, shard in enumerate(shards):
        kind, found = _scan(shard)
        if found:
            kinds.setdefault(kind, shard)
            arrays.append(_packed(number, found, words))
            names += [os.fsencode(sample.name) for sample in found]
    if not kinds:
        raise UserError(f"{shards[0]}: no samples, here or in the shards beside it; a sample is {SAMPLE_WORDS}")
    if len(kinds) > 1:
        (kind, shard), (other, beside) = list(kinds.items())[:2]
        raise UserError(f"{shard}: {kind}, and in {beside.name} {other}; one kind is needed")
    samples = np.concatenate(arrays)
    samples["name_end"] = np.cumsum(samples["name_end"])
    class_of = _top_folders(shards[0], list(words)) if BY_FOLDER in kinds else {word: word for word in words}
    classes = sorted(set(class_of.values()))
    if classes:
        label_of = {name: label for label, name in enumerate(classes)}
        samples["label"] = np.asarray([label_of[name] for name in class_of.values()])[samples["label"]]
    return Index(samples, np.frombuffer(b"".join(names), np.uint8), tuple(classes) or None)


def _packed(shard: int, found: list[Sample], words: dict[str, int]) -> np.ndarray:
    """The samples of a shard, [n] of SAMPLE, with the lengths of their names; `words` numbers the labels that are."""
    rows = []
    for name, offset, size, label in found:
        number = words.setdefault(label, len(words)) if isinstance(label, str) else label
        rows.append((shard, number, offset, size, len(os.fsencode(name))))
    return np.array(rows, SAMPLE)


def _top_folders(shard: Path, folders: list[str]) -> dict[str, str]:
    """Folder -> class: the first part of the path in which the folders differ, as deeper ones are no classes."""
    if len(folders) == 1:
        return {folders[0]: PurePosixPath(folders[0]).name}
    parts = {folder: PurePosixPath(folder).parts for folder in folders}
    shared = len(list(itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts.values(), strict=False))))
    class_of = {}
    for folder, path in parts.items():
        if len(path) == shared:
            raise UserError(f"{shard}: images lie in {folder!r} and in folders below it; one folder a class is needed")
        class_of[folder] = path[shared]
    if "train" in class_of.values() and set(class_of.values()) <= set(SPLITS):
        raise UserError(f"{shard}: holds the splits {', '.join(sorted(set(class_of.values())))}; make a tar of each")
    return class_of


def compressed(shard: Path) -> UserError:
    """What is said of a compressed shard."""
    return UserError(f"{shard}: is compressed, and can't be read at random; unpack it to a plain .tar (gunzip, unxz)")


# One shard.


class Member(NamedTuple):
    """A file in a shard: where its bytes lie."""

    offset: int
    size: int


class Sample(NamedTuple):
    """An image in a shard. Labels are numbers, or words: of its .json, or the folder that it lies in."""

    name: str
    offset: int
    size: int
    label: int | str


def _scan(shard: Path) -> tuple[str, list[Sample]]:
    """How a shard says the class, and every sample of it, by one pass over its headers."""
    with _opened(shard) as file:
        members = dict(_members(shard, file))
        stems: dict[str, list[str]] = {}
        for name in members:
            stems.setdefault(_stem(name)[0], []).append(name)
        parts = [_parts(names) for names in stems.values()]
        if not any(part.numbers or (part.texts and part.images) for part in parts):
            images = [name for name in members if name.lower().endswith(EXTENSIONS)]
            return BY_FOLDER, [Sample(name, *members[name], _folder(shard, name)) for name in images]
        samples = [_sample(shard, file, members, part) for part in parts if part.images or part.numbers]
    kinds = {isinstance(sample.label, int): sample for sample in samples}
    if len(kinds) > 1:
        raise UserError(f"{shard}: {kinds[True].name!r} has a number for a label, and {kinds[False].name!r} a name")
    return BY_NUMBER if True in kinds else BY_NAME, samples


def _opened(shard: Path) -> BinaryIO:
    try:
        return shard.open("rb")
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror})") from error


def _members(shard: Path, file: BinaryIO) -> Iterator[tuple[str, Member]]:
    """Names and places of the images and labels, each name once."""
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                _check_member(shard, member)
                name = member.name.removeprefix("./")
                if not member.isreg() or not _is_wanted(name):
                    continue
                if name in seen:
                    raise UserError(f"{shard}: {name!r} is in it twice; write the shard again with one of them")
                seen.add(name)
                yield name, Member(member.offset_data, member.size)
            _check_end(shard, file, tar.offset)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        file.seek(0)
        if file.read(6).startswith(COMPRESSED_STARTS):
            raise compressed(shard) from error
        raise UserError(f"{shard}: is no tar file, or a damaged one ({error}); copy or write it again") from error


def _check_member(shard: Path, member: tarfile.TarInfo) -> None:
    """Nothing is ever unpacked; but a shard with such members was made by mistake, or to do harm elsewhere."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{shard}: member {member.name!r} points out of the shard; write it again without such names")
    if not (member.isreg() or member.isdir()) or member.issparse():
        kind = "a link" if member.islnk() or member.issym() else "no plain file"
        raise UserError(f"{shard}: member {member.name!r} is {kind}; write the shard again with plain files only")
    if member.size < 0:
        raise UserError(f"{shard}: member {member.name!r} claims {member.size} bytes; the shard is damaged")


def _check_end(shard: Path, file: BinaryIO, place: int) -> None:
    """tarfile takes a damaged header for the end; the end is two blocks of zeros, or nothing."""
    file.seek(place)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise UserError(f"{shard}: is damaged at byte {place:,}: no header of a member there; copy or write it again")


def _is_wanted(name: str) -> bool:
    hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
    return name.lower().endswith((*EXTENSIONS, *LABEL_EXTENSIONS)) and not hidden


def _stem(name: str) -> tuple[str, str]:
    """The name up to the first dot of its last part, as WebDataset parts it; and the rest, lowercase."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return folder + slash + stem, (dot + ending).lower()


class Parts(NamedTuple):
    """The members of one stem: images, .cls and .json; one of each is meant."""

    images: list[str]
    numbers: list[str]
    texts: list[str]


def _parts(names: Sequence[str]) -> Parts:
    ending = {name: _stem(name)[1] for name in names}
    return Parts(
        *([name for name in names if ending[name] in wanted] for wanted in (EXTENSIONS, (".cls",), (".json",)))
    )


def _sample(shard: Path, file: BinaryIO, members: Mapping[str, Member], parts: Parts) -> Sample:
    images, labels = parts.images, parts.numbers or parts.texts
    if not images:
        raise UserError(f"{shard}: {labels[0]!r} has no image beside it; {', '.join(EXTENSIONS)} are known")
    if not labels:
        raise UserError(f"{shard}: {images[0]!r} has no label; {_stem(images[0])[0]}.cls or .json is needed beside it")
    for names in (images, labels):
        if len(names) > 1:
            raise UserError(f"{shard}: {names[0]!r} and {names[1]!r} are of one sample, which can have one of them")
    place, size = members[labels[0]]
    if size > MAX_LABEL_BYTES:
        raise UserError(f"{shard}: {labels[0]!r} has {size:,} bytes, more than a label can have")
    text = os.pread(file.fileno(), size, place)
    return Sample(images[0], *members[images[0]], _label(shard, labels[0], text))


def _label(shard: Path, member: str, text: bytes) -> int | str:
    if not member.lower().endswith(".json"):
        if not text.strip().isdigit() or len(text) > MAX_DIGITS:
            said = text[:MAX_DIGITS].decode(errors="replace")
            raise UserError(f"{shard}: {member!r} is {said!r}; the number of a class, 0 or more, is needed")
        return _in_range(shard, member, int(text))
    try:
        fields = json.loads(text)
        label = next(fields[key] for key in LABEL_KEYS if key in fields)
    except (ValueError, TypeError, StopIteration, RecursionError) as error:
        keys = " or ".join(f'"{key}"' for key in LABEL_KEYS)
        raise UserError(f"{shard}: {member!r} says no label; a JSON object with {keys} is needed") from error
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise UserError(f"{shard}: {member!r} has the label {label!r}; a number or a name is needed")
    return _in_range(shard, member, label) if isinstance(label, int) else label


def _in_range(shard: Path, member: str, label: int) -> int:
    if not 0 <= label <= MAX_LABEL:
        raise UserError(f"{shard}: {member!r} has the label {label}; 0 to {MAX_LABEL:,} is possible")
    return label


def _folder(shard: Path, name: str) -> str:
    folder = str(PurePosixPath(name).parent)
    if folder == ".":
        raise UserError(
            f"{shard}: {name!r} has no label; {_stem(name)[0]}.cls beside it is needed, or a folder for each class"
        )
    return folder
