"""Importing ResNet-50 from a file, beside timm's reading of the same file: `make bench`.

Each contender is a new process, the two in turn. Memory is what the peak grows by over the imports of the libraries.
`--dry` prints the table and leaves the ledger alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import _ledger
from _worker import median_and_range

ROUNDS = 5
# What each may take: times the file, seconds.
MEMORY_GATE, SECONDS_GATE = 2.5, 5.0

# Each prints seconds and bytes. The peak is that of the whole process: what was there before is taken off.
MEASURED = """
import json, resource, sys, time
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
{imports}
before, start = peak(), time.perf_counter()
{work}
print(json.dumps([time.perf_counter() - start, peak() - before]))
"""
PCLS = MEASURED.format(
    imports="from pathlib import Path; from pcls.pretrained.importing import import_bundle\n"
    "from pcls.pretrained.bundle import save_bundle",
    work="save_bundle(import_bundle(sys.argv[1]), Path(sys.argv[2]))",
)
TIMM = MEASURED.format(
    imports=f"sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport _timm, timm",
    work="timm.create_model(f'local-dir:{sys.argv[1]}', pretrained=True)",
)
CONTENDERS = {"pcls: file to bundle": PCLS, "timm: file to model": TIMM}


def write_weights(folder: Path) -> int:
    """A ResNet-50 of random weights as timm writes it, in a process of its own; its bytes."""
    program = """
import sys, jax
from pathlib import Path
from pcls.models.registry import customary_model
from pcls.pretrained.bundle import Bundle
from pcls.pretrained.catalogue import find_weight
from pcls.pretrained.exporting import export_timm
weight, model = find_weight('resnet50.a1_in1k'), customary_model('resnet50')
params, stats = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
names = tuple(map(str, range(1000)))
export_timm(Bundle('resnet50', names, weight.preprocessing, 'float32', params, stats, {}), Path(sys.argv[1]))
"""
    subprocess.run([sys.executable, "-c", program, str(folder)], env=environment(), check=True)
    return (folder / "model.safetensors").stat().st_size


def environment() -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def measured(program: str, source: Path, scratch: Path) -> tuple[float, float]:
    """Seconds and bytes of one process."""
    command = [sys.executable, "-c", program, str(source), str(scratch)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"a contender failed:\n{done.stderr}")
    seconds, grown = json.loads(done.stdout.splitlines()[-1])
    return seconds, grown


def row(name: str, results: Sequence[tuple[float, float]], size: int) -> list[str]:
    seconds, grown = zip(*results, strict=True)
    return [name, median_and_range(seconds, ".2f"), median_and_range([one / size for one in grown], ".2f")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="leave the ledger alone")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "resnet50"
        size = write_weights(source)
        for number in range(arguments.rounds):
            for name, program in CONTENDERS.items():
                results[name].append(measured(program, source, Path(scratch) / f"bundle-{number}"))
    rows = [row(name, each, size) for name, each in results.items()]
    _ledger.append(
        "Importing ResNet-50 from a file",
        ["case", "seconds, median", "peak memory, times the file"],
        rows,
        packages=["jax", "safetensors", "torch", "timm"],
        note=f"{arguments.rounds} rounds in turn, a process each, a file of {size / 1e6:.0f} MB. pcls checks the "
        "numbers and writes a bundle with its digest, timm makes a model. "
        f"Gates: {SECONDS_GATE:g} s, {MEMORY_GATE:g} times the file.",
        dry=arguments.dry,
    )


if __name__ == "__main__":
    main()
