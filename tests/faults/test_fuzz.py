"""Files that others made, changed in every way: each is read, or refused by a typed error, in bounded time and memory.

`fuzzed.py` feeds them, in a process of its own. By hypothesis: what a format is made of is changed, and digests made to
agree. By atheris, where it is installed: bytes are changed, guided by which lines of pcls they reach.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

INPUTS = {
    "hypothesis": {
        "recipe": 15_000,
        "checkpoint manifest": 10_000,
        "safetensors": 20_000,
        "idx": 20_000,
        "idx, gzipped": 5_000,
        "wav": 15_000,
        "model.json": 5_000,
    },
    "atheris": {
        "recipe": 5_000,
        "checkpoint manifest": 10_000,
        "safetensors": 10_000,
        "idx": 10_000,
        "idx, gzipped": 5_000,
        "wav": 10_000,
        "model.json": 5_000,
    },
}
# In each parser's process; seconds of the processor, for one file.
MAX_MEBIBYTES, MAX_SECONDS = 512, 5


@pytest.fixture
def folder():
    """In memory where there is such a place: a disk takes its time for a file that is written over again and again."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


@pytest.mark.parametrize(("how", "name"), [(how, name) for how, names in INPUTS.items() for name in names])
def test_a_changed_file_is_read_or_refused_by_a_typed_error(how, name, folder, counted):
    if how == "atheris" and importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed")
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is capped by what Linux tells of it")
    inputs = INPUTS[how][name]
    program = [sys.executable, str(Path(__file__).with_name("fuzzed.py")), how, name, str(inputs), str(folder)]
    done = subprocess.run(program, capture_output=True, text=True)
    input_file = folder / "input"
    assert done.returncode == 0, (done.returncode, input_file.read_bytes()[:500], done.stderr[-3000:])
    found = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"counts"'))
    assert sum(found["counts"].values()) >= inputs
    assert found["counts"].keys() >= {"read"}
    assert found["mebibytes"] < MAX_MEBIBYTES
    assert found["slowest"] < MAX_SECONDS
    counts = counted("changed files fed to what reads them")
    fed, read = sum(found["counts"].values()), found["counts"]["read"]
    counts["all"] += fed
    counts["  read"] += read
    counts["  refused by a typed error"] += fed - read
    counts[f"{name}, by {how}"] += fed
