"""The report of runs on disk: what their folders say, and what the models are asked."""

import json
import shutil

import jax
import numpy as np
import pytest

import pcls
from pcls.cli import main
from pcls.config.model import ModelSection
from pcls.data.preprocessing import Preprocessing, SequenceFeatures
from pcls.errors import UserError
from pcls.evaluation.count import Predictions
from pcls.evaluation.report import render
from pcls.models.registry import define_model
from pcls.run.evaluate import PREDICTIONS, read_evaluation, saved_preprocessing
from pcls.run.explain import Network, explain, method_text, reading
from pcls.run.folder import RunFolder
from pcls.run.report import default_path, plan_table, report_of, run_report
from pcls.run.setup import open_data
from pcls.run.shown import picture_of, upright


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture(scope="module")
def whole(finished_run):
    return run_report(finished_run)


@pytest.fixture(scope="module")
def digits(finished_run):
    folder = RunFolder(finished_run)
    return open_data(folder.recipe(), saved_preprocessing(folder))


def test_the_largest_losses_and_the_confident_doubts_are_shown(finished_run, whole, digits):
    _, found = read_evaluation(RunFolder(finished_run))
    worst = int(np.argmax(found.nll))
    assert whole.mistakes[0].record == digits.evaluation.name(int(found.records[worst]))
    assert whole.mistakes[0].label_probability == pytest.approx(np.exp(-found.nll[worst]))
    assert len(whole.mistakes) == 24
    assert 0 < len(whole.suspects) <= whole.suspects_found
    for suspect in whole.suspects:
        assert suspect.predicted != suspect.label
        assert suspect.probability > suspect.label_probability


def test_wrong_and_right_answers_are_explained(whole):
    assert "Integrated gradients" in whole.method
    wrong = [one for one in whole.explained if one.shown.label != one.shown.predicted]
    assert (len(wrong), len(whole.explained)) == (4, 8)
    for one in whole.explained:
        classes = list(dict.fromkeys((one.shown.predicted, one.shown.label)))
        assert [part.of for part in one.evidence] == classes
        assert one.evidence[0].picture.shape == (10, 10, 3)
        # In colour: something matters.
        assert np.ptp(one.evidence[0].picture.astype(int), axis=-1).max() > 50


def test_the_audit_counts_the_records_of_each_class(whole, digits):
    assert whole.audit.train == tuple(np.bincount(digits.train.labels, minlength=10))
    assert whole.audit.held_out == tuple(np.bincount(digits.evaluation.labels, minlength=10))
    assert whole.audit.quarantined is None
    assert whole.audit.notices == digits.notices


def test_a_run_whose_weights_are_gone_is_reported_without_explanations(run):
    shutil.rmtree(run / "bundle")
    shutil.rmtree(run / "checkpoints")
    report = run_report(run)
    assert report.explained == []
    assert 'id="explained"' not in render(report)


def test_a_run_that_is_not_finished_is_explained_by_its_checkpoint(run, whole):
    (run / "status.json").write_text(json.dumps({"status": "stopped", "step": 12, "steps": 24}))
    shutil.rmtree(run / "bundle")
    for from_checkpoint, from_bundle in zip(run_report(run).explained, whole.explained, strict=True):
        np.testing.assert_array_equal(from_checkpoint.evidence[0].picture, from_bundle.evidence[0].picture)


def test_a_run_without_an_evaluation_is_evaluated_first_and_one_without_weights_refused(run):
    (run / PREDICTIONS).unlink()
    assert run_report(run).evaluation.n == 359
    (run / PREDICTIONS).unlink()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint to evaluate"):
        run_report(run)


def test_predictions_of_an_older_version_are_made_anew(run):
    with np.load(run / PREDICTIONS) as file:
        old = {name: file[name] for name in file.files if name != "nll"}
    np.savez_compressed(run / PREDICTIONS, **old)
    assert len(run_report(run).mistakes) == 24


def test_the_calibration_is_shown_as_it_was_measured_and_forgotten_with_the_weights(run):
    done = pcls.calibrate(run, method="temperature")
    report = run_report(run)
    assert (report.fit.before, report.fit.after) == (done.fit.before.quality, done.fit.after.quality)
    assert report.fit.measured == done.fit.measured
    assert f"temperature {1 / done.calibration.scale[0]:.4g}" in render(report)
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"step": 11}))
    assert run_report(run).fit is None


class Slow:
    """A device on which everything takes a second an image, or two."""

    def training_seconds(self, images, forward_flops, activation_bytes):
        assert forward_flops > 1000 < activation_bytes
        return 1.0 * images, 2.0 * images


def test_the_plan_stands_beside_what_happened_and_says_where_it_cannot_be_true(finished_run, digits, whole):
    folder = RunFolder(finished_run)
    table = plan_table(folder, folder.recipe(), digits, whole.history, lambda name: Slow())
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["steps"] == ("12", "12")
    assert rows["images seen"] == ("384", "384")
    # One image a second at most, two seconds each at worst; a step has 32.
    assert rows["time of a step"][0] == "32\u00a0s to 64\u00a0s"
    assert "What happened is faster" in table.note
    plain = plan_table(folder, folder.recipe(), digits, whole.history, None)
    assert [row[0] for row in plain.rows] == ["steps", "images seen"]


def test_two_runs_are_laid_side_by_side_with_the_paired_test(finished_run, run, tmp_path):
    out = pcls.report(finished_run, run, out=tmp_path / "both.html")
    assert out == tmp_path / "both.html"
    assert "McNemar" in out.read_text(encoding="utf-8")
    shutil.move(run, tmp_path / "other")
    report = report_of([finished_run, tmp_path / "other"])
    numbers, paired, classes, settings = report.tables
    assert [row[0] for row in numbers.rows] == ["run", "other"]
    assert numbers.rows[0][1:] == numbers.rows[1][1:]
    # A run is no better than its copy.
    assert paired.rows == (("other", "359", "0", "0", "+0.00 (+0.00 to +0.00)", "1", "may be chance"),)
    assert (classes.rows, settings.rows) == ((), ())
    assert list(report.histories) == ["run", "other"]
    assert default_path([finished_run, run]) == finished_run / "comparison.html"


def test_runs_of_other_classes_are_compared_in_what_they_have_in_common(finished_run, tiny, tmp_path):
    few = {"data.classes": [0, 1, 2], "train.duration": "3 steps", "run.dir": str(tmp_path / "few")}
    pcls.train("digits_cnn", tiny | few)
    numbers, paired, classes, settings = report_of([finished_run, tmp_path / "few"]).tables
    assert [row[2] for row in numbers.rows] == ["10", "3"]
    assert paired.rows[0][:2] == ("few", "–")
    assert "have other classes (10 and 3" in paired.rows[0][-1]
    assert {row[0] for row in classes.rows} <= {"0", "1", "2"}
    assert classes.note == "Of 3 classes that all runs have; 7 are left out."
    assert ("data.classes", "", "0 1 2") in settings.rows


def test_a_run_that_is_named_twice_is_refused(finished_run, capsys):
    assert main(["report", str(finished_run), f"{finished_run}/../run"]) == 2
    assert "a run is named twice" in capsys.readouterr().err


def test_the_json_is_printed_or_written_and_says_what_was_measured(finished_run, run, tmp_path, capsys):
    assert main(["report", str(run), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    evaluation, _ = read_evaluation(RunFolder(finished_run))
    assert printed["evaluation"]["top1"] == evaluation.top1
    assert printed["data"]["train"] == list(evaluation.train_counts)
    assert len(printed["top_losses"]) == 24
    assert printed["labels_to_check"]["found"] >= 1
    assert printed["plan"][0] == {"": "steps", "plan": "12", "happened": "12"}
    assert main(["report", str(finished_run), str(run), "--json", "--out", str(tmp_path / "both.json")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "both.json")
    assert len(json.loads((tmp_path / "both.json").read_text())["histories"]) == 2
    assert not (run / "report.html").exists()


def a_network(name, size, **options):
    model = define_model(name, height=size, width=size, channels=1, classes=10, **options)
    return Network(model, *jax.device_get(model.init(jax.random.key(0))), "float32")


ANSWERS = Predictions(
    *(np.arange(6), np.array([0, 1, 2, 3, 4, 5]), np.array([0, 1, 2, 0, 0, 0])), np.full(6, 0.5), np.arange(6.0)
)


@pytest.mark.parametrize(
    ("name", "options", "method", "time"),
    [
        pytest.param("rglru2d_tiny", {}, "Grad-CAM", "", marks=pytest.mark.system),
        ("lru", {"read": "columns", "hidden": 4}, "one of the columns", "right"),
        ("gru", {"read": "patches", "patch": 5, "hidden": 4}, "at its place in the image", ""),
    ],
)
def test_each_kind_of_model_is_explained_in_its_own_way(name, options, method, time, digits):
    section = ModelSection(name=name, **options)
    explained, said = explain(a_network(name, 10, **options), section, digits, ANSWERS)
    assert method in said
    assert [one.shown.label for one in explained] == [5, 4, 3, 0, 1, 2]
    assert {one.time for one in explained} == {time}
    for one in explained:
        for part in one.evidence:
            assert len(part.steps) == (10 if time else 0)
            assert (part.picture is None) == bool(time)
    if name == "gru":
        # A patch is of one colour but for the grey of the picture below it.
        heat = explained[0].evidence[0].picture.astype(int)
        tint = heat[..., 2] - heat[..., 0]
        assert (tint[:5, :5] > 0).all() or (tint[:5, :5] < 0).all() or (tint[:5, :5] == 0).all()


def test_the_colours_of_a_sequence_lie_where_its_picture_has_the_steps():
    values = np.arange(6.0).reshape(3, 2)
    shown = Preprocessing(3, 2, 1, mean=(0.0, 0.0), std=(1.0, 1.0), sequence=SequenceFeatures("values"))
    picture = picture_of(values[..., None].astype(np.float32) / 3, 3, shown)[..., 0].astype(int)
    # Ascending in time, to the right; the second feature, the larger one, above.
    assert (np.diff(picture, axis=1) > 0).all()
    assert (picture[0] > picture[1]).all()
    assert (upright(values).argsort(axis=None) == picture.argsort(axis=None)).all()


def test_nothing_predicted_is_nothing_explained(digits):
    none = Predictions(*(np.zeros(0, np.int64),) * 3, *(np.zeros(0),) * 2)
    assert explain(a_network("rnn28", 10), ModelSection(name="rnn28"), digits, none) == ([], "")


def test_a_model_that_reads_rows_is_known_without_an_option():
    assert reading(ModelSection(name="irnn28")) == "rows"
    assert reading(ModelSection(name="cnn28")) is None
    assert "one of the rows" in method_text(ModelSection(name="rnn28"), "rows", sequences=False)
