import csv
import importlib
import importlib.machinery
import importlib.metadata
import json
import re
import struct
import sys
import time
import types

import pytest
from tensorboardX.proto.event_pb2 import Event

from pcls.errors import UserError
from pcls.observe.sinks import COLUMNS, MetricFiles, Wandb, read_metrics, require_wandb


def train_row(step, **more):
    return {"kind": "train", "step": step, "epoch": step / 8, "loss": 1 / step, "accuracy": 0.5, "lr": 1e-3} | more


def eval_row(step):
    return {"kind": "eval", "step": step, "epoch": step / 8, "n": 359, "top1": 0.75, "loss": 0.5, "macro_f1": 0.7}


def written(folder, rows, start=0):
    files = MetricFiles(folder, start=start)
    for row in rows:
        files.write(row)
    files.close()


def csv_rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(path):
    """The events of a TensorBoard file: each is framed by its length and two checksums."""
    data, found = path.read_bytes(), []
    # A file that is being written may end inside an event.
    while len(data) > 12 and len(data) >= 16 + (length := struct.unpack("<Q", data[:8])[0]):
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def scalars(folder):
    """What TensorBoard shows: tag and step to value. A session start hides the steps from its own on."""
    found = {}
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        for event in events(path):
            if event.HasField("session_log"):
                found = {(tag, step): value for (tag, step), value in found.items() if step < event.step}
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


def test_the_three_files_agree(tmp_path):
    rows = [train_row(1), eval_row(2), train_row(3)]
    written(tmp_path, rows)
    assert read_metrics(tmp_path) == rows
    for row, line in zip(rows, csv_rows(tmp_path), strict=True):
        assert tuple(line) == COLUMNS
        assert {name: line[name] for name in row if name in COLUMNS} == {
            name: str(value) for name, value in row.items() if name in COLUMNS
        }
    found = scalars(tmp_path)
    assert len(found) == 4 + 5 + 4
    for row in rows:
        for name in set(row) - {"kind", "step"}:
            assert found[f"{row['kind']}/{name}", row["step"]] == pytest.approx(row[name], rel=1e-6)


def test_rows_beyond_the_resumed_step_are_dropped_everywhere(tmp_path):
    written(tmp_path, [train_row(2), eval_row(4), train_row(4), train_row(6), eval_row(8)])
    written(tmp_path, [train_row(5, loss=9.0), eval_row(8)], start=4)
    assert [(row["kind"], row["step"]) for row in read_metrics(tmp_path)] == [
        ("train", 2),
        ("eval", 4),
        ("train", 4),
        ("train", 5),
        ("eval", 8),
    ]
    assert [int(row["step"]) for row in csv_rows(tmp_path)] == [2, 4, 4, 5, 8]
    found = scalars(tmp_path)
    assert {step for tag, step in found if tag == "train/loss"} == {2, 4, 5}
    assert found["train/loss", 5] == 9.0


def test_each_row_is_on_the_disk_at_once_and_soon_for_tensorboard(tmp_path):
    files = MetricFiles(tmp_path, start=0)
    files.write(train_row(1))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    assert len(csv_rows(tmp_path)) == 1
    deadline = time.monotonic() + 20
    while ("train/loss", 1) not in scalars(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ("train/loss", 1) in scalars(tmp_path)
    files.close()


def test_a_last_line_that_a_kill_cut_short_is_left_out(tmp_path):
    written(tmp_path, [train_row(1), train_row(2)])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    written(tmp_path, [train_row(2)], start=1)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_a_number_that_is_not_finite_is_nothing_in_json_and_csv(tmp_path):
    written(tmp_path, [train_row(1, loss=float("nan")), train_row(2, loss=float("inf"))])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["loss"] for line in lines] == [None, None]
    assert [row["loss"] for row in csv_rows(tmp_path)] == ["", ""]


def test_a_run_that_tells_nothing_leaves_no_event_file(tmp_path):
    written(tmp_path, [])
    assert not (tmp_path / "tensorboard").exists()
    assert read_metrics(tmp_path) == []


def test_a_folder_without_metrics_has_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_goodput_and_mfu_have_their_columns(tmp_path):
    row = {"kind": "goodput", "step": 3, "seconds": 2.5, "goodput": 0.5, "lost_to_compile": 1.25, "lost_to_idle": 0.0}
    written(tmp_path, [train_row(1, mfu=0.25), row])
    first, second = csv_rows(tmp_path)
    assert (first["mfu"], first["goodput"]) == ("0.25", "")
    assert [second[name] for name in ("kind", "seconds", "goodput", "lost_to_compile", "lost_to_idle", "loss")] == [
        "goodput",
        "2.5",
        "0.5",
        "1.25",
        "0.0",
        "",
    ]
    assert scalars(tmp_path)["goodput/lost_to_compile", 3] == 1.25


# Weights & Biases


@pytest.fixture
def wandb(monkeypatch):
    """A module in place of the package, which keeps what it is told."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="made up")
    module.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    module.started, module.rows, module.finished, module.refusal = [], [], 0, None

    class Run:
        def log(self, values, step):
            module.rows.append((step, values))

        def finish(self):
            module.finished += 1

    def init(**settings):
        if module.refusal:
            raise module.refusal
        module.started.append(settings)
        return Run()

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_the_recipe_and_every_row(wandb, tmp_path):
    folder = tmp_path / "first"
    folder.mkdir()
    sink = Wandb("digits", folder, {"optimizer.lr": 0.1})
    sink.write(train_row(1))
    sink.write(eval_row(1))
    sink.close()
    (started,) = wandb.started
    assert {name: started[name] for name in ("project", "name", "dir", "config", "resume")} == {
        "project": "digits",
        "name": "first",
        "dir": str(folder),
        "config": {"optimizer.lr": 0.1},
        "resume": "allow",
    }
    assert [step for step, _ in wandb.rows] == [1, 1]
    assert wandb.rows[0][1] == {"train/epoch": 1 / 8, "train/loss": 1.0, "train/accuracy": 0.5, "train/lr": 1e-3}
    assert wandb.rows[1][1]["eval/top1"] == 0.75
    assert wandb.finished == 1


def test_a_resumed_run_goes_on_in_wandb_and_one_of_the_same_name_elsewhere_does_not(wandb, tmp_path):
    for place in ("here/run", "here/run", "there/run"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        Wandb("digits", tmp_path / place, {})
    first, resumed, other = (started["id"] for started in wandb.started)
    assert first == resumed != other
    # What wandb allows in one.
    assert re.fullmatch(r"[\w-]{1,64}", first)


def test_a_wandb_that_refuses_is_the_users_to_mend(wandb, tmp_path):
    for refusal in (wandb.errors.Error("No API key configured."), OSError("disk")):
        wandb.refusal = refusal
        with pytest.raises(UserError, match=r"observe\.wandb: .*; leave it empty, or set WANDB_MODE=offline"):
            Wandb("digits", tmp_path, {})


@pytest.mark.parametrize("folder_of_runs", [False, True])
def test_a_missing_wandb_says_what_to_install(folder_of_runs, tmp_path, monkeypatch):
    if importlib.metadata.packages_distributions().get("wandb"):
        pytest.skip("wandb is installed")
    if folder_of_runs:
        # Python takes any folder for a package.
        (tmp_path / "wandb").mkdir()
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
    with pytest.raises(UserError, match=r"needs the package wandb: pip install 'pcls\[wandb\]'"):
        require_wandb()


def test_wandb_itself_takes_the_rows(tmp_path, monkeypatch):
    pytest.importorskip("wandb", exc_type=ImportError)
    monkeypatch.setenv("WANDB_MODE", "offline")
    sink = Wandb("digits", tmp_path, {"optimizer.lr": 0.1})
    sink.write(train_row(1, loss=float("nan")))
    sink.write(eval_row(2))
    sink.close()
    assert len(list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))) == 1
