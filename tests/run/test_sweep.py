"""Sweeps: of made-up trials in this process, and of real ones in processes that share nothing but the folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pcls
from pcls.cli import main
from pcls.errors import Diverged
from pcls.observe.sinks import read_metrics
from pcls.run import sweep as sweep_module
from pcls.run.folder import RunFolder
from pcls.run.sweep import sweep_json, sweep_text

RATES = "optimizer.lr=1,2,3,4,5,6,7,8,9"


@pytest.fixture
def trained(monkeypatch):
    """Trials in order, each as good as its rate divides by 10; no network is trained. The rate 4 diverges."""
    names = []

    def train(recipe, start_of):
        folder = RunFolder(recipe.run.dir)
        names.append(folder.path.name)
        if recipe.optimizer.lr == 4:
            raise Diverged("the loss is not finite")
        folder.create(recipe)
        value = recipe.optimizer.lr / 10 + recipe.train.seed / 100
        folder.write_json("evaluation.json", {"top1": value, "loss": 1 - value})
        folder.set_status("finished", 1, 1)

    monkeypatch.setattr(sweep_module, "train_or_resume", train)
    return names


def run(folder: Path, *arguments: str, **options):
    return pcls.sweep("digits_cnn", arguments, folder, **({"strategy": "grid", "say": str} | options))


def test_settings_are_sorted_by_the_mean_over_seeds_and_what_fails_is_named(trained, tmp_path):
    found = run(tmp_path, "optimizer.lr=2,4,9", "train.seed=0,4")
    assert [(dict(r.setting)["optimizer.lr"], r.mean) for r in found.results] == [
        ("9", pytest.approx(0.92)),
        ("2", pytest.approx(0.22)),
    ]
    assert found.results[0].deviation == pytest.approx(0.04 / 2**0.5)
    assert [path.name for path, _ in found.failed] == ["0001-seed0", "0001-seed4"]
    text = sweep_text(found)
    assert text.splitlines()[1].split() == ["9", "0.9200", "0.0283", "2"]
    failed = tmp_path / "0001-seed0"
    assert f"failed: {failed}: the loss is not finite (delete {failed / 'failed.json'} to try it again)" in text
    assert text.splitlines()[-1] == "best: pcls train digits_cnn optimizer.lr=9"
    as_json = json.loads(json.dumps(sweep_json(found)))
    assert as_json["best"] == "pcls train digits_cnn optimizer.lr=9"
    assert list(as_json["settings"][0]["runs"].values()) == pytest.approx([0.9, 0.94])


def test_by_the_loss_less_is_better(trained, tmp_path):
    assert run(tmp_path, "optimizer.lr=2,9", metric="loss").results[0].mean == pytest.approx(0.1)


def test_a_command_that_is_repeated_trains_nothing_and_says_the_same(trained, tmp_path):
    first = run(tmp_path, "optimizer.lr=2,4,9")
    assert len(trained) == 3
    assert run(tmp_path, "optimizer.lr=2,4,9") == first
    assert len(trained) == 3
    (tmp_path / "0001" / "failed.json").unlink()
    run(tmp_path, "optimizer.lr=2,4,9")
    assert trained[3:] == ["0001"]


def test_an_unreadable_trial_is_skipped_and_named(trained, tmp_path):
    run(tmp_path, "optimizer.lr=2,9")
    (tmp_path / "0001" / "evaluation.json").write_text("{")
    (tmp_path / "0000" / "evaluation.json").write_text("{}")
    found = run(tmp_path, "optimizer.lr=2,9")
    assert found.results == ()
    assert [error.split(": ")[0] for _, error in found.failed] == [
        str(tmp_path / "0000" / "evaluation.json"),
        str(tmp_path / "0001" / "evaluation.json"),
    ]
    assert sweep_text(found).splitlines()[-1] == "no setting finished"


def test_halving_trains_the_better_third_three_times_as_long(trained, tmp_path):
    found = run(tmp_path, RATES, strategy="halving", trials=9, seed=3)
    by_rung = [sum(f"rung{rung}" in name for name in trained) for rung in range(3)]
    assert by_rung == [9, 3, 1]
    assert [dict(result.setting)["optimizer.lr"] for result in found.results] == list("98765321")
    assert [result.duration for result in found.results[:4]] == [
        "10 epochs",
        *["3.333 epochs"] * 2,
        "1.111 epochs",
    ]
    assert RunFolder(found.results[0].runs[0]).recipe().train.duration.value == 10
    assert "train.duration" in sweep_text(found).splitlines()[0]


def test_a_trial_that_was_killed_is_gone_on_with_and_the_finished_are_not(trained, tmp_path):
    run(tmp_path, "optimizer.lr=2,9")
    RunFolder(tmp_path / "0001").set_status("running", 3, 9)
    assert len(run(tmp_path, "optimizer.lr=2,9").results) == 2
    assert trained == ["0000", "0001", "0001"]


def test_a_stop_gives_the_trial_back(tmp_path, monkeypatch):
    def stopped(recipe, start_of):
        raise pcls.RestartRequested("stopped and saved at step 3")

    monkeypatch.setattr(sweep_module, "train_or_resume", stopped)
    with pytest.raises(pcls.RestartRequested, match=r"stopped in trial .*0000; the same command goes on"):
        run(tmp_path, "optimizer.lr=2,9")
    assert list(tmp_path.glob("*.lock")) == []


def test_another_sweep_in_the_folder_is_left_alone(trained, tmp_path):
    run(tmp_path, "optimizer.lr=2,9")
    with pytest.raises(pcls.UserError, match=r"holds another sweep, whose settings differ; name another folder"):
        run(tmp_path, "optimizer.lr=2,8")
    with pytest.raises(pcls.UserError, match=r"holds another sweep, whose recipe differ"):
        run(tmp_path, "optimizer.lr=2,9", "train.batch_size=64")
    (tmp_path / "sweep.json").write_text("[")
    with pytest.raises(pcls.UserError, match=r"sweep\.json: is damaged"):
        run(tmp_path, "optimizer.lr=2,9")


def test_a_trial_of_another_machine_is_waited_for(trained, tmp_path, monkeypatch):
    lock = tmp_path / "0000.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    said, naps = [], []

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            lock.unlink()

    monkeypatch.setattr(sweep_module.time, "sleep", nap)
    assert len(run(tmp_path, "optimizer.lr=2,9", say=said.append).results) == 2
    assert trained == ["0001", "0000"]
    assert len(naps) == 3
    waiting = [text for text in said if "process 1 on elsewhere" in text]
    assert len(waiting) == 1
    assert not lock.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lrr=1,2"], "unknown key 'optimizer.lrr'"),
        (["optimizer.lr=log:1..0", "--trials", "3"], "two numbers a < b are needed, both above 0"),
        (["optimizer.lr=0,1", "--strategy", "grid"], "override optimizer.lr: optimizer.lr is 0"),
        (["model.name=cnn28,cnn29", "--strategy", "grid"], "cnn29"),
        (["optimizer.lr=1,2", "--strategy", "grid", "--metric", "top3"], "--metric 'top3': one of top1, top5"),
        (["optimizer.lr=1,2", "--strategy", "bayes"], "one of random, grid, halving"),
        (["train.duration=1 epochs,2 epochs", "--strategy", "halving", "--trials", "2"], "train.duration is set by"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_starts(arguments, message, tmp_path, capsys):
    folder = tmp_path / "sweep"
    assert main(["sweep", "digits_cnn", *arguments, "--folder", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not folder.exists()


@pytest.fixture
def worker(tmp_path):
    """A function that starts a process on one sweep of three short trials; what still runs at the end is killed."""
    environment = os.environ | {"XLA_FLAGS": ""}
    settings = [
        *("data.image_size=10", "train.duration=90 steps", "train.batch_size=16", "evaluate.every=90 steps"),
        *("checkpoint.every=3 steps", "optimizer.lr=0.001,0.01,0.03", "--strategy", "grid"),
    ]
    started = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pcls", "sweep", "digits_rnn", *settings]
        command += ["--folder", str(tmp_path / "sweep"), "--json"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, env=environment, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.mark.system
def test_two_processes_do_everything_once_though_one_is_killed(worker, tmp_path):
    folder = tmp_path / "sweep"
    doomed, other = worker(), worker()
    deadline = time.monotonic() + 120
    while not (own := saved_by(doomed.pid, folder)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    doomed.send_signal(signal.SIGKILL)
    _, said = doomed.communicate()
    out, errors = other.communicate(timeout=240)
    assert other.returncode == 0, errors
    found = json.loads(out)
    assert len(found["settings"]) == 3
    assert found["failed"] == []
    # What the first had finished was not done again; what it had begun was gone on with.
    by_other = [line.split()[1] for line in errors.splitlines() if " top1 " in line]
    by_doomed = [line.split()[1] for line in said.splitlines() if " top1 " in line]
    assert sorted(by_other + by_doomed) == ["0000", "0001", "0002"]
    assert own in by_other
    assert "from step " in (folder / own / "log.txt").read_text()
    assert list(folder.glob("*.lock")) == []
    for run_folder in (path.parent for path in folder.glob("*/recipe.yaml")):
        assert [row["step"] for row in read_metrics(run_folder) if row["kind"] == "eval"] == [90]


def saved_by(pid: int, folder: Path) -> str:
    """The trial that this process trains and has a checkpoint of; empty: none."""
    for lock in folder.glob("*.lock"):
        with contextlib.suppress(OSError, ValueError):
            saved = any((folder / lock.stem).glob("checkpoints/*/pcls_manifest.json"))
            if saved and json.loads(lock.read_text())["pid"] == pid:
                return lock.stem
    return ""
