import json
import shutil

import numpy as np
import pytest

import pcls
from pcls.cli import main
from pcls.errors import UserError
from pcls.evaluation.paired import mcnemar
from pcls.run.evaluate import PREDICTIONS, read_evaluation
from pcls.run.folder import RunFolder


@pytest.fixture
def other(finished_run, tmp_path):
    """The finished run, but that it is right about all of the class 3 and wrong about the first 30 records."""
    path = shutil.copytree(finished_run, tmp_path / "other")
    _, predictions = read_evaluation(RunFolder(path))
    predicted = np.where(predictions.labels == 3, 3, predictions.predicted)
    predicted[:30] = (predictions.labels[:30] + 1) % 10
    np.savez_compressed(path / PREDICTIONS, **vars(predictions) | {"predicted": predicted})
    return path


def test_two_runs_are_compared_record_by_record(finished_run, other):
    found = pcls.compare(finished_run, other)
    (_, one), (_, two) = (read_evaluation(RunFolder(path)) for path in (finished_run, other))
    first, second = one.predicted == one.labels, two.predicted == two.labels
    assert (found.n, found.only_first, found.only_second) == (359, (first & ~second).sum(), (second & ~first).sum())
    assert found.only_first > 0 < found.only_second
    assert found.difference == pytest.approx(second.mean() - first.mean())
    assert found.p == mcnemar(found.only_first, found.only_second)
    assert sum(row.n for row in found.classes) == 359
    back = pcls.compare(other, finished_run)
    assert (back.only_first, back.only_second, back.p) == (found.only_second, found.only_first, found.p)


def test_a_run_is_no_better_than_itself_even_if_its_evaluation_was_not_kept(finished_run, tmp_path):
    path = shutil.copytree(finished_run, tmp_path / "run")
    (path / "evaluation.json").unlink()
    found = pcls.compare(finished_run, path)
    assert (found.difference, found.p, found.only_first) == (0, 1, 0)
    assert (path / "evaluation.json").exists()


def test_the_verb_prints_a_table_and_json(finished_run, other, capsys):
    assert main(["compare", str(finished_run), str(other)]) == 0
    text = capsys.readouterr().out
    assert f"A    {pcls.compare(finished_run, other).first:>11.4f}" in text
    assert "McNemar  p = " in text
    assert text.splitlines()[-1].split()[0] in "0123456789"
    assert main(["compare", str(finished_run), str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == [str(finished_run), str(other)]
    assert found["n"] == 359
    assert len(found["classes"]) == 10


def refusal(*paths):
    with pytest.raises(UserError) as caught:
        pcls.compare(*paths)
    return str(caught.value)


def test_runs_on_other_records_are_refused(finished_run, tmp_path):
    path = shutil.copytree(finished_run, tmp_path / "run")
    recipe = (path / "recipe.yaml").read_text()
    assert "split_seed: 0" in recipe
    (path / "recipe.yaml").write_text(recipe.replace("split_seed: 0", "split_seed: 7"))
    (path / "data.json").unlink()
    told = refusal(finished_run, path)
    assert "were not evaluated on the same records (359 and 359, digits #" in told
    assert "data.split_seed" in told


def test_runs_with_other_classes_are_refused(finished_run, tmp_path):
    path = shutil.copytree(finished_run, tmp_path / "run")
    values = json.loads((path / "evaluation.json").read_text())
    values["class_names"][3] = "three"
    (path / "evaluation.json").write_text(json.dumps(values))
    assert "have other classes (10 and 10, 3 against three)" in refusal(finished_run, path)


def test_no_run_and_an_unfinished_one_are_refused(finished_run, tmp_path):
    assert "there is no run in this folder" in refusal(finished_run, tmp_path)
    path = shutil.copytree(finished_run, tmp_path / "run")
    (path / "status.json").write_text(json.dumps({"status": "stopped", "step": 4, "steps": 12}))
    assert f"{path}: the run is not finished; go on with: pcls resume {path}" in refusal(path, finished_run)
