"""Stop and go on: the result is that of a run nobody disturbed."""

import json
import shutil

import numpy as np
import pytest

import pcls
from pcls.data.order import Order
from pcls.observe.sinks import read_metrics
from pcls.pretrained.bundle import load_bundle
from pcls.run.folder import RunFolder

STEPS = 12


@pytest.fixture(scope="module")
def undisturbed(finished_run, final_state):
    return final_state(finished_run)


@pytest.fixture
def copied(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def fed(monkeypatch):
    """The records of every training batch from here on, in order."""
    from pcls.run import session

    records, placed = [], session.placed

    def noting(setup, batch):
        records.append(batch.record.tolist())
        return placed(setup, batch)

    monkeypatch.setattr(session, "placed", noting)
    return records


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def evaluations(path):
    return [
        {name: row[name] for name in ("step", "n", "top1", "loss")}
        for row in read_metrics(path)
        if row["kind"] == "eval"
    ]


def test_the_state_holds_parameters_optimizer_averages_key_and_counts(undisturbed):
    parts = {name.split("/")[0] for name in undisturbed}
    assert parts == {"step", "params", "opt_state", "ema", "key", "best_top1", "last_good_step"}
    assert (int(undisturbed["step"]), int(undisturbed["last_good_step"])) == (STEPS, STEPS)


@pytest.mark.parametrize("step", [1, 6, 11])
def test_a_run_stopped_anywhere_resumes_to_the_same_bits(
    step, tiny, tmp_path, stop_after, final_state, undisturbed, finished_run, fed
):
    path = tmp_path / "run"
    stop_after(step)
    with pytest.raises(pcls.RestartRequested, match=f"stopped and saved at step {step}; go on with: pcls resume"):
        pcls.train("digits_cnn", tiny | {"run.dir": str(path)})
    assert RunFolder(path).status() == {"status": "stopped", "step": step, "steps": STEPS}
    assert not (path / "lock").exists()
    stop_after(0)
    run = pcls.resume(path)
    assert_same(final_state(path), undisturbed)
    expected = [Order(1438, 32, 0).records_of_step(s)[0].tolist() for s in range(STEPS)]
    # Reading ahead is no business of the state: each step was fed once, in order.
    assert fed == expected
    assert evaluations(path) == evaluations(finished_run)
    assert run.evaluation.summary()["loss"] == evaluations(finished_run)[-1]["loss"]
    assert RunFolder(path).status()["status"] == "finished"


@pytest.mark.faults
def test_a_damaged_newest_step_costs_its_interval_and_nothing_else(
    tiny, tmp_path, stop_after, final_state, undisturbed, capsys
):
    path = tmp_path / "run"
    stop_after(9)
    with pytest.raises(pcls.RestartRequested):
        pcls.train("digits_cnn", tiny | {"run.dir": str(path)})
    data = path / "checkpoints" / "9" / "_CHECKPOINT_METADATA"
    data.write_bytes(data.read_bytes()[:-1])
    stop_after(0)
    pcls.resume(path)
    assert "checkpoint step 9 is damaged (_CHECKPOINT_METADATA has" in capsys.readouterr().err
    assert (path / "checkpoints" / "9.corrupt").is_dir()
    assert_same(final_state(path), undisturbed)


def test_a_finished_run_that_lost_its_bundle_writes_it_again(copied):
    before = load_bundle(copied / "bundle")
    shutil.rmtree(copied / "bundle")
    with pytest.raises(pcls.UserError, match="has no bundle, which is written when it is finished: pcls resume"):
        pcls.load(copied)
    pcls.resume(copied)
    again = load_bundle(copied / "bundle")
    assert again.metrics == before.metrics
    assert all(np.array_equal(again.params[path], array) for path, array in before.params.items())


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(tiny, finished_run):
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    with pytest.raises(pcls.UserError) as caught:
        pcls.train("digits_cnn", tiny | {"run.dir": str(finished_run)})
    assert str(caught.value) == (
        f"{finished_run}: holds a finished run; go on with it by: pcls resume {finished_run}, "
        "or name another folder: run.dir=FOLDER"
    )
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before


def test_a_finished_run_says_how_to_train_longer(finished_run):
    with pytest.raises(pcls.UserError, match=r"is finished, 12 of 12 steps; to train longer, add .*train\.duration="):
        pcls.resume(finished_run)


def test_a_finished_run_can_be_trained_longer(copied, final_state):
    pcls.resume(copied, {"train.duration": "14 steps"})
    assert RunFolder(copied).status() == {"status": "finished", "step": 14, "steps": 14}
    assert str(RunFolder(copied).recipe().train.duration) == "14 steps"
    assert int(final_state(copied)["step"]) == 14
    assert [row["step"] for row in evaluations(copied)] == [6, 12, 14]
    assert pcls.load(copied).class_names == tuple("0123456789")


def test_a_run_killed_before_it_delivered_delivers(copied, finished_run):
    shutil.rmtree(copied / "bundle")
    (copied / "evaluation.json").unlink()
    RunFolder(copied).set_status("running", STEPS, STEPS)
    run = pcls.resume(copied)
    assert run.evaluation.n == 359
    assert (copied / "evaluation.json").read_text() == (finished_run / "evaluation.json").read_text()
    weights = "bundle/model.safetensors"
    assert (copied / weights).read_bytes() == (finished_run / weights).read_bytes()
    assert RunFolder(copied).status()["status"] == "finished"


def test_a_change_that_does_not_fit_the_checkpoint_leaves_the_run_as_it_was(copied):
    before = (copied / "recipe.yaml").read_text()
    with pytest.raises(pcls.UserError, match=r"is a checkpoint of another model: .* there and .* here"):
        pcls.resume(copied, {"model.name": "rnn28", "train.duration": "20 steps"})
    assert (copied / "recipe.yaml").read_text() == before
    assert pcls.evaluate(copied).n == 359


def test_a_run_resumes_on_another_mesh(tiny, tmp_path, stop_after, final_state, undisturbed):
    path = tmp_path / "run"
    stop_after(6)
    with pytest.raises(pcls.RestartRequested):
        pcls.train("digits_cnn", tiny | {"run.dir": str(path)})
    stop_after(0)
    pcls.resume(path, {"mesh.fsdp": 2})
    found = final_state(path)
    assert found.keys() == undisturbed.keys()
    for name, value in undisturbed.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    assert json.loads((path / "status.json").read_text())["status"] == "finished"


def test_a_moved_run_resumes_where_it_lies_now(tiny, tmp_path, stop_after):
    stop_after(4)
    with pytest.raises(pcls.RestartRequested):
        pcls.train("digits_cnn", tiny | {"run.dir": str(tmp_path / "run")})
    stop_after(0)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert pcls.resume(tmp_path / "moved").path == tmp_path / "moved"
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


@pytest.mark.parametrize("step", [3, 6, 7])
def test_a_run_stopped_before_at_or_after_an_unfreeze_resumes_to_the_same_bits(
    step, tiny, tmp_path, stop_after, final_state, unfrozen_at_6
):
    path = tmp_path / "run"
    stop_after(step)
    with pytest.raises(pcls.RestartRequested):
        pcls.train("digits_cnn", tiny | UNFREEZE | {"run.dir": str(path)})
    stop_after(0)
    pcls.resume(path)
    assert_same(final_state(path), unfrozen_at_6)


UNFREEZE = {
    "optimizer.name": "adamw",
    "optimizer.freeze": [{"match": "^conv1/"}, {"match": "^conv", "until": "6 steps"}],
}


@pytest.fixture(scope="module")
def unfrozen_at_6(tiny, tmp_path_factory, final_state):
    path = tmp_path_factory.mktemp("unfreeze") / "run"
    pcls.train("digits_cnn", tiny | UNFREEZE | {"run.dir": str(path)})
    return final_state(path)


def test_the_same_command_starts_goes_on_with_and_at_last_only_evaluates_a_run(
    tiny, tmp_path, stop_after, final_state, undisturbed, finished_run
):
    settings = tiny | {"run.dir": str(tmp_path / "run")}
    for step in (5, 9):
        stop_after(step)
        with pytest.raises(pcls.RestartRequested, match=f"stopped and saved at step {step};"):
            pcls.train("digits_cnn", settings, resume=True)
    stop_after(0)
    first = pcls.train("digits_cnn", settings, resume=True)
    assert_same(final_state(tmp_path / "run"), undisturbed)
    assert evaluations(tmp_path / "run") == evaluations(finished_run)
    written = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    second = pcls.train("digits_cnn", settings, resume=True)
    assert second.evaluation.summary() == first.evaluation.summary()
    assert {path: path.read_bytes() for path in written} == written


def test_a_run_cut_off_before_its_first_checkpoint_begins_again(tiny, copied, final_state, undisturbed, finished_run):
    shutil.rmtree(copied / "checkpoints")
    RunFolder(copied).set_status("running", 0, STEPS)
    pcls.train("digits_cnn", tiny | {"run.dir": str(copied)}, resume=True)
    assert_same(final_state(copied), undisturbed)
    assert evaluations(copied) == evaluations(finished_run)


def test_the_run_of_another_recipe_is_not_gone_on_with(tiny, copied):
    changed = tiny | {"run.dir": str(copied), "train.seed": 7, "train.duration": "14 steps"}
    with pytest.raises(pcls.UserError) as caught:
        pcls.train("digits_cnn", changed, resume=True)
    assert str(caught.value) == (
        f"{copied}: holds a run of another recipe, which differs in train.duration, train.seed; change a run by: "
        f"pcls resume {copied} train.duration=..., or name another folder: run.dir=FOLDER"
    )
