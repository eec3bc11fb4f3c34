import json
from dataclasses import replace

import numpy as np
import pytest

from pcls.evaluation.calibration import fit
from pcls.evaluation.count import confusion_counts
from pcls.evaluation.metrics import Evaluation, by_lists, by_value
from pcls.evaluation.paired import compare
from pcls.evaluation.quality import quality, scores
from pcls.evaluation.text import (
    comparison_json,
    comparison_text,
    evaluation_json,
    evaluation_text,
    fit_json,
    fit_text,
)

NAMES = ("ant", "bee", "cat\n\x1b[31m", "a name that is far too long for a column of a table")


@pytest.fixture(scope="module")
def answers():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    return (2 * rng.normal(size=(300, 4)) + 3 * np.eye(4)[labels]).astype(np.float32), labels


@pytest.fixture(scope="module")
def evaluation(answers):
    logits, labels = answers
    predicted = logits.argmax(1)
    return Evaluation(
        n=300,
        undecodable=2,
        loss=0.5,
        top1=float(np.mean(predicted == labels)),
        top5=1.0,
        confusion=confusion_counts(labels, predicted, 4),
        class_names=NAMES,
        quality=quality(scores(logits, labels)),
        train_counts=(500, 101, 50, 3),
        column="site",
        subsets=by_value(["", "north", "south"] * 100, labels, predicted),
        listed=by_lists([frozenset({0, 1})] * 290 + [frozenset()] * 10, predicted),
        notices=("half of them were seen",),
    )


def row(text, first):
    """The words of the line that begins with one."""
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [first]]
    return line.split()


def test_the_text_has_the_numbers_of_the_evaluation(evaluation):
    text = evaluation_text(evaluation)
    assert row(text, "n") == ["n", "300"]
    assert float(row(text, "top1")[1]) == pytest.approx(evaluation.top1, abs=5e-5)
    assert float(row(text, "ECE")[1]) == pytest.approx(evaluation.quality.ece, abs=5e-5)
    assert row(text, "calibrated")[1:] == ["no;", "pcls", "calibrate", "RUN", "does", "it"]
    assert "top5" not in text
    assert row(evaluation_text(replace(evaluation, calibration="temperature 2")), "NLL")[2:4] == [
        "after",
        "calibration;",
    ]
    assert row(text, "many-shot")[2] == "2"
    assert row(text, "few-shot")[2:4] == ["1", "classes"]
    assert row(text, "(empty)")[1] == "100"
    assert row(text, "bee")[1] == str(evaluation.confusion[1].sum())
    assert "of 290 records with a right answer; 10 have none" in text
    assert text.splitlines()[-1] == "half of them were seen"


def test_no_name_breaks_a_line_or_reaches_the_terminal_raw(evaluation):
    text = evaluation_text(evaluation)
    assert r"cat\n\x1b[31m" in text
    assert "\x1b" not in text
    assert "a name that is far too long..." in text


def test_what_is_not_known_is_not_there(evaluation):
    bare = replace(evaluation, quality=None, train_counts=(), subsets=(), listed=None, notices=())
    text = evaluation_text(bare)
    for word in ("ECE", "calibrated", "shot", "site", "listed"):
        assert word not in text


def test_of_many_classes_the_worst_are_shown():
    confusion = np.diag([10] * 30)
    confusion[7] = confusion[9] = 1
    names = tuple(f"class{number}" for number in range(30))
    text = evaluation_text(Evaluation(300, 0, 0.1, 0.9, 1.0, confusion, names))
    shown = [line.split()[0] for line in text.splitlines() if line.startswith("class")]
    assert shown[:3] == ["class", "class7", "class9"]
    assert len(shown) == 21
    assert text.splitlines()[-1] == "the 20 worst of 30 classes; --json has all"


def test_the_json_has_everything_and_can_be_read_back(evaluation):
    found = json.loads(json.dumps(evaluation_json(evaluation), allow_nan=False))
    assert found["top1"] == evaluation.top1
    assert found["top1_interval"][0] < evaluation.top1 < found["top1_interval"][1]
    assert [own["name"] for own in found["classes"]] == list(NAMES)
    assert found["classes"][1]["f1_interval"][0] < found["classes"][1]["f1"]
    assert found["averages"]["micro"] == pytest.approx(evaluation.top1)
    assert found["averages"]["macro_f1"] == found["macro_f1"]
    assert len(found["quality"]["bins"]) == 15
    assert found["shots"]["medium"]["n"] == evaluation.confusion[2].sum()
    assert [own["value"] for own in found["subsets"]] == ["", "north", "south"]
    assert found["listed"]["n"] == 290
    assert (found["calibration"], found["column"]) == (None, "site")


def test_an_evaluation_of_nothing_has_text_and_json():
    nothing = Evaluation(0, 3, 0.0, 0.0, 0.0, np.zeros((4, 4), np.int64), NAMES)
    assert row(evaluation_text(nothing), "undecodable") == ["undecodable", "3"]
    assert json.loads(json.dumps(evaluation_json(nothing)))["quality"] is None


def test_a_fit_is_a_table_of_before_and_after(answers):
    logits, labels = answers
    found = fit(4 * logits, labels, np.arange(300) < 150, "auto", 0)
    text = fit_text(found)
    assert f"calibration: temperature {1 / found.scaling[0][0]:.4g}; on 150 other records:" in text
    (line,) = [line.split() for line in text.splitlines() if line.startswith("NLL  ")]
    before, after = map(float, line[1:])
    assert before == pytest.approx(found.before.quality.nll, abs=5e-5)
    assert after == pytest.approx(found.after.quality.nll, abs=5e-5)
    values = json.loads(json.dumps(fit_json(found), allow_nan=False))
    assert values["temperature"] == 1 / values["scale"][0]
    assert values["candidates"].keys() == {"none", "temperature", "vector"}
    assert values["after"]["quality"]["ece"] == found.after.quality.ece


def test_a_comparison_says_who_is_better_and_where():
    labels = np.repeat([0, 1], 50)
    first, second = np.where(np.arange(100) < 60, labels, 1 - labels), np.where(np.arange(100) < 90, labels, 1 - labels)
    found = compare(labels, first, second, ("ant", "bee"))
    text = comparison_text(found, ("runs/a", "runs/b"))
    assert row(text, "A") == ["A", "0.6000", "0", "runs/a"]
    assert row(text, "McNemar")[-9:] == ["is", "better,", "by", "more", "than", "chance", "at", "5", "%"]
    assert row(text, "bee") == ["bee", "50", "0", "30"]
    assert "ant" not in text
    assert comparison_text(compare(labels, first, first, ("ant", "bee")), ("a", "b")).endswith("may be chance")
    assert json.loads(json.dumps(comparison_json(found, ("a", "b"))))["top1"] == [0.6, 0.9]
