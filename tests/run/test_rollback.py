"""Runs whose loss is not finite for a while or for good: they go back, pass over the records since, or give up."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcls
from pcls.checkpoint.store import CheckpointStore, steps_in
from pcls.cli import main
from pcls.data.pipeline import Workers
from pcls.observe.sinks import read_metrics
from pcls.run.evaluate import saved_preprocessing
from pcls.run.folder import RunFolder
from pcls.run.report import run_report
from pcls.run.rollback import Rollback, rollbacks_of
from pcls.run.setup import prepare
from pcls.training import program

GUARDED = {"guard.not_finite": 2, "checkpoint.every": "2 steps", "checkpoint.keep": 20}


@pytest.fixture
def lost(monkeypatch):
    """A function that makes the losses of all records of some steps, counted from 1, not a number."""
    make = program.training_loss

    def arrange(first, last):
        def training_loss(*arguments, **options):
            loss_of = make(*arguments, **options)

            def poisoned(logits, label, step):
                gone = (step + 1 >= first) & (step + 1 <= last)
                return loss_of(logits, label, step) * jnp.where(gone, jnp.nan, 1.0)

            return poisoned

        monkeypatch.setattr(program, "training_loss", training_loss)

    return arrange


def setup_and_state(path, step):
    """A run put together again, and its state after a step."""
    folder = RunFolder(path)
    setup = prepare(folder.recipe(), saved_preprocessing(folder))
    store = CheckpointStore(folder.checkpoints, warn=pytest.fail, agree=int)
    state, found = store.restore(setup.state_shapes, rename=False, before=step + 1)
    store.close()
    assert found == step
    return setup, state


def trained(setup, state, steps):
    """The state and the losses after some steps, counted from 0, one by one."""
    train, losses = setup.train_step(), []
    with setup.batches(steps, Workers(0)) as batches:
        for batch in batches:
            state, metrics = train(state, batch)
            losses.append(float(metrics["loss"]))
    return state, losses


def test_a_run_goes_on_from_good_weights_with_the_records_after_the_bad_ones(tiny, tmp_path, lost, final_state, capsys):
    lost(6, 8)
    path = tmp_path / "run"
    run = pcls.train("digits_cnn", tiny | GUARDED | {"run.dir": str(path)})
    assert RunFolder(path).status()["status"] == "finished"
    reason = "the loss or its gradient was not finite for 2 steps in a row"
    # Steps 6 and 7; their numbers are read while 8 is computed.
    assert rollbacks_of(RunFolder(path)) == [Rollback(since=6, back_to=4, step=8, reason=reason)]
    said = capsys.readouterr().err
    assert "step 6: the loss or its gradient is not finite; it changes nothing" in said
    assert f"step 6: {reason}; first bad: the loss of 32 of 32 records (" in said
    assert (
        "back to the weights of step 4, on with the data of step 8: 128 images are passed over (1 of 3 times)" in said
    )
    # What was saved in between is of a way that the run has left.
    assert (path / "checkpoints" / "6.left").is_dir()
    assert [step for step in steps_in(path / "checkpoints") if step > 4] == [8, 10, 12]
    assert sum(row["skipped"] for row in read_metrics(path) if row["kind"] == "train") == 2
    assert run.evaluation.n == 359
    (table,) = run_report(path).tables
    assert table.rows == (("6", "4", "8", reason),)
    setup, state = setup_and_state(path, 8)
    np.testing.assert_array_equal(setup_and_state(path, 4)[1].params["head/bias"], state.params["head/bias"])
    expected, _ = trained(setup, state, range(8, 12))
    found = final_state(path)
    for name, leaf in jax.device_get(expected).params.items():
        np.testing.assert_array_equal(found[f"params/{name}"], leaf)


@pytest.mark.system
def test_a_run_that_is_lost_again_at_once_goes_further_back_and_ends_with_43(tiny, tmp_path, lost, capsys):
    lost(6, 100)
    path = tmp_path / "run"
    settings = tiny | GUARDED | {"run.dir": str(path), "guard.rollbacks": 2, "train.duration": "16 steps"}
    code = main(["train", "digits_cnn", *(f"{key}={value}" for key, value in settings.items())])
    assert code == 43
    assert [(back.since, back.back_to, back.step) for back in rollbacks_of(RunFolder(path))] == [(6, 4, 8), (9, 2, 11)]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("pcls: the loss or its gradient was not finite for 2 steps in a row, from step 12 on, and ")
    assert "the run has gone back 2 times (guard.rollbacks); first bad: the loss of 32 of 32 records" in last
    assert f"look at it by: pcls replay {path} 12; lower optimizer.lr" in last
    noted = json.loads((path / "diagnosis-12.json").read_text())
    assert (noted["step"], noted["loss"], len(noted["records"])) == (12, "nan", 32)


def test_where_nothing_good_is_left_the_run_ends(tiny, tmp_path, lost):
    lost(1, 100)
    with pytest.raises(pcls.Diverged, match="there is no checkpoint from before step 1;"):
        pcls.train("digits_cnn", tiny | GUARDED | {"run.dir": str(tmp_path / "run")})


def test_a_spike_takes_the_run_back(tiny, tmp_path, monkeypatch):
    make = program.training_loss

    def training_loss(*arguments, **options):
        loss_of = make(*arguments, **options)
        return lambda logits, label, step: loss_of(logits, label, step) * jnp.where(step == 24, 50.0, 1.0)

    monkeypatch.setattr(program, "training_loss", training_loss)
    path = tmp_path / "run"
    settings = {"train.duration": "30 steps", "guard.spike": 10.0, "checkpoint.every": "8 steps"}
    pcls.train("digits_cnn", tiny | settings | {"run.dir": str(path)})
    (back,) = rollbacks_of(RunFolder(path))
    assert (back.since, back.back_to, back.step) == (25, 24, 26)
    assert back.reason.endswith(" times the mean of the steps before")


# pcls replay


@pytest.fixture(scope="module")
def kept_run(tiny, tmp_path_factory):
    """A finished run with its checkpoints of steps 4, 8 and 12."""
    path = tmp_path_factory.mktemp("kept") / "run"
    return pcls.train("digits_cnn", tiny | {"run.dir": str(path)}).path


@pytest.mark.parametrize(("step", "began"), [(3, 0), (5, 4), (8, 4), (12, 8)])
def test_a_replayed_step_has_the_loss_that_it_had(kept_run, step, began):
    found = pcls.replay(kept_run, step)
    assert found.began == began
    setup = prepare(RunFolder(kept_run).recipe(), saved_preprocessing(RunFolder(kept_run)))
    _, losses = trained(setup, setup.initial_state(), range(step))
    assert found.diagnosis.loss == pytest.approx(losses[-1], rel=1e-6)
    assert found.diagnosis.first_bad == ""
    records, _ = setup.order.records_of_step(step - 1)
    np.testing.assert_array_equal(found.diagnosis.records, records)


def test_replay_names_the_worst_records_and_writes_all_of_them(kept_run, capsys):
    assert main(["replay", str(kept_run), "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 5, reached from step 4: loss ") and lines[0].endswith(" over 32 images")
    assert lines[1].startswith("computed again, the loss of step 5 is ") and lines[1].endswith(" and all is finite")
    shown = [float(line.split()[0]) for line in lines[3:-1]]
    assert len(shown) == 10 and shown == sorted(shown, reverse=True)
    noted = json.loads((kept_run / "diagnosis-5.json").read_text())
    assert max(row["loss"] for row in noted["records"]) == pytest.approx(shown[0], rel=1e-4)


def test_a_gradient_whose_norm_overflows_is_told_as_such_and_later_steps_point_to_the_first(tiny, tmp_path, capsys):
    path = tmp_path / "run"
    wild = {"optimizer.name": "sgd", "optimizer.lr": 1e6, "guard.not_finite": 3, "guard.rollbacks": 0}
    wild |= {"optimizer.momentum": 0.0, "optimizer.nesterov": False, "checkpoint.every": "100 steps"}
    with pytest.raises(pcls.Diverged) as caught:
        pcls.train("digits_cnn", tiny | wild | {"run.dir": str(path), "train.ema_decay": 0.0})
    assert "first bad: " in str(caught.value) and "all is finite" not in str(caught.value)
    since = int(re.search(r"pcls replay \S+ (\d+)", str(caught.value))[1])
    assert pcls.replay(path, since).diagnosis.first_bad
    assert main(["replay", str(path), str(since + 6)]) == 2
    assert f"look at the first: pcls replay {path} {since}" in capsys.readouterr().err


@pytest.mark.parametrize("step", [0, 13])
def test_steps_that_a_run_does_not_have_are_refused(kept_run, step, capsys):
    assert main(["replay", str(kept_run), str(step)]) == 2
    assert capsys.readouterr().err == f"pcls: STEP is {step}; the steps of {kept_run} are 1 to 12\n"


@pytest.mark.system
def test_a_step_after_a_rollback_is_replayed_from_the_checkpoint_after_it_or_not_at_all(tiny, tmp_path, lost, capsys):
    lost(6, 8)
    path = tmp_path / "run"
    pcls.train("digits_cnn", tiny | GUARDED | {"run.dir": str(path)})
    # In trouble, and after it.
    assert pcls.replay(path, 7).diagnosis.first_bad == "the loss of 32 of 32 records"
    assert pcls.replay(path, 9).began == 8
    for step in (8, 10):
        (path / "checkpoints" / str(step)).rename(path / f"away-{step}")
    assert main(["replay", str(path), "11"]) == 2
    assert (
        "went back to step 4 at step 8, and no checkpoint between this and step 11 is left" in capsys.readouterr().err
    )
