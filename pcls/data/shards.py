"""One shard of a converted set, from its task to the note that says it is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from pcls.atomic import atomic_write
from pcls.data.reencode import as_file
from pcls.data.sources.arrayrecord import PROGRESS, LeftOut, Part, Reencoding, Shard, Strict, digest
from pcls.data.sources.source import Source, Unreadable
from pcls.errors import UserError

# One record a group: a record is then read without its neighbours. JPEG files don't get smaller by compression.
WRITER_OPTIONS = "group_size:1,uncompressed"
RECORDS_AT_ONCE = 16


class Task(Strict):
    """A shard to write, in plain values: it may be written on another machine.

    Attributes:
      folder: of the converted set.
      part: which split.
      shard, shards: its number, and of how many.
      start, stop: records of the source.
      reencoding: None: bytes stay as they are.
      skip: leave out images that cannot be converted; else a shard with one is not finished.
    """

    folder: str
    part: Part
    shard: int
    shards: int
    start: int
    stop: int
    reencoding: Reencoding | None
    skip: bool

    @property
    def file(self) -> str:
        """The shard's name."""
        return f"{self.part}-{self.shard:05d}-of-{self.shards:05d}.array_record"


class Note(Strict):
    """What became of a shard.

    Attributes:
      shard: None where it is not finished, because of the images in `left_out`.
      labels: of its records, 8 hex digits each: int32, the lowest byte first.
      left_out: images of the source that it does not hold.
    """

    shard: Shard | None
    labels: str
    left_out: tuple[LeftOut, ...]

    def label_array(self) -> np.ndarray:
        """[records] int32."""
        return np.frombuffer(bytes.fromhex(self.labels), "<i4").astype(np.int32)


def done(task: Task) -> Note | None:
    """The note of a finished shard, or None where it must be written, anew or for the first time."""
    note = read_note(task)
    if note is None or note.shard is None or (note.left_out and not task.skip):
        return None
    path = Path(task.folder, note.shard.file)
    return note if path.is_file() and path.stat().st_size == note.shard.bytes else None


def read_note(task: Task) -> Note | None:
    """The note of a shard, or None."""
    try:
        return Note.model_validate_json(_note_path(task).read_bytes())
    # A note that does not parse is as good as none: the shard is written anew.
    except (FileNotFoundError, ValueError):
        return None


def _note_path(task: Task) -> Path:
    return Path(task.folder, PROGRESS, f"{task.file}.json")


def write_shard(
    source: Source,
    task: Task,
    advance: Callable[[int], None] = lambda records: None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Writes a shard and then its note; without a note it was not written.

    Args:
      source: of the task's part.
      task: what to write.
      advance: told how many records have been done since it was last told.
      stopped: asked now and then whether to give up.

    Raises:
      UserError: the disk is full, or cannot be written.
    """
    path = Path(task.folder, task.file)
    # In another folder of the same file system: whatever is left of it goes with that folder.
    part = path.parent / PROGRESS / path.name
    labels: list[int] = []
    left_out: list[LeftOut] = []
    with writing(path):
        writer = ArrayRecordWriter(str(part), WRITER_OPTIONS)
    for start in range(task.start, task.stop, RECORDS_AT_ONCE):
        records = range(start, min(start + RECORDS_AT_ONCE, task.stop))
        stored = source.__getitems__(records)
        files = [as_file(image, task.reencoding) for image, _ in stored]
        with writing(path):
            for record, file, (_, label) in zip(records, files, stored, strict=True):
                if isinstance(file, Unreadable):
                    left_out.append(LeftOut(record=record, name=encodable(source.name(record)), reason=file.reason))
                else:
                    writer.write(file)
                    labels.append(label)
        advance(len(records))
        # A full disk shows here, and is told by `close`.
        if stopped() or not writer.ok():
            break
    with writing(path):
        writer.close()
        if stopped():
            return
        shard = None if left_out and not task.skip else _put_in_place(part, path, len(labels))
    note = Note(shard=shard, labels=np.asarray(labels, "<i4").tobytes().hex(), left_out=tuple(left_out))
    write_file(_note_path(task), note.model_dump_json().encode())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """UserError with the file and the reason, where what is done inside cannot be written."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or _reason(error)
        raise UserError(
            f"{path}: cannot be written ({reason}); make room and run the same command again: it goes on"
        ) from error


def _reason(error: Exception) -> str:
    """`No space left on device` out of array_record's `write() failed: No space left on device; writing ...`."""
    return str(error).partition("failed: ")[2].partition(";")[0] or str(error)


def _put_in_place(part: Path, path: Path, records: int) -> Shard:
    with part.open("rb") as file:
        os.fsync(file.fileno())
    # Read back from the file: what was meant to be written proves nothing.
    shard = Shard(file=path.name, bytes=part.stat().st_size, sha256=digest(part), records=records)
    part.replace(path)
    return shard


def write_file(path: Path, data: bytes) -> None:
    """Writes a small file whole or not at all.

    Raises:
      UserError: the disk is full, or cannot be written.
    """
    with writing(path):
        atomic_write(path, data)


def encodable(name: str) -> str:
    """A file's name with what is no UTF-8 in it escaped."""
    return name.encode(errors="backslashreplace").decode()
