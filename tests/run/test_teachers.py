"""Runs that learn from another run's network, end to end."""

from dataclasses import replace

import numpy as np
import pytest

import pcls
from pcls.cli import main
from pcls.config import load_recipe
from pcls.data.preprocessing import SequenceFeatures
from pcls.observe.sinks import read_metrics
from pcls.pretrained.bundle import load_bundle
from pcls.run import teachers
from pcls.run.evaluate import saved_preprocessing
from pcls.run.folder import RunFolder
from pcls.run.setup import prepare
from pcls.run.teachers import with_teacher

PLAIN = {"augment.shift": 0, "train.ema_decay": 0.0}


@pytest.fixture
def taught(tiny, tmp_path, finished_run):
    """A function that trains `digits_rnn` with the finished CNN for a teacher."""

    def train(name="run", **overrides):
        settings = tiny | {"distill.teacher": str(finished_run), "run.dir": str(tmp_path / name)}
        return pcls.train("digits_rnn", settings | overrides).path

    return train


def losses(path):
    return [row["loss"] for row in read_metrics(path) if row["kind"] == "train"]


def assert_same_state(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        if tolerance:
            np.testing.assert_allclose(found[name], leaf, **tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def test_a_recurrent_student_learns_from_a_convolutional_teacher_and_delivers_itself(taught, finished_run):
    path = taught(**{"distill.share": 0.75, "distill.features": 0.5})
    bundle = pcls.load(path)
    assert bundle.class_names == pcls.load(finished_run).class_names
    assert RunFolder(path).status()["status"] == "finished"
    assert pcls.evaluate(path).n == 359


def test_the_teacher_is_one_part_of_the_loss(taught, tiny, tmp_path):
    alone = pcls.train("digits_rnn", tiny | {"run.dir": str(tmp_path / "alone")}).path
    # A share of 0 leaves the labels, and a weight of almost nothing changes almost nothing.
    assert losses(taught("none", **{"distill.share": 0.0, "distill.features": 1e-9})) == pytest.approx(
        losses(alone), rel=1e-4
    )
    assert losses(taught("all", **{"distill.share": 1.0})) != pytest.approx(losses(alone), rel=1e-2)


def test_answers_that_are_looked_up_are_those_that_the_teacher_gives(taught, final_state):
    asked, cached = taught("asked", **PLAIN), taught("cached", **PLAIN, **{"distill.cache": True})
    assert_same_state(final_state(cached), final_state(asked), rtol=1e-4, atol=1e-5)


@pytest.mark.system
def test_a_stopped_student_goes_on_to_the_same_bits(taught, final_state, stop_after):
    whole = taught("whole")
    stop_after(5)
    with pytest.raises(pcls.RestartRequested):
        taught("parted")
    stop_after(0)
    parted = pcls.resume(whole.parent / "parted").path
    assert_same_state(final_state(parted), final_state(whole))
    assert pcls.replay(parted, 7).diagnosis.first_bad == ""


@pytest.mark.system
@pytest.mark.parametrize(
    "settings", [{"data.on_device": True}, {"train.steps_per_dispatch": 2}, {"train.accumulate": 2}], ids=str
)
def test_how_steps_are_fed_changes_nothing(taught, final_state, settings):
    assert_same_state(final_state(taught("other", **settings)), final_state(taught("plain")), rtol=1e-3, atol=1e-5)


def test_what_is_not_asked_for_costs_nothing(taught, finished_run):
    folder = RunFolder(taught())
    setup = with_teacher(prepare(folder.recipe(), saved_preprocessing(folder)))
    assert len(setup.given) == 1
    # Evaluation needs no teacher, and none is opened for it.
    assert prepare(folder.recipe(), saved_preprocessing(folder)).given == ()


# What cannot be


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"distill.teacher": "nowhere"}, "nowhere: is neither a run's folder"),
        ({"distill.cache": True}, "distill.cache is for runs that see a record the same in each epoch, and augment"),
        (
            {"distill.cache": True, "distill.features": 1.0},
            "keeps answers, and distill.features asks the teacher at each step",
        ),
        (
            {"distill.teacher": "nowhere"},
            "distill.teacher nowhere: is neither a run's folder (recipe.yaml) nor a bundle (model.json), nor a name of "
            "pcls models search; relative paths start in the working directory",
        ),
        ({"distill.share": 0.0}, "distill.share is 0 (number), and so is distill.features: the teacher has no effect"),
        ({"distill.teacher": "", "distill.share": 0.3}, "distill.share has no effect without distill.teacher"),
        (
            {"distill.temperature": 0.0},
            "distill.temperature is 0.0 (number); a finite number > 0 and <= 1000 is needed",
        ),
    ],
)
def test_a_teacher_that_cannot_be_is_refused_before_anything_is_written(
    tiny, tmp_path, finished_run, settings, told, capsys
):
    path = tmp_path / "run"
    overrides = tiny | {"distill.teacher": str(finished_run), "run.dir": str(path)} | settings
    assert main(["train", "digits_rnn", *(f"{key}={value}" for key, value in overrides.items())]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"class_names": tuple("9876543210")}, "tells other classes, or in another order ('9' there, '0' here)"),
        (
            {"class_names": (*tuple("0123456789"), "ten")},
            "tells other classes, or in another order (11 there, 10 here)",
        ),
        ({"preprocessing": {"channels": 2}}, "sees 2 channels, and the images have 1"),
        ({"preprocessing": {"sequence": SequenceFeatures("values")}}, "sees sequences, and the data are images"),
    ],
)
def test_a_teacher_of_something_else_is_refused(tiny, finished_run, monkeypatch, change, told):
    bundle = load_bundle(RunFolder(finished_run).bundle)
    if "preprocessing" in change:
        change = {"preprocessing": replace(bundle.preprocessing, **change["preprocessing"])}
    monkeypatch.setattr(teachers, "open_bundle", lambda path: replace(bundle, **change))
    setup = prepare(load_recipe("digits_rnn", tiny | {"distill.teacher": "some"}))
    with pytest.raises(pcls.UserError) as error:
        with_teacher(setup)
    assert str(error.value).startswith(f"distill.teacher some: {told}")


def test_seeds_with_a_teacher_are_trained_one_after_another(tiny, tmp_path, finished_run, capsys):
    overrides = tiny | {
        "distill.teacher": str(finished_run),
        "run.dir": str(tmp_path / "run"),
        "train.duration": "2 steps",
    }
    found = pcls.train_seeds("digits_rnn", overrides, seeds=2)
    assert len(found.runs) == 2
    assert "2 seeds one after another: they have a teacher" in capsys.readouterr().err
