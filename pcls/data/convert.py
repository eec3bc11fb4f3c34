"""A source of images, converted to ArrayRecord shards, which are read at random and in bulk.

Records keep their order, and each shard holds a run of them. A shard is written under another name, digested, renamed,
and noted; so a conversion that was killed goes on with the shards that have no note, and ends with the same bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Literal

import numpy as np

from pcls.data.reencode import as_file
from pcls.data.shards import Note, Task, done, encodable, read_note, write_file, write_shard, writing
from pcls.data.sources.arrayrecord import (
    DESCRIPTION,
    FORMAT,
    PROGRESS,
    Description,
    Part,
    Reencoding,
    Split,
    StoredFile,
    Strict,
    check_sizes,
    read_description,
)
from pcls.data.sources.source import Source
from pcls.data.workers import usable_cores
from pcls.errors import UserError

# Large enough for few files, small enough to be copied and repeated. A set of more has 0.67 to 1.5 times this a shard.
SHARD_BYTES = 350_000_000
# Each is a file that stays open while a set is read, and 1,024 is what many systems allow a process.
MOST_SHARDS = 512
PLAN = "plan.json"
# Images looked at to tell the size of the set before it is written.
SAMPLE = 64
# What ArrayRecord adds to a record, and to a shard.
RECORD_OVERHEAD, SHARD_OVERHEAD = 64, 192 << 10
# Bad images that are named; the rest are counted.
MOST_NAMED = 20

# Writes the shards of tasks, by `write_shard`, and returns when each has a note.
Runner = Callable[[Sequence[Task]], None]


class SplitPlan(Strict):
    """A part of the source: its records, the SHA-256 of their names, and the shards that they become."""

    records: int
    names: str
    shards: int


class Plan(Strict):
    """All that decides the bytes of a converted set; the fields are those of `Description`."""

    source: str
    licence: str
    images: Literal["unchanged"] | Reencoding
    classes: tuple[str, ...]
    splits: dict[Part, SplitPlan]


def convert(
    train: Source,
    evaluation: Source | None,
    out: Path,
    *,
    description: str,
    licence: str = "",
    shards: int | None = None,
    reencoding: Reencoding | None = None,
    skip_undecodable: bool = False,
    workers: int = 0,
    runner: Runner | None = None,
    say: Callable[[str], None] = lambda text: None,
    advance: Callable[[int], None] = lambda records: None,
) -> Description:
    """Converts a source, or goes on with a conversion that was cut off.

    Args:
      train, evaluation: the source's training records, and its own evaluation split or None.
      out: folder of the new set.
      description: of the source, in words.
      licence: of the images, in words.
      shards: of the training records, the evaluation's in proportion; None: shards of about 350 MB.
      reencoding: make images smaller; None: files keep their bytes, undecoded, and pixels become PNG.
      skip_undecodable: leave out images that cannot be read, or decoded for re-encoding, and list them in dataset.json.
      workers: threads; 0: one a core.
      runner: writes the shards instead of these threads.
      say: takes lines for people.
      advance: told how many records are done since it was last told, from any thread.

    Returns:
      What dataset.json says.

    Raises:
      UserError: `out` holds something else, the disk is too small, or images cannot be converted. Whatever is finished
        stays, and the same call goes on.
    """
    sources: dict[Part, Source] = {"train": train}
    if evaluation is not None:
        sources["evaluation"] = evaluation
    _check_sources(sources, shards)
    if (out / DESCRIPTION).is_file():
        before = read_description(out)
        count = shards or len(before.splits["train"].shards)
        _check_same(out, _plan_of(before), _plan(sources, count, description, licence, reencoding))
        return _finished_before(out, before)
    with _progress_folder(out) as progress:
        size = _bytes_a_record(train, reencoding)
        begun = _begun(progress)
        count = shards or (begun.splits["train"].shards if begun else _shard_count(len(train), size))
        plan = _plan(sources, count, description, licence, reencoding)
        _check_same(out, begun or plan, plan)
        write_file(progress / PLAN, plan.model_dump_json().encode())
        tasks = _tasks(out, plan, skip_undecodable)
        left = [task for task in tasks if done(task) is None]
        advance(_records(tasks) - _records(left))
        for task in left:
            # Half a shard of a conversion that was killed takes room that is needed.
            (progress / task.file).unlink(missing_ok=True)
        _check_space(out, _records(left) * size + len(left) * SHARD_OVERHEAD)
        (runner or _threads(sources, workers, advance))(left)
        notes = _checked_notes(tasks, say)
        finished = _describe(out, plan, sources, notes)
        write_file(progress / DESCRIPTION, finished.model_dump_json(indent=1).encode())
        (progress / DESCRIPTION).replace(out / DESCRIPTION)
        shutil.rmtree(progress)
    return finished


def _check_sources(sources: Mapping[Part, Source], shards: int | None) -> None:
    names = sources["train"].class_names
    for source in sources.values():
        if odd := sorted(set(source.class_names) ^ set(names)):
            raise UserError(f"training and evaluation records differ in the class {odd[0]!r}; both need the same")
        if source.class_names != names:
            raise UserError("training and evaluation records have their classes in different orders; both need one")
    for name in names:
        if encodable(name) != name:
            raise UserError(f"the class {name!r} has a name that is no valid UTF-8; rename it")
    if shards and shards > min(MOST_SHARDS, len(sources["train"])):
        allowed = min(MOST_SHARDS, len(sources["train"]))
        raise UserError(f"shards is {shards:,}; with {len(sources['train']):,} training records 1 to {allowed} can be")


def _plan(
    sources: Mapping[Part, Source], shards: int, description: str, licence: str, reencoding: Reencoding | None
) -> Plan:
    train = len(sources["train"])
    return Plan(
        source=description,
        licence=licence,
        images=reencoding or "unchanged",
        classes=sources["train"].class_names,
        splits={
            part: SplitPlan(
                records=len(source),
                names=_names_digest(map(source.name, range(len(source)))),
                shards=max(1, math.ceil(shards * len(source) / train)),
            )
            for part, source in sources.items()
        },
    )


def _names_digest(names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{encodable(name)}\0".encode())
    return digest.hexdigest()


def _plan_of(description: Description) -> Plan:
    """The plan that a finished set was made by."""
    splits: dict[Part, SplitPlan] = {
        part: SplitPlan(records=split.records + len(split.left_out), names=split.names, shards=len(split.shards))
        for part, split in description.splits.items()
    }
    return Plan(
        source=description.source,
        licence=description.licence,
        images=description.images,
        classes=description.classes,
        splits=splits,
    )


def _check_same(out: Path, old: Plan, new: Plan) -> None:
    """UserError with the first thing in which two plans differ."""
    before, now = _in_words(old), _in_words(new)
    for what in sorted(before.keys() | now.keys(), key=lambda what: [*before, *now].index(what)):
        if before.get(what) != now.get(what):
            raise UserError(
                f"{out}: holds a conversion with {what} {before.get(what, 'none')}, and this one has "
                f"{now.get(what, 'none')}; ask for the same, or name another folder"
            )


def _in_words(plan: Plan) -> dict[str, str]:
    words = {"source": repr(plan.source), "classes": f"{len(plan.classes):,}"}
    words["class names"] = f"of digest {_names_digest(plan.classes)[:8]}"
    for part, split in plan.splits.items():
        words[f"{part} records"] = f"{split.records:,}"
        words[f"{part} record names"] = f"of digest {split.names[:8]}"
        words[f"{part} shards"] = f"{split.shards:,}"
    made = plan.images
    words["images"] = made if isinstance(made, str) else f"of up to {made.longest_side} pixels, quality {made.quality}"
    return words | {"licence": repr(plan.licence)}


def _finished_before(out: Path, description: Description) -> Description:
    for split in description.splits.values():
        check_sizes(out, split)
    # Of a conversion that was killed after its last word and before it had tidied up.
    shutil.rmtree(out / PROGRESS, ignore_errors=True)
    return description


@contextmanager
def _progress_folder(out: Path) -> Iterator[Path]:
    """The folder for what is not finished, held against a second conversion."""
    progress = out / PROGRESS
    with writing(out):
        if out.exists() and not progress.is_dir() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: is there already and holds no conversion; name a new folder")
        progress.mkdir(parents=True, exist_ok=True)
        lock = (progress / "lock").open("wb")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{out}: another `pcls data convert` is writing there; wait for it, or stop it") from error
        yield progress


def _begun(progress: Path) -> Plan | None:
    try:
        return Plan.model_validate_json((progress / PLAN).read_bytes())
    # Killed before there was a plan, there is nothing else either.
    except (FileNotFoundError, ValueError):
        return None


def _bytes_a_record(source: Source, reencoding: Reencoding | None) -> float:
    """Mean size of some records, as they will be stored."""
    sample = np.unique(np.linspace(0, len(source) - 1, min(len(source), SAMPLE)).astype(int)).tolist()
    files = [as_file(image, reencoding) for image, _ in source.__getitems__(sample)]
    return RECORD_OVERHEAD + sum(len(file) for file in files if isinstance(file, bytes)) / len(files)


def _shard_count(records: int, size: float) -> int:
    return min(records, MOST_SHARDS, max(1, round(records * size / SHARD_BYTES)))


def _tasks(out: Path, plan: Plan, skip: bool) -> list[Task]:
    reencoding = plan.images if isinstance(plan.images, Reencoding) else None
    return [
        Task(
            folder=str(out),
            part=part,
            shard=shard,
            shards=split.shards,
            start=split.records * shard // split.shards,
            stop=split.records * (shard + 1) // split.shards,
            reencoding=reencoding,
            skip=skip,
        )
        for part, split in plan.splits.items()
        for shard in range(split.shards)
    ]


def _records(tasks: Iterable[Task]) -> int:
    return sum(task.stop - task.start for task in tasks)


def _check_space(out: Path, needed: float) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{out}: about {_megabytes(needed)} are needed, and its disk has {_megabytes(free)} free; "
            "make room and run the same command again, or name another folder"
        )


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def _threads(sources: Mapping[Part, Source], workers: int, advance: Callable[[int], None]) -> Runner:
    """Writes shards side by side: reading, decoding and digests let go of Python's lock."""

    def run(tasks: Sequence[Task]) -> None:
        """Writes them; the first failure ends all."""
        stop = Event()
        with ThreadPoolExecutor(workers or usable_cores()) as pool:
            writing = [pool.submit(write_shard, sources[task.part], task, advance, stop.is_set) for task in tasks]
            try:
                for shard in as_completed(writing):
                    shard.result()
            except BaseException:
                # One is enough: a disk that is full for one is full for all, and ctrl-c means now.
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    return run


def _checked_notes(tasks: Sequence[Task], say: Callable[[str], None]) -> list[Note]:
    """The notes of all shards; names what was left out, and raises where that was not asked for."""
    notes = [note for task in tasks if (note := read_note(task))]
    left_out = [bad for note in notes for bad in note.left_out]
    for bad in left_out[:MOST_NAMED]:
        say(f"{bad.name} {bad.reason}")
    finished = sum(done(task) is not None for task in tasks)
    if finished == len(tasks):
        return notes
    if not left_out:
        raise UserError(f"{finished} of {len(tasks)} shards are finished; run the same command again: it goes on")
    raise UserError(
        f"{left_out[0].name} {left_out[0].reason}; {len(left_out):,} of {_records(tasks):,} images cannot be "
        f"converted: repair them, or leave them out by --skip-undecodable; {finished} of {len(tasks)} shards are kept"
    )


def _describe(out: Path, plan: Plan, sources: Mapping[Part, Source], notes: Sequence[Note]) -> Description:
    splits: dict[Part, Split] = {}
    rest = iter(notes)
    for part, split in plan.splits.items():
        own = [next(rest) for _ in range(split.shards)]
        splits[part] = _split(out, part, split, sources[part], own)
    return Description(
        format=FORMAT,
        source=plan.source,
        licence=plan.licence,
        images=plan.images,
        classes=plan.classes,
        splits=splits,
    )


def _split(out: Path, part: Part, plan: SplitPlan, source: Source, notes: Sequence[Note]) -> Split:
    labels = np.concatenate([note.label_array() for note in notes])
    left_out = tuple(bad for note in notes for bad in note.left_out)
    groups = None
    if source.groups is not None:
        kept = np.delete(np.asarray(source.groups, np.int32), [bad.record for bad in left_out])
        groups = _write_column(out, f"{part}-groups.npy", kept)
    return Split(
        records=len(labels),
        names=plan.names,
        shards=tuple(note.shard for note in notes if note.shard),
        labels=_write_column(out, f"{part}-labels.npy", labels),
        groups=groups,
        left_out=left_out,
    )


def _write_column(out: Path, name: str, values: np.ndarray) -> StoredFile:
    file = io.BytesIO()
    np.save(file, values)
    data = file.getvalue()
    write_file(out / PROGRESS / name, data)
    (out / PROGRESS / name).replace(out / name)
    return StoredFile(file=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
