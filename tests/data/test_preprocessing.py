"""What weights expect of an image, saved with them."""

import json

import pytest

from pcls.data.preprocessing import Preprocessing, imagenet_statistics


def test_preprocessing_survives_a_json_file():
    preprocessing = Preprocessing(28, 32, 3, (0.1, 0.2, 1 / 3), (0.5, 0.25, 1.0), 0.875)
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


def test_imagenet_statistics_of_grey_are_the_mean_of_the_channels():
    assert imagenet_statistics(3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    (mean,), (std,) = imagenet_statistics(1)
    assert (mean, std) == (pytest.approx(0.449), pytest.approx(0.226))
