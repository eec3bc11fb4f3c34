"""Where a model's first weights are computed from training images."""

import jax
import numpy as np

from pcls.config import load_recipe
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
