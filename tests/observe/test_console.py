import io
import os
import time

import pytest

from pcls.observe.console import Console, duration, evaluation_line, progress_line, telling

ROW = {
    "step": 1200,
    "epoch": 2.56,
    "loss": 0.05124,
    "accuracy": 0.98412,
    "images_per_second": 12345.4,
    "data_wait": 0.012,
    "eta": 192.0,
}


def row_at(step):
    return ROW | {"step": step}


def test_the_progress_line_reads_well():
    assert progress_line(ROW, 4690) == (
        "step 1,200/4,690  epoch 2.6  loss 0.0512  accuracy 98.4%  12,345 images/s  data 1%  ETA 3:12"
    )
    assert "  12,345 sequences/s  " in progress_line(ROW, 4690, "sequences")


def test_the_evaluation_line_reads_well():
    row = {"step": 469, "epoch": 1.0, "top1": 0.98712, "top5": 0.9998, "loss": 0.04018, "n": 10000, "undecodable": 0}
    text = "eval  step 469  epoch 1.0  top-1 98.71%  top-5 99.98%  loss 0.0402  n 10,000"
    assert evaluation_line(row) == text
    assert evaluation_line(row | {"undecodable": 2, "best": True}) == f"{text}  undecodable 2  best so far"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (7.4, "0:07"),
        (59.6, "1:00"),
        (192, "3:12"),
        (3599.7, "1:00:00"),
        (3723, "1:02:03"),
        (86400 * 2 + 4 * 3600 + 5 * 60, "2d 04:05"),
        (float("inf"), "-"),
        (float("nan"), "-"),
        (-1, "-"),
    ],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_a_log_file_gets_few_lines_and_no_control_characters():
    stream = io.StringIO()
    console = Console(10_000, stream)
    shown = 0
    for step in range(1, 10_001):
        if console.due():
            console.progress(row_at(step))
            shown += 1
    console.say("eval")
    lines = stream.getvalue().splitlines()
    assert shown == 1
    assert lines == [progress_line(row_at(1), 10_000), "eval"]
    assert "\r" not in stream.getvalue()


def test_a_terminal_is_redrawn_some_times_a_second(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("pcls.observe.console.time.monotonic", lambda: now)
    stream = io.StringIO()
    stream.isatty = lambda: True
    console = Console(100, stream)
    shown = 0
    for step in range(100):
        if console.due():
            console.progress(row_at(step))
            shown += 1
        now += 0.05
    # Five seconds, at most one line every 0.2.
    assert 20 <= shown <= 25


def screen(output, columns):
    """What a terminal shows after this output: carriage returns overwrite, long lines wrap."""
    lines, column = [[]], 0
    for character in output:
        if character == "\r":
            column = 0
        elif character == "\n":
            lines.append([])
            column = 0
        else:
            if column == columns:
                lines.append([])
                column = 0
            lines[-1][column : column + 1] = [character]
            column += 1
    return ["".join(line).rstrip() for line in lines]


@pytest.mark.parametrize("columns", [40, 120])
def test_a_terminal_redraws_one_line_and_what_is_said_stays(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "24")
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as stream:
        console = Console(1200, stream)
        console.say("start")
        console.progress(row_at(1))
        console.progress(row_at(1200))
        console.say("eval one")
        console.progress(row_at(1000))
        console.progress(row_at(3))
        console.say("eval two")
        time.sleep(0.1)
        output = os.read(ours, 1 << 16).decode().replace("\r\n", "\n")
    os.close(ours)
    # Nothing of the longer line is left behind what took its place.
    assert screen(output, columns) == ["start", "eval one", "eval two", ""]
    assert progress_line(row_at(1200), 1200)[: columns - 1] in output


def test_among_five_classes_or_fewer_a_summary_tells_no_top5():
    summary = {"top1": 0.5, "top5": 1.0, "n": 2}
    assert telling(summary, 6) == summary
    assert telling(summary, 5) == {"top1": 0.5, "n": 2}
