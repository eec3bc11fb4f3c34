"""Fine-tuning as a user starts it: what is told before, what is run, and what is refused."""

import numpy as np
import pytest

import pcls
from pcls.pretrained.bundle import load_bundle
from pcls.transfer.finetune import fine_tuning, fine_tuning_text

NEW = {"data.classes": [5, 6, 7, 8, 9], "data.per_class": 16, "train.batch_size": 16}


def lines_of(model, overrides=(), **options):
    tuning = fine_tuning("digits", model, overrides, **options)
    lines = fine_tuning_text(tuning, "digits", model).splitlines()
    return tuning.recipe, dict(line.split(maxsplit=1) for line in lines)


def test_five_lines_say_what_is_going_to_happen(finished_run):
    _, lines = lines_of(finished_run, NEW)
    assert list(lines) == ["data", "model", "plan", "rates", "time"]
    assert lines["data"] == "80 images of 5 classes in digits, 16 to 16 a class; 816 held out"
    head = "a new head: the 5 classes are not the 10 of the weights"
    assert lines["model"] == f"{finished_run}: cnn28, 23,301 parameters, 10 x 10 x 1; {head}"
    assert lines["plan"] == "full: a small network; all its layers learn at once; 300 steps of 16"
    assert lines["rates"] == "head 0.001; top 0.00065; stem 0.00042"
    assert lines["time"].endswith("reading, compiling and evaluating come on top")


def test_a_head_that_is_kept_for_numbered_classes_is_doubted(finished_run):
    _, lines = lines_of(finished_run)
    assert lines["model"].endswith("its head, as the classes have the same names")
    assert lines["note"] == (
        "the classes are called by numbers only: if theirs mean something else, write transfer.head=new"
    )
    _, lines = lines_of(finished_run, {"transfer.head": "new"})
    assert lines["model"].endswith("a new head: as transfer.head says") and "note" not in lines


def test_what_learns_later_is_told_with_its_step(finished_run):
    recipe, lines = lines_of(finished_run, NEW | {"train.duration": "40 steps"}, recipe="gradual")
    assert lines["rates"] == "head 0.001; top 0.00065; stem 0.00042 from step 21"
    assert [(rule.match, str(rule.until)) for rule in recipe.optimizer.freeze] == [("^(conv1|conv2)/", "20 steps")]


def test_what_the_user_writes_holds(finished_run):
    recipe, _ = lines_of(finished_run, NEW | {"optimizer.lr_scale": [], "train.duration": "7 steps"})
    assert recipe.optimizer.lr_scale == ()
    assert str(recipe.train.duration) == "7 steps"


@pytest.fixture(scope="module")
def probed(finished_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("probed") / "run"
    return pcls.finetune("digits", finished_run, NEW | {"run.dir": str(path)}, recipe="probe")


def test_a_probe_is_a_whole_run_of_no_steps(probed, finished_run):
    assert probed.evaluation.n == 816
    # Far above the 20 % of chance.
    assert probed.evaluation.top1 > 0.5
    found, base = load_bundle(probed.path / "bundle").params, load_bundle(finished_run / "bundle").params
    for name in base:
        assert np.array_equal(found[name], base[name]) is not name.startswith("head/"), name
    assert pcls.evaluate(probed).summary() == probed.evaluation.summary()
    assert pcls.report(probed).is_file()
    with pytest.raises(pcls.UserError, match="is finished, 0 of 0 steps"):
        pcls.resume(probed)


@pytest.mark.parametrize(
    ("overrides", "options", "words"),
    [
        ({}, {"recipe": "half"}, "--recipe half: there is no such recipe; choose auto, probe, gradual, full, scratch"),
        ({"transfer.skip": ["^haed/"]}, {"recipe": "full"}, "transfer.skip: '^haed/' matches no path"),
        ({"optimizer.freeze": [{"match": "."}]}, {"recipe": "full"}, "optimizer.freeze keeps every parameter"),
        ({"model.init": ""}, {"recipe": "full"}, "has no effect without model.init"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(finished_run, tmp_path, overrides, options, words):
    settings = NEW | overrides | {"run.dir": str(tmp_path / "run")}
    with pytest.raises(pcls.UserError) as raised:
        pcls.finetune("digits", finished_run, settings, **options)
    assert words in str(raised.value)
    assert not list(tmp_path.iterdir())
