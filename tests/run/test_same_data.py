"""A run whose data have changed under it: told, not evaluated as if nothing were."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import pcls
from pcls.cli import main
from pcls.run.folder import RunFolder

CLASSES = {"cat": 40, "dog": 120, "flower": 200}


def write(folder, name, values):
    (folder / name).mkdir(parents=True, exist_ok=True)
    for number, value in enumerate(values):
        Image.fromarray(np.full((10, 10), value + number, np.uint8)).save(folder / name / f"{number:03}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of two steps, and the 30 pictures that it was trained on."""
    place = tmp_path_factory.mktemp("trained")
    for name, value in CLASSES.items():
        write(place / "photos", name, [value] * 10)
    pcls.train(
        "digits_cnn",
        {
            "data.source": "folder",
            "data.path": str(place / "photos"),
            "data.image_size": 10,
            "augment.shift": 0,
            "train.duration": "2 steps",
            "train.batch_size": 8,
            "run.dir": str(place / "run"),
        },
    )
    return place


@pytest.fixture
def place(trained, tmp_path):
    """A copy, to be changed. The run names the pictures beside it: they lie elsewhere than when it began."""
    shutil.copytree(trained, tmp_path / "copy")
    folder = RunFolder(tmp_path / "copy" / "run")
    text = folder.recipe_file.read_text().replace(str(trained), str(tmp_path / "copy"))
    folder.recipe_file.write_text(text)
    return tmp_path / "copy"


def refusal(capsys, *argv):
    assert main([str(word) for word in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pcls: ") and error.count("\n") == 1
    return error


def test_a_run_keeps_what_its_data_were(trained):
    kept = json.loads((trained / "run" / "data.json").read_text())
    assert kept["class_names"] == list(CLASSES)
    assert (kept["records"], kept["held_out"]) == (24, 6)


def test_data_that_lie_elsewhere_are_the_same(place):
    assert pcls.evaluate(place / "run").n == 6


@pytest.mark.parametrize("verb", ["eval", "report", "resume", "calibrate"])
def test_a_renamed_class_is_refused(verb, place, capsys):
    (place / "photos" / "cat").rename(place / "photos" / "zcat")
    error = refusal(capsys, verb, place / "run")
    assert "has 3 classes, and the run began with 3: class 0 is 'dog' and was 'cat'; give the classes" in error


def test_one_class_more_is_named(place, capsys):
    write(place / "photos", "zebra", [5] * 10)
    error = refusal(capsys, "eval", place / "run")
    assert "has 4 classes, and the run began with 3: class 3 is 'zebra' and was none" in error


def test_new_images_that_part_the_set_anew_are_refused(place, capsys):
    write(place / "photos", "cat", [60] * 20)
    for verb, way in (("eval", "pcls eval"), ("report", "pcls eval"), ("resume", "pcls finetune DATA --model")):
        error = refusal(capsys, verb, place / "run")
        assert "now has 32 training and 8 held-out images; it began with 24 and 6, and some that are held" in error
        assert f"{way} {place / 'run'}" in error


def test_as_many_images_under_other_names_are_refused(place, capsys):
    for file in (place / "photos" / "cat").iterdir():
        file.rename(file.with_name(f"new{file.name}"))
    assert "holds out other records than when the run began" in refusal(capsys, "eval", place / "run")


def test_who_names_other_data_goes_on_with_them_and_is_told(place, capsys):
    (place / "run" / "calibration.json").write_text('{"method": "temperature", "step": 2}')
    (place / "run" / "bundle_int8").mkdir()
    pcls.resume(place / "run", {"data.validation": 0.3, "train.duration": "3 steps"})
    told = capsys.readouterr().err
    assert f"the calibration was of the weights of step 2: pcls calibrate {place / 'run'} again" in told
    assert f"bundle_int8: of the weights before; make them again by: pcls compress {place / 'run'}" in told
    assert "now has 21 training and 9 held-out images; it began with 24 and 6" in told
    assert pcls.evaluate(place / "run").n == 9


def test_a_run_of_an_older_version_has_nothing_to_compare_with(place):
    (place / "run" / "data.json").unlink()
    write(place / "photos", "cat", [60] * 20)
    assert pcls.evaluate(place / "run").n == 8
