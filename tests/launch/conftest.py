"""Small programs that stand for pcls and for the tools of clusters."""

import os
import sys
import textwrap
from pathlib import Path

import pytest

from pcls.launch.supervisor import Command

# Does, at its Nth start, the Nth of the things that it is told; the last again and again.
PROGRAM = """
import os, signal, subprocess, sys, time
from pathlib import Path

name, *plan = sys.argv[1:]
starts = Path(name + ".starts")
count = starts.read_text().count("\\n") if starts.exists() else 0
with starts.open("a") as file:
    file.write(f"{os.getpid()}\\n")
what, _, value = plan[min(count, len(plan) - 1)].partition(":")


def heard(number, frame):
    with Path(name + ".signals").open("a") as file:
        file.write(signal.Signals(number).name + "\\n")
    if what == "obey":
        sys.exit(int(value))


for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, heard)
while "WAIT_FOR" in os.environ and not Path(os.environ["WAIT_FOR"]).exists():
    time.sleep(0.01)
print(f"{name} says", what, value)
if what == "exit":
    sys.exit(int(value))
if what == "kill":
    os.kill(os.getpid(), int(value))
if what == "child":
    child = subprocess.Popen(["sleep", "60"])
    Path(name + ".child").write_text(str(child.pid))
    sys.exit(int(value))
Path(name + ".ready").touch()
time.sleep(60)
"""


@pytest.fixture
def stub(tmp_path):
    """A function that makes a command of PROGRAM: `stub("a", "exit:42", "exit:0")`."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def make(name: str, *plan: str, **options) -> Command:
        argv = (sys.executable, "-S", "-E", str(program), str(tmp_path / name), *plan)
        return Command(argv, tmp_path / "logs" / f"{name}.log", **options)

    return make


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A function that puts a bash script on PATH under a tool's name."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def add(name: str, script: str) -> Path:
        path = folder / name
        path.write_text("#!/bin/bash\n" + textwrap.dedent(script))
        path.chmod(0o755)
        return path

    return add
