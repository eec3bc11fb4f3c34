"""A run on records that carry several labels: two real digits side by side, both of which are to be named."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

import pcls
from pcls.cli import app
from pcls.evaluation.charts import percent
from pcls.evaluation.thresholds import probabilities
from pcls.observe.sinks import read_metrics
from pcls.pretrained.bundle import load_bundle
from pcls.run.folder import RunFolder
from pcls.run.report import run_report
from pcls.transfer.finetune import fine_tuning
from pcls.transfer.recipes import choose
from pcls.transfer.start import adapted_weights

TINY = {
    "data.source": "arrays",
    "data.labels": "several",
    "train.loss": "sigmoid",
    "augment.shift": 0,
    "train.duration": "20 steps",
    "train.batch_size": 32,
    "evaluate.every": "10 steps",
    "checkpoint.every": "10 steps",
    "checkpoint.keep": 3,
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """240 training and 97 held-out pictures of two digits, 16 x 16; the first 20 held-out ones are black."""
    digits, rng = load_digits(), np.random.default_rng(0)
    left, right = rng.permutation(1797)[:337], rng.permutation(1797)[:337]
    images = np.zeros((337, 16, 16))
    images[:, 4:12, :8], images[:, 4:12, 8:] = digits.images[left] * (255 / 16), digits.images[right] * (255 / 16)
    labels = np.zeros((337, 10), np.uint8)
    labels[np.arange(337), digits.target[left]] = labels[np.arange(337), digits.target[right]] = 1
    images[240:260], labels[240:260] = 0, 0
    path = tmp_path_factory.mktemp("pairs") / "pairs.npz"
    images = images.round().astype(np.uint8)
    np.savez(path, images=images[:240], labels=labels[:240], eval_images=images[240:], eval_labels=labels[240:])
    return path


@pytest.fixture(scope="module")
def finished(pairs, tmp_path_factory):
    settings = TINY | {"data.path": str(pairs), "run.dir": str(tmp_path_factory.mktemp("several") / "run")}
    return pcls.train("digits_rnn", settings)


def arrays(finished):
    with np.load(finished.path / "predictions.npz") as kept:
        return dict(kept)


def test_the_run_counts_every_held_out_record_and_its_map_is_scikit_learns(finished, pairs):
    kept = arrays(finished)
    with np.load(pairs) as saved:
        np.testing.assert_array_equal(kept["targets"], saved["eval_labels"])
    assert finished.evaluation.n == 97
    expected = average_precision_score(kept["targets"], kept["logits"], average="macro")
    assert finished.evaluation.score == pytest.approx(expected)
    rows = [row for row in read_metrics(finished.path) if row["kind"] == "eval"]
    assert [row["step"] for row in rows] == [10, 20]
    assert rows[-1]["map"] == pytest.approx(expected)
    assert json.loads((finished.path / "evaluation.json").read_text())["map"] == pytest.approx(expected)


def test_the_best_of_the_run_goes_by_map(finished, final_state):
    scores = [row["map"] for row in read_metrics(finished.path) if row["kind"] == "eval"]
    assert float(final_state(finished.path)["best_top1"]) == pytest.approx(max(scores))


def test_it_is_evaluated_again_alike_to_the_last_digit(finished, tmp_path):
    path = shutil.copytree(finished.path, tmp_path / "run")
    written = (path / "evaluation.json").read_text()
    assert pcls.evaluate(path).summary() == finished.evaluation.summary()
    assert (path / "evaluation.json").read_text() == written


def test_a_prediction_gives_the_labels_that_reach_the_thresholds_of_the_bundle(finished, pairs):
    thresholds = load_bundle(finished.path / "bundle").thresholds
    assert thresholds == finished.evaluation.thresholds
    assert len(set(thresholds)) > 1
    classifier, kept = pcls.load(finished.path), arrays(finished)
    with np.load(pairs) as saved:
        images = saved["eval_images"][15:60]
    found = classifier.predict([*images, np.zeros((3, 3, 2), np.uint8)])
    expected = probabilities(kept["logits"][15:60])
    for answer, row in zip(found, expected, strict=False):
        np.testing.assert_allclose(answer.probabilities, row, rtol=1e-4)
        given = [classifier.class_names[label] for label in np.argsort(-row) if row[label] >= thresholds[label]]
        assert list(answer.labels) == given
        assert answer.label == classifier.class_names[int(row.argmax())]
    # Not all alike, and none of what could not be read.
    assert len({len(answer.labels) for answer in found}) > 2
    assert (found[-1].labels, bool(found[-1].error)) == ((), True)


def test_labels_are_printed_as_a_table_and_as_json(finished, pairs, tmp_path):
    from PIL import Image

    with np.load(pairs) as saved:
        for number in (0, 40):
            Image.fromarray(saved["eval_images"][number]).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / "0.png"), str(tmp_path / "40.png")]
    expected = pcls.load(finished.path).predict(files)
    done = CliRunner().invoke(app, ["predict", str(finished.path), *files, "--format", "jsonl"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [list(row["labels"]) for row in rows] == [list(answer.labels) for answer in expected]
    assert [row.keys() for row in rows] == [{"path", "labels", "error"}] * 2
    table = CliRunner().invoke(app, ["predict", str(finished.path), *files]).stdout.splitlines()
    for line, row in zip(table, rows, strict=True):
        shown = ", ".join(f"{name} {probability:.1%}" for name, probability in row["labels"].items())
        assert line == f"{row['path']:<{max(map(len, files))}}  {shown or 'no label'}"


def test_the_evaluation_is_printed_as_text_and_as_json(finished):
    text = CliRunner().invoke(app, ["eval", str(finished.path)]).stdout
    assert "records that the thresholds were not chosen on" in text
    assert f"map             {finished.evaluation.score:.4f}" in text
    found = json.loads(CliRunner().invoke(app, ["eval", str(finished.path), "--json"]).stdout)
    assert [row["threshold"] for row in found["labels"]] == list(finished.evaluation.thresholds)
    assert [row["trained"] for row in found["labels"]] == list(finished.evaluation.train_counts)


def refusal(function, *args, **kwargs):
    with pytest.raises(pcls.UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_for_one_label_a_record_is_refused(finished, pairs, tmp_path):
    said = "is for records of one label, and data.labels is several; see docs/multilabel.md"
    assert refusal(pcls.calibrate, finished) == f"pcls calibrate {said}"
    assert refusal(pcls.compare, finished, finished) == f"pcls compare {said}"
    other = shutil.copytree(finished.path, tmp_path / "other")
    assert refusal(pcls.report, finished, other) == f"pcls report of several runs {said}"
    done = CliRunner().invoke(app, ["data", "imbalance", str(pairs), "data.labels=several"])
    assert str(done.exception) == f"pcls data imbalance {said}"
    assert refusal(pcls.evaluate, finished, by="age") == f"--by age {said}"
    assert "this one gives several" in refusal(pcls.evaluate, finished, data="digits")
    several = {"data.labels": "several"}
    assert "features are fitted to one label a record" in refusal(pcls.probe, finished, pairs, several)
    softmax = TINY | {"data.path": str(pairs), "train.loss": "softmax"}
    assert "write train.loss=sigmoid or train.loss=asymmetric" in refusal(pcls.train, "digits_rnn", softmax)
    sweep = ["train.seed=0..1", *(f"{key}={value}" for key, value in (TINY | {"data.path": pairs}).items())]
    told = refusal(pcls.sweep, "digits_rnn", sweep, finished.path / "sweep", strategy="grid")
    assert told == "--metric top1: is not known with data.labels=several; write --metric map"


def test_the_report_has_rates_labels_and_the_largest_losses(finished, tmp_path):
    found = run_report(finished.path)
    rates, labels, losses = found.tables
    evaluation = pcls.evaluate(finished)
    assert [row[0] for row in rates.rows] == ["0.5 for all", "chosen for each"]
    assert rates.rows[0][2] == percent(evaluation.even.micro_f1)
    assert rates.note.startswith(f"mAP {percent(evaluation.score)} over {evaluation.n} records")
    by_name = {row[0]: row for row in labels.rows}
    assert by_name.keys() == set(evaluation.class_names)
    for row, average, support in zip(evaluation.rows, evaluation.precisions, evaluation.support, strict=True):
        assert by_name[row.name][2:5] == (f"{support:,}", percent(average), f"{row.threshold:.2f}")
    averages = [float(row[3].split("\N{NO-BREAK SPACE}")[0]) for row in labels.rows]
    assert averages == sorted(averages)
    shown = [float(row[1]) for row in losses.rows]
    assert shown == sorted(shown, reverse=True) and len(shown) > 10
    page = pcls.report(finished, out=tmp_path / "labels.html").read_text()
    assert "Mean average precision" in page and "Top losses" in page


def test_the_verbs_of_data_show_label_sets(pairs, tmp_path):
    words = [str(pairs), "data.labels=several"]
    info = CliRunner().invoke(app, ["data", "info", *words])
    assert info.exit_code == 0, info.output
    with np.load(pairs) as saved:
        assert f"{saved['labels'][:, 0].sum():>8,} to train on" in info.output
    for verb in (["show", "--out", str(tmp_path / "batch.png")], ["doctor"]):
        done = CliRunner().invoke(app, ["data", verb[0], *words, *verb[1:]])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "batch.png").is_file()


def test_weights_of_one_label_get_a_new_head_for_several_and_those_of_several_keep_theirs(
    finished, finished_run, pairs
):
    overrides = {"data.labels": "several", "train.loss": "asymmetric"}
    names = finished.evaluation.class_names

    def told(start, data, settings):
        tuning = fine_tuning(str(data), start, settings, recipe="full")
        return adapted_weights(tuning.bundle, tuning.bundle.definition(), names, tuning.recipe).told

    assert "the weights answer one label a record, and the data has several" in told(finished_run, pairs, overrides)
    assert "the weights answer several labels a record, and the data has one" in told(finished.path, "digits", {})
    assert "arrays taken over" in told(finished.path, pairs, overrides)
    assert "the weights answer" not in told(finished.path, pairs, overrides)


def test_fine_tuning_asks_for_each_label_by_itself_and_fits_no_head_alone(finished_run, pairs):
    several = fine_tuning(str(pairs), finished_run, {"data.labels": "several"})
    assert several.recipe.train.loss == "sigmoid"
    written = {"data.labels": "several", "train.loss": "asymmetric"}
    assert fine_tuning(str(pairs), finished_run, written).recipe.train.loss == "asymmetric"
    assert fine_tuning("digits", finished_run).recipe.train.loss == "softmax"
    assert choose(90, 10, has_stages=True)[0] == "probe"
    assert choose(90, 10, has_stages=True, head_alone=False)[0] == "gradual"


def test_several_seeds_on_a_set_that_lives_on_the_devices_train_as_one_run_does(finished, pairs, tmp_path):
    settings = TINY | {"data.path": str(pairs), "data.on_device": True, "run.dir": str(tmp_path / "run")}
    seeds = pcls.train_seeds("digits_rnn", settings, seeds=2, together=True)
    assert seeds.runs[0].evaluation.loss == pytest.approx(finished.evaluation.loss, rel=1e-4)
    assert str(seeds).startswith("mAP ")


@pytest.mark.system
def test_two_processes_evaluate_as_one_does(finished, pairs, tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    settings = TINY | {"data.path": str(pairs), "run.dir": str(tmp_path / "run")}
    meeting = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "pcls", *meeting, str(index), "train", "digits_rnn"]
            + [f"{key}={value}" for key, value in settings.items()],
            env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        told = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], told
    assert "labels right" in told[0] or "mAP" in told[0]
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["n"] == 97
    assert found["loss"] == pytest.approx(finished.evaluation.loss, rel=1e-4)
    assert found["map"] == pytest.approx(finished.evaluation.score, rel=1e-3)
    # The same weights in one process: to the last digit.
    written = (tmp_path / "run" / "evaluation.json").read_text()
    pcls.evaluate(tmp_path / "run")
    assert (tmp_path / "run" / "evaluation.json").read_text() == written
    assert RunFolder(tmp_path / "run").status()["status"] == "finished"
