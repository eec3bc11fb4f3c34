"""Whether data is like what weights were trained on."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import pcls
from pcls.cli import main
from pcls.planning.limits import Limits
from pcls.transfer import similarity as module
from pcls.transfer.similarity import Similarity, probed_unasked, similarity, similarity_line

FAST = Limits("a device", "float32", 1e15, 1e13, 16 * 2**30, "made up")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of 64 pixels, bright and dark ones."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, level in (("bright", 180), ("dark", 70)):
        (folder / name).mkdir()
        for number in range(20):
            pixels = rng.normal(level, 20, (64, 64)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_a_sample_of_data_that_the_features_know_is_classified_far_above_chance(finished_run, monkeypatch):
    monkeypatch.setattr(module, "FITTED", 200)
    monkeypatch.setattr(module, "HELD_OUT", 100)
    found = similarity(finished_run, "digits")
    assert found.held_out == 100
    assert 0.1 <= found.chance < 0.2
    assert found.linear > 0.7
    assert found.knn > 0.6


@pytest.mark.parametrize(
    ("linear", "meaning"),
    [
        (0.91, "its features fit, so few layers need to change"),
        (0.89, "its features fit in part: fine-tune all layers"),
        (0.71, "its features fit in part: fine-tune all layers"),
        (0.69, "its features hardly fit: fine-tune all layers, and compare with a run from scratch"),
    ],
)
def test_what_is_advised_follows_the_way_from_chance_to_certainty(linear, meaning):
    line = similarity_line(Similarity("some", linear, 0.5, 0.5, 100))
    assert line.value == f"{linear:.0%} linear probe, 50% nearest neighbours"
    assert line.reason == f"frozen some on 100 images held out of a sample, chance 50%; {meaning}"


def test_the_verb_tells_of_it_before_what_to_start_from(finished_run, photos, capsys):
    assert main(["advise", str(photos), "--device", "v6e", "--probe", str(finished_run)]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert names[:6] == ["data", "balance", "device", "similarity", "start", "model"]


def test_without_being_asked_nothing_is_probed_but_proposed_weights_of_the_cache(
    finished_run, photos, monkeypatch, tmp_path
):
    monkeypatch.setenv("PCLS_CACHE", str(tmp_path))
    monkeypatch.setattr("pcls.planning.limits.limits_of", lambda device: FAST)
    plain = pcls.advise(photos)
    assert plain.verb == "finetune"
    assert "similarity" not in [line.what for line in plain.lines]
    assert list(tmp_path.iterdir()) == []
    # As if they had been imported before.
    shutil.copytree(finished_run / "bundle", tmp_path / "weights" / plain.source)
    told = pcls.advise(photos)
    (line,) = [line for line in told.lines if line.what == "similarity"]
    assert f"frozen {plain.source} on 8 images" in line.reason
    assert replace(told, lines=plain.lines) == plain
    # The time that limits of another device promise is not that of a probe here.
    assert "similarity" not in [line.what for line in pcls.advise(photos, device="v6e").lines]
    assert probed_unasked(plain, FAST) == plain.source
    assert probed_unasked(plain, replace(FAST, flops=1e9)) == ""


def test_weights_that_do_not_suit_the_data_are_told(finished_run, photos, capsys):
    assert main(["advise", str(photos), "--probe", str(photos)]) == 2
    assert "is neither a run's folder (recipe.yaml) nor a bundle" in capsys.readouterr().err
