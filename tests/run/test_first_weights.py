"""Where a model's first weights are computed from training images."""

import shutil

import jax
import numpy as np
import pytest

import pcls
from pcls.config import load_recipe
from pcls.pretrained.bundle import load_bundle
from pcls.run.first_weights import weights_from_images
from pcls.run.setup import prepare

SPEEDNET = ["model.name=speednet", "data.image_size=12", "model.widths=[4, 4, 4]", "train.seed=3"]


def test_the_stem_whitens_the_training_set_and_all_else_is_drawn_from_the_seed():
    setup = prepare(load_recipe("digits_cnn", SPEEDNET))
    weights = weights_from_images(setup.recipe, setup.model, setup.dataset)
    assert weights is not None
    params, stats = weights
    drawn = setup.initial_state()
    assert (params.keys(), stats.keys()) == (drawn.params.keys(), drawn.stats.keys())
    different = [path for path in params if not np.array_equal(params[path], drawn.params[path])]
    assert different == ["stem/kernel"]
    train = setup.dataset.train
    pixels = train.read(np.arange(len(train)), setup.preprocessing, None).images
    images = (pixels / 255 - setup.preprocessing.mean) / setup.preprocessing.std
    kernel = params["stem/kernel"][..., :4]
    outputs = sum(images[:, i : i + 11, j : j + 11] @ kernel[i, j] for i in range(2) for j in range(2)).reshape(-1, 4)
    np.testing.assert_allclose(outputs.T @ outputs / len(outputs), np.eye(4), atol=0.05)
    state = setup.initial_state(weights)
    np.testing.assert_array_equal(jax.device_get(state.params["stem/kernel"]), params["stem/kernel"])


def test_a_model_that_computes_nothing_from_images_leaves_all_to_the_seed():
    setup = prepare(load_recipe("digits_cnn"))
    assert weights_from_images(setup.recipe, setup.model, setup.dataset) is None


RUN = [*SPEEDNET, "train.duration=2 steps", "train.batch_size=32", "optimizer.freeze=[{match: ^stem/kernel$}]"]


@pytest.fixture
def path(tmp_path, stop_after):
    stop_after(1)
    with pytest.raises(pcls.RestartRequested):
        pcls.train("digits_cnn", [*RUN, f"run.dir={tmp_path / 'run'}"])
    stop_after(0)
    return tmp_path / "run"


def test_a_run_starts_from_them_and_a_frozen_stem_stays(path):
    setup = prepare(load_recipe("digits_cnn", RUN))
    expected, _ = weights_from_images(setup.recipe, setup.model, setup.dataset)
    pcls.resume(path)
    params = load_bundle(path / "bundle").params
    np.testing.assert_array_equal(params["stem/kernel"], expected["stem/kernel"])
    assert not np.array_equal(params["head/kernel"], expected["head/kernel"])


def test_a_run_that_lost_them_does_not_go_on_from_others(path):
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(pcls.UserError, match="a resumed run does not make its first weights again"):
        pcls.resume(path)
