"""A source of images, converted to ArrayRecord shards that are read at random and in bulk.

Records keep their order, and each shard holds a run of them. A shard is written under another name, digested, renamed,
and noted; so a conversion that was killed goes on with the shards that have no note, and ends with the same bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Literal, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from pcls.data.reencode import as_file
from pcls.data.sources.arrayrecord import (
    DESCRIPTION,
    FORMAT,
    PROGRESS,
    Description,
    LeftOut,
    Part,
    Reencoding,
    Shard,
    Split,
    StoredFile,
    Strict,
    check_sizes,
    digest,
    read_description,
)
from pcls.data.sources.source import Source, Unreadable
from pcls.data.workers import usable_cores
from pcls.errors import UserError

# One record a group: a record is then read without its neighbours. JPEG files don't get smaller by compression.
WRITER_OPTIONS = "group_size:1,uncompressed"
# Large enough for few files, small enough to be copied and repeated. A set has one to 1.5 times of it in a shard.
SHARD_BYTES = 350_000_000
# Each is a file that stays open while a set is read, and 1,024 is what many systems allow a process.
MOST_SHARDS = 512
RECORDS_AT_ONCE = 16
# Images looked at to tell the size of the set.
SAMPLE = 64
# Bad images named one by one; the rest are counted.
MOST_NAMED = 20


class SplitPlan(Strict):
    """A part of the source: its records, the shards they become, and the SHA-256 of its records' names."""

    records: int
    shards: int
    names: str


class Plan(Strict):
    """All that decides the bytes of a converted set, as `Description` has it."""

    source: str
    licence: str
    images: Literal["unchanged"] | Reencoding
    classes: tuple[str, ...]
    splits: dict[Part, SplitPlan]


class Task(Strict):
    """One shard to write.

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

    @property
    def note_path(self) -> Path:
        """Where its note lies until the set is finished."""
        return Path(self.folder, PROGRESS, f"{self.file}.json")


class Note(Strict):
    """What became of a shard.

    Attributes:
      shard: None where it is not finished, for the images in `left_out`.
      labels: of its records.
      left_out: images of the source that it does not hold.
    """

    shard: Shard | None
    labels: tuple[int, ...]
    left_out: tuple[LeftOut, ...]


# Writes the shards of some tasks, by `write_shard`, and returns when all have a note.
Runner = Callable[[Sequence[Task]], None]


def convert(
    train: Source,
    evaluation: Source | None,
    out: Path,
    *,
    shards: int | None = None,
    reencoding: Reencoding | None = None,
    skip_undecodable: bool = False,
    licence: str = "",
    description: str = "",
    say: Callable[[str], None] = lambda text: None,
    run: Runner | None = None,
) -> Description:
    """Converts a source, or goes on with a conversion that was cut off.

    Args:
      train, evaluation: the source's training records, and its own evaluation split or None.
      out: folder of the new set.
      shards: of the training records, the evaluation's in proportion; None: shards of about 350 MB.
      reencoding: make images smaller; None: files keep their bytes, undecoded, and pixels become PNG.
      skip_undecodable: leave out images that cannot be read, or decoded for re-encoding, and list them in dataset.json.
      licence: of the images, in words.
      description: of the source, in words.
      say: takes lines for people.
      run: writes the shards; None: threads of this process.

    Returns:
      What dataset.json says.

    Raises:
      UserError: `out` holds another conversion, the disk is too small, or images cannot be converted; everything that
        is finished stays, and the same call goes on.
    """
    sources: dict[Part, Source] = {"train": train} | ({"evaluation": evaluation} if evaluation else {})
    _check_sources(sources, out)
    if (out / DESCRIPTION).is_file():
        return _finished_before(sources, out, shards, reencoding, licence, description, say)
    with _progress_folder(out) as progress:
        size = _bytes_a_record(train, reencoding)
        plan = _plan(sources, shards or _planned_shards(progress) or _shards(len(train), size), reencoding, licence)
        plan = plan.model_copy(update={"source": description})
        _keep_plan(progress, plan)
        tasks = _tasks(out, plan, skip_undecodable)
        left = [task for task in tasks if not _is_done(task)]
        _check_space(out, size * sum(task.stop - task.start for task in left))
        (run or threads(sources))(left)
        notes = {task: _note(task) for task in tasks}
        _check_bad(notes, say)
        finished = _describe(out, plan, sources, notes)
        _write(out / DESCRIPTION, finished.model_dump_json(indent=1).encode(), progress)
    shutil.rmtree(progress)
    return finished


def threads(
    sources: Mapping[Part, Source], workers: int = 0, advance: Callable[[int], None] = lambda records: None
) -> Runner:
    """Writes shards side by side in this process: reading, decoding and writing let go of Python's lock.

    Args:
      sources: by part.
      workers: threads; 0: one a core.
      advance: told how many records were written, from any thread.
    """

    def run(tasks: Sequence[Task]) -> None:
        stop = Event()

        def write(task: Task) -> None:
            write_shard(sources[task.part], task, lambda records: advance(records) or stop.is_set())

        with ThreadPoolExecutor(workers or usable_cores()) as pool:
            waiting = [pool.submit(write, task) for task in tasks]
            try:
                for future in waiting:
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    return run
