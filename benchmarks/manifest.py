"""Opening a Parquet manifest of ten million rows for the first time and again: `make bench`.

Times and memory are those of a new process each. `--dry` prints the table and leaves the ledger alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _ledger
from _worker import median_and_range
from records import most_memory

ROWS, ROWS_AT_ONCE, CLASSES = 10_000_000, 1_000_000, 1000
ROUNDS = 5


def write_manifest(file: Path) -> None:
    """Paths of 25 characters, a class for each thousandth."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({"path": pa.string(), "label": pa.int32()})
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, ROWS, ROWS_AT_ONCE):
            numbers = np.arange(start, start + ROWS_AT_ONCE)
            paths = [f"c{number % CLASSES:04d}/image{number:010d}.jpg" for number in numbers.tolist()]
            writer.write_table(pa.table({"path": paths, "label": (numbers % CLASSES).astype(np.int32)}, schema))


def measure(file: Path, cache: Path) -> dict[str, float]:
    """Seconds and MB of opening; the import is part of neither."""
    from pcls.data.sources.manifest import open_manifest

    before, start = most_memory(), time.perf_counter()
    source, _ = open_manifest(file, cache=cache)
    seconds = time.perf_counter() - start
    if len(source) != ROWS or not source.name(ROWS - 1).endswith(f"{ROWS - 1:010d}.jpg"):
        raise SystemExit("other rows came than were written")
    return {"seconds": seconds, "before": before, "most": most_memory()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--measure", nargs=2, type=Path)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    cases: dict[str, list[dict[str, float]]] = {"for the first time": [], "again": []}
    with tempfile.TemporaryDirectory() as scratch:
        file, cache = Path(scratch, "list.parquet"), Path(scratch, "cache")
        write_manifest(file)
        for _ in range(ROUNDS):
            shutil.rmtree(cache, ignore_errors=True)
            for found in cases.values():
                program = [sys.executable, __file__, "--measure", str(file), str(cache)]
                found.append(json.loads(subprocess.run(program, check=True, capture_output=True, text=True).stdout))
    _ledger.append(
        f"Opening a Parquet manifest of {ROWS:,} rows",
        ["opened", "seconds", "memory before, MB", "memory at most, MB"],
        [
            [
                name,
                median_and_range([one["seconds"] for one in found], ".3f"),
                median_and_range([one["before"] for one in found], ",.0f"),
                median_and_range([one["most"] for one in found], ",.0f"),
            ]
            for name, found in cases.items()
        ],
        packages=["pyarrow", "numpy"],
        note=f"Paths of 25 characters, {CLASSES:,} classes, the file in the page cache; {ROUNDS} rounds, medians "
        "(ranges). Memory is all that the process holds. Gates: < 2 s, < 300 MB.",
        dry=arguments.dry,
    )


if __name__ == "__main__":
    main()
