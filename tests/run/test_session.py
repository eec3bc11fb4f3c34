"""What a run keeps beside its checkpoints: where the time went, traces, the parameter table, statistics taken anew."""

import csv
import importlib.metadata
import time
from contextlib import contextmanager
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

import pcls
from pcls.cli import main
from pcls.config import load_recipe
from pcls.data.pipeline import Workers, training_batches
from pcls.errors import UserError
from pcls.models.registry import MODELS, Entry
from pcls.nn.conv import Conv
from pcls.nn.norm import BatchNorm
from pcls.nn.pooling import global_mean_pool
from pcls.observe.chips import CHIPS
from pcls.observe.goodput import CAUSES
from pcls.observe.sinks import read_metrics
from pcls.run import evaluate, session, setup
from pcls.run.setup import prepare

LOST = [f"lost_to_{cause}" for cause in ("compile", *CAUSES)]


def goodput_rows(path):
    return [row for row in read_metrics(path) if row["kind"] == "goodput"]


def test_goodput_is_told_with_each_evaluation_and_at_the_end(finished_run):
    assert [row["step"] for row in goodput_rows(finished_run)] == [6, 12]


def test_the_time_of_a_run_adds_up(finished_run):
    rows = goodput_rows(finished_run)
    for row in rows:
        assert min(row[cause] for cause in LOST) >= 0
        assert row["goodput"] * row["seconds"] + sum(row[cause] for cause in LOST) == pytest.approx(
            row["seconds"], abs=0.02 + 1e-4 * row["seconds"]
        )
    # Each cause only grows, and a run has something of each.
    for cause in ("seconds", *LOST):
        assert rows[0][cause] <= rows[1][cause]
        assert rows[1][cause] > 0 or cause == "lost_to_data"


def test_what_is_booked_was_really_spent(tmp_path, tiny, monkeypatch):
    """Half a second is hidden in the data, the evaluation and the checkpoint of a run."""
    read = setup.training_batches

    @contextmanager
    def slow_batches(*arguments, **options):
        with read(*arguments, **options) as batches:
            yield (batch for number, batch in enumerate(batches) if time.sleep(0.5 * (number == 1)) is None)

    def slow(method):
        return lambda *arguments, **options: (time.sleep(0.5), method(*arguments, **options))[1]

    monkeypatch.setattr(setup, "training_batches", slow_batches)
    monkeypatch.setattr(evaluate.Evaluator, "__call__", slow(evaluate.Evaluator.__call__))
    monkeypatch.setattr(session.CheckpointStore, "save", slow(session.CheckpointStore.save))
    run = pcls.train("digits_rnn", tiny | {"train.duration": "3 steps", "run.dir": str(tmp_path / "run")})
    (row,) = goodput_rows(run.path)
    for cause in ("data", "evaluation", "checkpoint"):
        assert 0.5 <= row[f"lost_to_{cause}"] < row["seconds"] - 1


def test_a_stopped_run_and_its_resume_each_tell_of_their_own_time(tiny, tmp_path, stop_after):
    path = tmp_path / "run"
    stop_after(5)
    with pytest.raises(pcls.RestartRequested):
        pcls.train("digits_rnn", tiny | {"run.dir": str(path)})
    stop_after(0)
    pcls.resume(path)
    assert [row["step"] for row in goodput_rows(path)] == [5, 6, 12]


def test_a_run_that_fails_early_leaves_no_listener_behind(tiny, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr("pcls.observe.goodput.Goodput.close", lambda self: closed.append(self))
    with pytest.raises(UserError, match=r"train\.batch_size is 30"):
        pcls.train("digits_rnn", tiny | {"train.batch_size": 30, "run.dir": str(tmp_path / "run")})
    with pytest.raises(UserError, match="there is no run in this folder"):
        pcls.resume(tmp_path / "run")
    assert len(closed) == 2
    for goodput in closed:
        jax.monitoring.unregister_event_time_span_listener(goodput._on_event)


# MFU


def test_a_cpu_has_no_mfu(finished_run):
    assert all("mfu" not in row for row in read_metrics(finished_run))


def test_mfu_is_the_rate_times_three_forward_passes_over_the_peak_of_all_devices(tiny, tmp_path, monkeypatch):
    chip = replace(CHIPS[0], bf16_flops=1e12, f32_flops=None, devices=2)
    monkeypatch.setattr(session, "chip_of", lambda kind: chip)
    run = pcls.train("digits_rnn", tiny | {"run.dir": str(tmp_path / "run")})
    # 10 steps of 10 pixels and 32 units, and the head, a multiply-add counted as two.
    forward = 2 * (10 * (10 * 32 + 32 * 32) + 32 * 10)
    rows = [row for row in read_metrics(run.path) if row["kind"] == "train"]
    assert len(rows) == 2
    for row in rows:
        assert row["mfu"] == pytest.approx(row["images_per_second"] * 3 * forward / (8 / 2 * 1e12), rel=0.05)


# Traces


def trace_files(path):
    return sorted(file.name.split(".", 1)[1] for file in (path / "tensorboard" / "plugins" / "profile").rglob("*.*"))


def test_profiled_steps_leave_a_trace_for_tensorboard(tiny, tmp_path, capsys):
    settings = [f"{key}={value}" for key, value in (tiny | {"run.dir": tmp_path / "run"}).items()]
    assert main(["train", "digits_rnn", *settings, "--profile", "8:9"]) == 0
    assert "xplane.pb" in trace_files(tmp_path / "run")
    (xplane,) = (tmp_path / "run" / "tensorboard").rglob("*.xplane.pb")
    assert xplane.stat().st_size > 10_000
    assert f"profiled: look at it with: tensorboard --logdir {tmp_path}/run/tensorboard" in capsys.readouterr().err
    # The metrics lie in the same folder.
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.*"))


def test_a_run_that_fails_while_it_is_traced_ends_the_trace(tiny, tmp_path, monkeypatch):
    def broken(self, state, step):
        raise ZeroDivisionError

    monkeypatch.setattr(session.Session, "evaluate", broken)
    with pytest.raises(ZeroDivisionError):
        pcls.train("digits_rnn", tiny | {"run.dir": str(tmp_path / "run")}, profile=range(5, 100))
    # jax refuses a second trace while one goes on.
    jax.profiler.start_trace(str(tmp_path / "other"))
    jax.profiler.stop_trace()


def test_steps_to_trace_are_those_of_the_run_and_on_resume_of_what_is_left(tiny, tmp_path, stop_after):
    path = tmp_path / "run"
    with pytest.raises(UserError, match="profile: steps 50 to 60 are not among those of this run, 1 to 12"):
        pcls.train("digits_rnn", tiny | {"run.dir": str(path)}, profile=range(50, 61))
    assert not path.exists()
    stop_after(6)
    with pytest.raises(pcls.RestartRequested):
        pcls.train("digits_rnn", tiny | {"run.dir": str(path)})
    with pytest.raises(UserError, match="steps 2 to 6 are not among those of this run, 7 to 12"):
        pcls.resume(path, profile=range(2, 7))


# Tables


def test_the_parameter_table_of_a_run_is_its_optimizers(finished_run):
    with (finished_run / "parameters.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    setup = prepare(load_recipe(finished_run / "recipe.yaml"))
    assert rows.keys() == setup.model.params.keys()
    assert sum(int(row["count"]) for row in rows.values()) == setup.model.parameter_count
    # zero1: whole parameters, and updates in eight parts where they divide.
    assert {row["split"] for row in rows.values()} == {""}
    assert rows["conv2/kernel"]["optimizer_split"] != ""
    assert (rows["head/bias"]["shape"], rows["head/bias"]["lr_scale"]) == ("10", "1.0")


def test_where_the_state_lies_is_told_at_the_start(tiny, tmp_path, capsys):
    pcls.train("digits_rnn", tiny | {"train.duration": "1 steps", "run.dir": str(tmp_path / "run")})
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in told[1:5]] == ["state", "parameters", "optimizer", "averages"]


# Statistics taken anew


class Normalised(nnx.Module):
    """One normalised convolution and the head."""

    def __init__(self, *, channels, classes, dtype, rngs):
        self.conv = Conv(channels, 8, 3, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, classes, dtype=dtype, rngs=rngs)

    def __call__(self, images, training=None):
        return self.head(global_mean_pool(nnx.relu(self.bn(self.conv(images), training))))


@pytest.mark.parametrize("ema", [0.0, 0.9], ids=["as trained", "averaged"])
def test_recalibrated_statistics_are_the_mean_over_the_batches_that_would_have_come_next(
    ema, tmp_path, final_state, monkeypatch
):
    monkeypatch.setitem(MODELS, "normalised", Entry("for tests", Normalised, 8, 8, 1, 10))
    settings = {
        "model.name": "normalised",
        "data.image_size": 8,
        "augment.shift": 1,
        "train.duration": "2 steps",
        "train.batch_size": 16,
        "train.ema_decay": ema,
        "batch_norm.recalibrate": "3 steps",
        "evaluate.every": "2 steps",
        "checkpoint.every": "2 steps",
        "run.dir": str(tmp_path / "run"),
    }
    run = pcls.train("digits_cnn", settings)
    setup, leaves = prepare(load_recipe("digits_cnn", settings)), final_state(run.path)
    prefix = ("ema/0", "ema/1") if ema else ("params", "stats")
    params, stats = (
        {name.removeprefix(f"{part}/"): leaf for name, leaf in leaves.items() if name.startswith(f"{part}/")}
        for part in prefix
    )
    options = {"order": setup.order, "rows": {16: np.arange(16)}, "random_crop": True, "workers": Workers(threads=0)}
    data = setup.dataset
    with training_batches(data.train, data.preprocessing, steps=range(2, 5), **options) as batches:
        step = setup.statistics_step()
        taken = [jax.device_get(step(params, stats, leaves["key"], batch)) for batch in batches]
    assert [weight for _, weight in taken] == [16, 16, 16]
    for path, value in stats.items():
        wanted = np.mean([each[path] for each, _ in taken], 0)
        np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-4, err_msg=path)
    # After two steps the running ones would still be close to their start, 0 and 1.
    assert np.abs(stats["bn/var"] - 1).max() > 0.3
    # What is delivered and was evaluated are these weights.
    assert pcls.evaluate(run).loss == pytest.approx(run.evaluation.loss, rel=1e-6)


# Weights & Biases


def test_a_missing_wandb_ends_before_anything_is_written(tiny, tmp_path):
    if importlib.metadata.packages_distributions().get("wandb"):
        pytest.skip("wandb is installed")
    with pytest.raises(UserError, match=r"observe\.wandb needs the package wandb: pip install 'pcls\[wandb\]'"):
        pcls.train("digits_rnn", tiny | {"observe.wandb": "digits", "run.dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()
