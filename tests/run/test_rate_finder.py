"""The range test on a recipe's data: on eight devices as on one, from given weights, and without a trace."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import pcls
from pcls.cli import main
from pcls.parallel.mesh import make_mesh
from pcls.run import rate_finder
from pcls.run.rate_finder import curve_text, write_picture

STEPS = 12


@pytest.fixture
def settings(tiny) -> dict[str, object]:
    return tiny | {"train.ema_decay": 0.0}


@pytest.fixture(scope="module")
def found(tiny):
    return pcls.find_rate("digits_cnn", tiny | {"train.ema_decay": 0.0}, steps=STEPS, lowest=1e-4, highest=1)


def digests(run: Path) -> dict[str, str]:
    """Of the weights and the predictions."""
    files = ("bundle/model.safetensors", "evaluation.json")
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in files}


def test_the_curve_falls_and_both_suggestions_lie_within(found):
    assert len(found.rates) == len(found.losses) == len(found.smooth) <= STEPS
    assert found.smooth.min() < found.smooth[0]
    assert 1e-4 <= found.valley <= 1
    assert 1e-4 <= found.steepest <= 1


@pytest.mark.system
def test_one_device_finds_the_same_losses_as_eight(settings, found, monkeypatch):
    one = jax.devices()[:1]
    monkeypatch.setattr("pcls.training.program.make_mesh", lambda *axes: make_mesh(*axes[:3], one))
    alone = pcls.find_rate("digits_cnn", settings, steps=STEPS, lowest=1e-4, highest=1)
    few = slice(0, 6)
    np.testing.assert_allclose(alone.losses[few], found.losses[few], rtol=1e-4)


def test_a_run_after_it_is_the_same_to_the_bit_and_nothing_is_written(tiny, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pcls.find_rate("digits_cnn", tiny, steps=STEPS, lowest=1e-4, highest=1)
    assert list(tmp_path.iterdir()) == []
    run = pcls.train("digits_cnn", tiny | {"run.dir": str(tmp_path / "run")})
    assert digests(run.path) == digests(finished_run)


def test_it_starts_from_the_weights_that_the_recipe_names(settings, found, finished_run):
    started = pcls.find_rate(
        "digits_cnn", settings | {"model.init": str(finished_run)}, steps=STEPS, lowest=1e-6, highest=1e-5
    )
    # At such rates nothing is learned: these are the losses of the weights as they came.
    assert started.losses.max() < found.losses[0]


def test_a_rate_a_256_images_is_suggested_as_the_recipe_counts_it(settings, found):
    of_256 = pcls.find_rate(
        "digits_cnn", settings | {"optimizer.lr_per_256": True}, steps=STEPS, lowest=1e-4 * 8, highest=8
    )
    # Batches of 32: an eighth of the rate is taken.
    np.testing.assert_allclose(of_256.losses, found.losses[: len(of_256.losses)], rtol=1e-5)
    np.testing.assert_allclose(of_256.rates, 8 * found.rates[: len(of_256.rates)])


def test_a_schedule_that_the_short_test_has_no_room_for_is_left_out(settings):
    schedule = {"optimizer.schedule": "one_cycle", "optimizer.warmup": "5 steps", "train.duration": "8 steps"}
    assert len(pcls.find_rate("digits_cnn", settings | schedule, steps=10, lowest=1e-4, highest=1e-2).rates) == 10


def test_what_is_frozen_at_the_start_stays_so(settings):
    frozen = settings | {"optimizer.freeze": [{"match": "^conv", "until": "4 steps"}], "train.duration": "8 steps"}
    found = pcls.find_rate("digits_cnn", frozen, steps=10, lowest=1e-4, highest=1e-2)
    never = settings | {"optimizer.freeze": [{"match": "^conv"}]}
    np.testing.assert_array_equal(
        found.losses, pcls.find_rate("digits_cnn", never, steps=10, lowest=1e-4, highest=1e-2).losses
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "3"], "--steps is 3; 10 or more are needed"),
        (["--from", "1", "--to", "0.1"], "--from 1 --to 0.1: two rates are needed, 0 < from < to"),
        (["--from", "nan"], "--from nan --to 10: two rates are needed"),
        (["--to", "inf"], "two rates are needed"),
        (["--out", "lr.jpg"], "--out lr.jpg: the name must end in .png, .svg, .html"),
        (["optimizer.lrr=1"], "unknown key 'optimizer.lrr'; the nearest is 'optimizer.lr'"),
    ],
)
def test_bad_arguments_are_told_in_one_line(arguments, message, capsys):
    assert main(["lr", "digits_cnn", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_text_names_both_suggestions_beside_a_chart(found):
    text = curve_text(found)
    assert f"valley      {found.valley:.2e}" in text
    assert f"steepest    {found.steepest:.2e}" in text
    chart = [line for line in text.splitlines() if "|" in line]
    assert len(chart) == rate_finder.ROWS
    assert sum(line.count("v") for line in chart) + sum(line.count("s") for line in chart) >= 1


def test_pictures_are_drawn_by_their_ending(found, tmp_path):
    for name in ("lr.png", "deep/lr.svg", "lr.html"):
        write_picture(found, tmp_path / name)
    with Image.open(tmp_path / "lr.png", formats=("PNG",)) as image:
        assert image.size == (rate_finder.WIDTH, rate_finder.HEIGHT)
        assert len(image.getcolors(1 << 16)) > 3
    svg = (tmp_path / "deep" / "lr.svg").read_text()
    assert svg.startswith("<svg ")
    assert f"valley {found.valley:.2e}" in svg
    assert svg in (tmp_path / "lr.html").read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(pcls.UserError, match=r"--out .*: cannot be written"):
        write_picture(found, tmp_path / "file" / "lr.svg")


def test_the_verb_prints_json_for_scripts(settings, capsys, monkeypatch, found):
    monkeypatch.setattr(pcls, "find_rate", lambda *arguments, **options: found)
    assert main(["lr", "digits_cnn", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["valley"] == found.valley
    assert printed["losses"] == found.losses.tolist()
