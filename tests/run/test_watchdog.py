"""Processes that hang are ended with 42, and say where; those that do not are left alone."""

import os
import subprocess
import sys
import time

import pytest

from pcls.run.watchdog import Watchdog

HANGS = """
import sys, threading
from pcls.run.watchdog import Watchdog

watchdog = Watchdog(0.5, __import__("pathlib").Path(sys.argv[1]))
watchdog.expect("step 1,234")

def stuck_here():
    threading.Event().wait(60)

stuck_here()
"""
RUN_HANGS = """
import sys, threading
from pcls.cli import main
from pcls.run import session

place, placed = session.placed, []

def stuck(setup, batch):
    placed.append(batch)
    if len(placed) == 5:
        threading.Event().wait(60)
    return place(setup, batch)

session.placed = stuck
sys.exit(main(sys.argv[1:]))
"""


def ended(program, *arguments):
    environment = os.environ | {"XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_process_that_hangs_ends_with_42_and_tells_where_all_threads_stand(tmp_path):
    report = tmp_path / "new" / "hang-0.txt"
    done = ended(HANGS, report)
    assert (done.returncode, done.stderr) == (
        42,
        f"pcls: waited 0 s for step 1,234 in vain (guard.hang); where all threads stand is in {report}; ended, to be "
        "resumed\n",
    )
    text = report.read_text()
    for wanted in (
        "waited 0 s for step 1,234",
        "process 0 of 1",
        "in stuck_here",
        "(most recent call first)",
        "device 0: cpu",
    ):
        assert wanted in text, text


def test_a_run_whose_data_never_come_ends_with_42_and_goes_on_from_its_checkpoint(tmp_path, tiny):
    path = tmp_path / "run"
    # What is compiled has an hour; a step has two seconds.
    settings = tiny | {"run.dir": path, "guard.hang": 2, "checkpoint.every": "2 steps"}
    done = ended(RUN_HANGS, "train", "digits_rnn", *(f"{key}={value}" for key, value in settings.items()))
    assert done.returncode == 42, done.stderr
    assert "waited 2 s for step 5 in vain" in done.stderr
    assert "in stuck" in (path / "hang-0.txt").read_text()
    assert (path / "checkpoints" / "4").is_dir()


@pytest.mark.parametrize("seconds", [0, 0.3])
def test_who_gets_on_or_is_not_watched_is_left_alone(tmp_path, seconds):
    watchdog = Watchdog(seconds, tmp_path / "hang.txt")
    with watchdog.expecting("a checkpoint", at_least=60):
        time.sleep(0.5)
    # Nothing was expected before it, and so nothing is after it.
    time.sleep(0.5)
    for step in range(10):
        watchdog.expect(f"step {step}")
        time.sleep(0.05)
    watchdog.close()
    time.sleep(0.5)
    assert not (tmp_path / "hang.txt").exists()
