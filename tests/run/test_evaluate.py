"""Evaluation beyond a run's own held-out records: calibrated, by columns, with other views, on other sets."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from sklearn.datasets import load_digits

import pcls
from pcls.cli import main
from pcls.config.load import with_overrides
from pcls.data.split import held_out
from pcls.errors import UserError
from pcls.evaluation.quality import scores
from pcls.pretrained.bundle import load_bundle, save_bundle
from pcls.run.calibrate import SEED, some_records
from pcls.run.evaluate import Evaluator, read_evaluation, saved_preprocessing
from pcls.run.folder import RunFolder
from pcls.run.setup import prepare


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture(scope="module")
def setup(finished_run):
    folder = RunFolder(finished_run)
    return prepare(folder.recipe(), saved_preprocessing(folder))


@pytest.fixture(scope="module")
def found(finished_run, setup):
    """The logits of the run's held-out records."""
    bundle = load_bundle(finished_run / "bundle")
    return Evaluator(setup).logits(dict(bundle.params), dict(bundle.stats))


def probabilities(path, images):
    return np.array([answer.probabilities for answer in pcls.load(path).predict(list(images))])


def pictures(setup, records):
    return setup.dataset.evaluation.read(np.asarray(records), setup.dataset.preprocessing, None).images


# The kept evaluation


def test_the_logits_are_those_that_the_kept_evaluation_is_of(finished_run, setup, found):
    evaluation, predictions = read_evaluation(RunFolder(finished_run))
    np.testing.assert_array_equal(found.records, np.arange(359))
    np.testing.assert_array_equal(found.labels, setup.dataset.evaluation.labels)
    np.testing.assert_array_equal(found.logits.argmax(1), predictions.predicted)
    own = scores(found.logits, found.labels)
    assert evaluation.quality.nll == pytest.approx(own.nll.mean(), rel=1e-5)
    assert evaluation.quality.brier == pytest.approx(own.brier.mean(), rel=1e-5)
    assert sum(part.count for part in evaluation.quality.bins) == 359


def test_the_kept_evaluation_comes_back_with_all_its_numbers(finished_run, setup):
    evaluation, _ = read_evaluation(RunFolder(finished_run))
    again = pcls.evaluate(finished_run)
    np.testing.assert_array_equal(again.confusion, evaluation.confusion)
    assert replace(again, confusion=None) == replace(evaluation, confusion=None)
    assert evaluation.train_counts == tuple(np.bincount(setup.dataset.train.labels))
    assert evaluation.calibration == ""


# Calibration


def test_a_temperature_is_fitted_to_one_half_and_measured_on_the_other(run, found):
    before = pcls.evaluate(run)
    done = pcls.calibrate(run, method="temperature")
    fitted = held_out(found.labels, 0.5, SEED)
    assert (done.fit.fitted, done.fit.measured) == (fitted.sum(), (~fitted).sum()) == (180, 179)
    own = scores(found.logits[~fitted], found.labels[~fitted])
    assert done.fit.before.quality.nll == pytest.approx(own.nll.mean(), rel=1e-6)
    # An undertrained network is not sure enough.
    assert done.fit.after.quality.nll < done.fit.before.quality.nll - 0.01
    after = pcls.evaluate(run)
    assert done.fit.after.top1 == done.fit.before.top1 == own.correct.mean()
    assert after.top1 == before.top1
    np.testing.assert_array_equal(after.confusion, before.confusion)
    assert after.loss == before.loss
    assert after.quality.nll < before.quality.nll
    assert after.calibration == str(done.calibration)
    assert "fitted to 180 held-out records" in after.calibration


def test_predictions_are_calibrated_and_no_answer_changes_by_a_temperature(run, setup, found):
    images = pictures(setup, range(64))
    plain = probabilities(run, images)
    done = pcls.calibrate(run, method="temperature")
    (scale,), calibrated = done.calibration.scale, probabilities(run, images)
    logits = found.logits[:64] * np.float32(scale)
    np.testing.assert_allclose(calibrated, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-3)
    np.testing.assert_array_equal(calibrated.argmax(1), plain.argmax(1))
    assert np.abs(calibrated - plain).max() > 0.01


def test_vector_scaling_is_kept_with_the_weights_and_can_be_taken_away(run, setup):
    images = pictures(setup, range(8))
    plain = probabilities(run, images)
    done = pcls.calibrate(run, method="vector")
    bundle = load_bundle(run / "bundle")
    assert bundle.calibration == done.calibration
    assert (len(bundle.calibration.scale), len(bundle.calibration.bias)) == (10, 10)
    assert np.abs(probabilities(run, images) - plain).max() > 0.01
    evaluation, predictions = read_evaluation(RunFolder(run))
    assert evaluation.calibration.startswith("scale and bias of each class")
    assert evaluation.top1 == np.mean(predictions.predicted == predictions.labels)
    removed = pcls.calibrate(run, method="none")
    assert removed.calibration is None
    # What is fitted to are the model's own logits, not calibrated ones.
    assert removed.fit.before == done.fit.before
    assert "calibration" not in json.loads((run / "bundle" / "model.json").read_text())
    np.testing.assert_array_equal(probabilities(run, images), plain)


def test_a_checkpoint_that_is_not_the_bundles_is_not_calibrated(run):
    pcls.calibrate(run, method="temperature")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"status": "running", "step": 8}))
    assert pcls.evaluate(run).calibration == ""


def test_the_verb_prints_what_changed_and_says_what_a_sigmoid_models_probabilities_are(run, capsys):
    folder = RunFolder(run)
    folder.create(with_overrides(folder.recipe(), {"train.loss": "sigmoid"}))
    assert main(["calibrate", str(run), "--method", "temperature", "--records", "100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("calibration: temperature ")
    assert lines[0].endswith("; on 50 other records:")
    assert lines[1].split() == ["before", "after"]
    table = {line.split("  ")[0]: line.split()[-2:] for line in lines[2:8]}
    assert table.keys() == {"top1", "NLL", "Brier", "ECE", "ECE, mass", "AURC"}
    assert float(table["NLL"][1]) < float(table["NLL"][0])
    assert table["top1"][0] == table["top1"][1]
    assert lines[8] == "the model was trained with sigmoid; its probabilities are the softmax of its logits"
    assert lines[9] == f"kept in the bundle: {load_bundle(run / 'bundle').calibration}"


def test_fewer_records_are_drawn_evenly_from_all_classes(setup):
    fewer = some_records(setup.dataset, 100).evaluation
    assert np.bincount(fewer.labels).tolist() == [10] * 10
    assert some_records(setup.dataset, 0) is some_records(setup.dataset, 400) is setup.dataset


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {"records": 10}, "10 held-out records are here, 0 in the smaller half; calibration fits to one half and"),
        ({}, {"method": "isotonic"}, "--method isotonic: allowed: auto, none, temperature, vector"),
        ({"status": "stopped"}, {}, "the run is not finished; there is nothing to calibrate before: pcls resume"),
    ],
)
def test_what_cannot_be_calibrated_is_told(run, change, arguments, message):
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | change))
    with pytest.raises(UserError) as caught:
        pcls.calibrate(run, **arguments)
    assert message in str(caught.value)
    assert load_bundle(run / "bundle").calibration is None


@pytest.mark.parametrize("verb", [pcls.calibrate, pcls.evaluate])
def test_a_folder_without_a_run_is_told(verb, tmp_path):
    with pytest.raises(UserError, match="there is no run in this folder"):
        verb(tmp_path)


# Other views


def test_other_views_are_averaged_and_the_kept_evaluation_stays(run):
    kept = (run / "evaluation.json").read_text()
    mirrored = pcls.evaluate(run, tta="mirror")
    # Mirrored digits are no digits.
    assert mirrored.n == 359
    assert mirrored.loss != read_evaluation(RunFolder(run))[0].loss
    assert pcls.evaluate(run, tta="none").loss == read_evaluation(RunFolder(run))[0].loss
    assert (run / "evaluation.json").read_text() == kept
    with pytest.raises(UserError, match=r"evaluate\.tta"):
        pcls.evaluate(run, tta="upside-down")


def test_a_calibration_says_that_it_was_made_for_one_view(run):
    pcls.calibrate(run, method="temperature")
    assert "without other views" in pcls.evaluate(run, tta="mirror").notices[0]
    assert pcls.evaluate(run).notices == ()


# Other sets


@pytest.fixture(scope="module")
def digits():
    """[1797, 8, 8] uint8 and their labels, as the run was trained with."""
    data = load_digits()
    return (data.images * 255 / 16).round().astype(np.uint8), data.target


def folders(root, images, labels, name):
    """A folder a class."""
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        path = root / name(label) / f"ILSVRC2012_val_{number + 1:08}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def test_the_digits_themselves_as_another_set_give_what_predictions_say(finished_run, digits):
    found = pcls.evaluate(finished_run, data="digits")
    assert (found.n, found.train_counts) == (1797, ())
    assert found.notices[0] == "evaluated on digits, all its records"
    assert "the model was trained on 1,438 records of a set of this name" in found.notices[1]
    answers = pcls.load(finished_run).predict(list(digits[0]))
    right = [int(answer.label) == label for answer, label in zip(answers, digits[1], strict=True)]
    assert found.top1 == np.mean(right)


def test_a_folder_of_some_classes_is_counted_exactly_and_told_of(finished_run, digits, tmp_path):
    images, labels = (array[:60] for array in digits)
    some = labels >= 4
    root = folders(tmp_path / "set", images[some], labels[some], str)
    found = pcls.evaluate(finished_run / "bundle", data=root)
    answers = pcls.load(finished_run).predict(sorted(root.glob("*/*.png")))
    right = [answer.label == answer.path.split("/")[-2] for answer in answers]
    assert found.n == some.sum() == len(right)
    assert found.top1 == np.mean(right)
    assert found.confusion[:4].sum() == 0
    assert "the set has 6 of the model's 10 classes; answers are free to name any of these" in found.notices


def test_the_evaluation_part_of_a_set_is_what_is_evaluated(finished_run, digits, tmp_path):
    images, labels = digits
    folders(tmp_path / "set" / "train", images[:40], labels[:40], str)
    folders(tmp_path / "set" / "val", images[40:60], labels[40:60], str)
    found = pcls.evaluate(finished_run, data=tmp_path / "set")
    assert found.n == 20
    assert found.notices[0] == f"evaluated on {tmp_path / 'set'}, its evaluation part"


@pytest.fixture
def named(run):
    """The run with classes of other names."""
    bundle = load_bundle(run / "bundle")
    save_bundle(replace(bundle, class_names=tuple(f"n{9 - number}" for number in range(10))), run / "bundle")
    return run


def test_folders_of_numbers_and_of_synsets_are_the_same_classes(named, digits, tmp_path):
    images, labels = (array[:60] for array in digits)
    numbers = folders(tmp_path / "numbers", images, labels, str)
    synsets = folders(tmp_path / "synsets", images, labels, lambda label: f"n{9 - label}")
    one, other = (pcls.evaluate(named, data=root) for root in (numbers, synsets))
    assert one.n == other.n == 60
    assert 0.3 < one.top1 == other.top1
    np.testing.assert_array_equal(one.confusion, other.confusion)
    assert "the set's classes are numbers: they are taken for the places of the model's 10 outputs" in one.notices
    assert "matched by name" in other.notices[1]


def test_lists_of_right_answers_count_what_is_in_them(finished_run, digits, tmp_path):
    images, labels = (array[:40] for array in digits)
    root = folders(tmp_path / "set", images, labels, str)
    # Each image's own label and the next; the last ten have none.
    lists = [[int(label), (int(label) + 1) % 10] for label in labels[:30]] + [[]] * 10
    (tmp_path / "real.json").write_text(json.dumps(lists))
    found = pcls.evaluate(finished_run, data=root, labels=tmp_path / "real.json")
    answers = {a.path[-12:-4]: int(a.label) for a in pcls.load(finished_run).predict(sorted(root.glob("*/*.png")))}
    right = [answers[f"{number + 1:08}"] in lists[number] for number in range(30)]
    assert (found.n, found.listed.n, found.listed.left_out) == (40, 30, 10)
    assert found.listed.top1 == np.mean(right)


def empty(tmp_path):
    (tmp_path / "set" / "0").mkdir(parents=True)


def empty_part(tmp_path):
    (tmp_path / "set" / "val" / "five").mkdir(parents=True)
    (tmp_path / "set" / "train" / "five").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "set" / "train" / "five" / "1.png")


def of_other_case(tmp_path):
    for name in ("Five", "four"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "set" / name / "1.png")


def of_sequences(tmp_path):
    np.savez(tmp_path / "set.npz", values=np.zeros((6, 2)), lengths=np.array([2, 4]), labels=np.array([0, 1]))


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (empty, "set", "no .jpg, .jpeg, .png, .webp files in folders below it"),
        (empty_part, "set", "set: its evaluation part: empty; there is nothing to evaluate"),
        (of_other_case, "set", "the set has the class 'Five', and the model 'five': they differ in case"),
        (of_sequences, "set.npz", "is for pictures, and the set is of sequences"),
        (lambda tmp_path: None, "nowhere", "there is no such file or folder of a known kind"),
    ],
)
def test_a_set_that_is_of_no_use_is_told(run, tmp_path, make, name, message):
    bundle = load_bundle(run / "bundle")
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    save_bundle(replace(bundle, class_names=names), run / "bundle")
    make(tmp_path)
    with pytest.raises(UserError) as caught:
        pcls.evaluate(run, data=tmp_path / name)
    assert message in str(caught.value)


def test_labels_without_another_set_and_an_unfinished_run_on_another_set_are_told(run):
    with pytest.raises(UserError, match="--labels is for the records of another set"):
        pcls.evaluate(run, labels="real.json")
    shutil.rmtree(run / "bundle")
    with pytest.raises(UserError, match="the run has no bundle, which is written when it is finished"):
        pcls.evaluate(run, data="digits")


# By the values of a column


@pytest.fixture
def manifest(digits, tmp_path):
    """60 digits with a column that names a device."""
    images, labels = digits
    rows = ["path,label,device,split"]
    for number in range(60):
        Image.fromarray(images[number]).save(tmp_path / f"{number}.png")
        rows.append(
            f"./{number}.png,{labels[number]},{['old', 'new', ''][number % 3]},{'train' if number < 20 else 'test'}"
        )
    (tmp_path / "set.csv").write_text("\n".join(rows))
    return tmp_path / "set.csv"


def test_records_of_a_manifest_are_parted_by_a_column(finished_run, manifest):
    found = pcls.evaluate(finished_run, data=manifest, by="device")
    assert (found.n, found.column) == (40, "device")
    assert [(own.value, own.n) for own in found.subsets] == [("", 14), ("new", 13), ("old", 13)]
    assert sum(own.hits for own in found.subsets) == np.trace(found.confusion)
    files = [manifest.parent / f"{number}.png" for number in range(20, 60) if number % 3 == 1]
    answers = pcls.load(finished_run).predict(files)
    labels = dict(line.split(",")[:2] for line in manifest.read_text().splitlines()[1:])
    right = [answer.label == labels[f"./{path.name}"] for answer, path in zip(answers, files, strict=True)]
    assert found.subsets[1].top1 == np.mean(right)


def test_a_column_that_is_not_there_is_told_with_those_that_are(finished_run, manifest):
    with pytest.raises(UserError, match=r"set\.csv: no column 'camera'; it has: path, label, device, split"):
        pcls.evaluate(finished_run, data=manifest, by="camera")
    with pytest.raises(UserError, match=r"--by device: is for manifests .*, and this is data\.source=digits"):
        pcls.evaluate(finished_run, by="device")


def test_a_run_of_a_manifest_is_parted_by_a_column_of_it(run, digits, tmp_path):
    images, labels = digits
    for number in range(80):
        Image.fromarray(images[number]).save(tmp_path / f"{number}.png")
    values = {
        "path": [f"{number}.png" for number in range(80)],
        "label": labels[:80],
        "site": pa.array([None if number % 7 == 0 else number % 2 for number in range(80)]),
    }
    parquet.write_table(pa.table(values), tmp_path / "set.parquet")
    folder = RunFolder(run)
    data = {"data.source": "manifest", "data.path": str(tmp_path / "set.parquet"), "data.image_size": 10}
    folder.create(with_overrides(folder.recipe(), data))
    (run / "data.json").unlink()
    found = pcls.evaluate(run, by="site")
    held = prepare(folder.recipe(), saved_preprocessing(folder)).dataset.evaluation
    numbers = [int(held.name(record).rpartition("/")[2][:-4]) for record in range(len(held))]
    expected = ["" if number % 7 == 0 else str(number % 2) for number in numbers]
    assert {own.value: own.n for own in found.subsets} == {value: expected.count(value) for value in set(expected)}
    assert sum(own.hits for own in found.subsets) == np.trace(found.confusion)
    # What is kept is the evaluation of all.
    assert read_evaluation(folder)[0].subsets == ()


@pytest.mark.parametrize("text", ["{}", "[]", '{"height": "x"}', '{"height": 1e999}', "{"])
def test_damaged_preprocessing_is_one_line_that_names_the_file(text, tmp_path, finished_run, capsys):
    path = shutil.copytree(finished_run, tmp_path / "run")
    (path / "preprocessing.json").write_text(text)
    assert main(["eval", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pcls: {path / 'preprocessing.json'}: ") and error.count("\n") == 1
