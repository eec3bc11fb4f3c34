"""The evaluation's crop beside timm's, to the pixel."""

import importlib
import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from pcls.data.decode import decode
from pcls.data.preprocessing import CROP_MODES, INTERPOLATIONS, Preprocessing

pytestmark = pytest.mark.peer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PICTURE = Image.fromarray(load_sample_image("china.jpg"))


@pytest.fixture(scope="module")
def evaluation_transform(timm):
    return importlib.import_module("timm.data.transforms_factory").transforms_imagenet_eval


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("mode", CROP_MODES)
def test_evaluation_shows_a_model_the_pixels_that_timm_shows_it(evaluation_transform, mode, interpolation):
    rng = np.random.default_rng(0)
    for crop_pct, height, width in [(0.875, 224, 224), (0.95, 288, 288), (1.0, 64, 64), (0.9, 96, 160), (0.8, 100, 37)]:
        size = tuple(int(side) for side in rng.integers(40, 500, 2))
        stream = io.BytesIO()
        PICTURE.resize(size).save(stream, "JPEG", quality=95)
        settings = {"crop_pct": crop_pct, "crop_mode": mode, "interpolation": interpolation}
        transform = evaluation_transform((height, width), mean=MEAN, std=STD, normalize=False, **settings)
        expected = transform(Image.open(stream)).numpy().transpose(1, 2, 0)
        found = decode(stream.getvalue(), Preprocessing(height, width, 3, MEAN, STD, **settings))
        assert np.array_equal(found, expected), (crop_pct, size)
