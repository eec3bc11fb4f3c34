"""Opening ten million converted records and reading them at random, beside array_record's own source: `make bench`.

Times and memory are those of a new process each, rounds in turn. `--dry` prints the table and leaves the ledger alone;
`--records` makes it shorter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import _ledger
from _worker import median_and_range

from pcls.data.order import Order
from pcls.data.sources.source import Stored

RECORDS, SHARDS, CLASSES = 10_000_000, 8, 1000
BATCH, BATCHES = 128, 200
LATE_STEP = 1_000_000
ROUNDS = 5
CONTENDERS = {
    "pcls, from step 0": ("pcls", 0),
    f"pcls, from step {LATE_STEP:,}": ("pcls", LATE_STEP),
    "ArrayRecordDataSource, from step 0": ("array_record", 0),
}


class Numbers:
    """Records of 64 bytes that say their number: what costs here is how many there are."""

    class_names = tuple(map(str, range(CLASSES)))
    groups = None

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitems__(self, records: Sequence[int]) -> list[Stored]:
        return [Stored(record.to_bytes(8, "little") * 8, record % CLASSES) for record in records]

    def name(self, record: int) -> str:
        return str(record)


def most_memory() -> float:
    """MB that this process has held at most; `ru_maxrss` would be that of the parent where that held more."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1000


def opened(contender: str, folder: Path):
    """A function from record numbers to their bytes and labels, and how many there are."""
    if contender == "pcls":
        from pcls.data.sources.arrayrecord import open_arrayrecord

        source, _ = open_arrayrecord(folder)
        return source.__getitems__, len(source)
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    source = ArrayRecordDataSource(sorted(map(str, folder.glob("*.array_record"))))
    return lambda records: [(image, 0) for image in source.__getitems__(records)], len(source)


def measure(contender: str, step: int, folder: Path) -> dict[str, float]:
    """Seconds and memory from nothing to a first batch, then records/s of random batches."""
    import pcls.data.sources.arrayrecord  # noqa: F401  Its import is part of neither time.

    start = time.perf_counter()
    read, count = opened(contender, folder)
    open_seconds = time.perf_counter() - start
    order = Order(count, BATCH, seed=0)
    batch_start = time.perf_counter()
    records, _ = order.records_of_step(step)
    first = read(records.tolist())
    batch_seconds, first_memory = time.perf_counter() - batch_start, most_memory()
    if [int.from_bytes(image[:8], "little") for image, _ in first] != records.tolist():
        raise SystemExit(f"{contender}: other records came than were asked for")
    start = time.perf_counter()
    for later in range(step + 1, step + 1 + BATCHES):
        read(order.records_of_step(later)[0].tolist())
    return {
        "open": open_seconds,
        "batch": batch_seconds,
        "memory": first_memory,
        "rate": BATCH * BATCHES / (time.perf_counter() - start),
        "peak": most_memory(),
    }


def in_new_process(contender: str, step: int, folder: Path) -> dict[str, float]:
    program = [sys.executable, __file__, "--measure", contender, str(step), str(folder)]
    return json.loads(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


def row(name: str, rounds: Sequence[dict[str, float]]) -> list[str]:
    def median(key: str, form: str) -> str:
        return median_and_range([values[key] for values in rounds], form)

    return [
        name,
        median("open", ".2f"),
        median("batch", ".3f"),
        median("memory", ",.0f"),
        median("peak", ",.0f"),
        median("rate", ",.0f"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--measure", nargs=3)
    arguments = parser.parse_args()
    if arguments.measure:
        contender, step, folder = arguments.measure
        print(json.dumps(measure(contender, int(step), Path(folder))))
        return

    from pcls.data.convert import convert

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "numbers")
        start = time.perf_counter()
        convert(Numbers(arguments.records), None, folder, description="numbers", shards=SHARDS)
        wrote = time.perf_counter() - start
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(ROUNDS):
            for name, (contender, step) in CONTENDERS.items():
                rounds[name].append(in_new_process(contender, step, folder))
    _ledger.append(
        f"Opening {arguments.records:,} converted records",
        ["contender", "open, s", "first batch, s", "memory then, MB", "memory at most, MB", "records/s after it"],
        [row(name, values) for name, values in rounds.items()],
        packages=["array_record", "numpy"],
        note=f"Records of 64 bytes in {SHARDS} shards, in the page cache, random batches of {BATCH}, one thread, a new "
        f"process each; {ROUNDS} rounds, medians (ranges). Written by `convert` in {wrote:,.0f} s. Memory is all that "
        "the process holds, Python and imports included. Gates: < 2 s, < 300 MB, the late step as fast as step 0.",
        dry=arguments.dry,
    )


if __name__ == "__main__":
    main()
