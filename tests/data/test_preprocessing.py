"""What weights expect of an image, saved with them."""

import json

import pytest

from pcls.data.preprocessing import Preprocessing, SequenceFeatures, TrainingSize, imagenet_statistics


def test_preprocessing_survives_a_json_file():
    preprocessing = Preprocessing(28, 32, 3, (0.1, 0.2, 1 / 3), (0.5, 0.25, 1.0), 0.875)
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


def test_what_is_expected_of_a_sequence_survives_a_json_file():
    features = SequenceFeatures("log_mel", 8000, 40, 25.0, 12.5)
    preprocessing = Preprocessing(120, 40, 1, (0.5,) * 40, (2.0,) * 40, sequence=features)
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


def test_the_size_of_training_survives_a_json_file():
    preprocessing = Preprocessing(288, 288, 1, (0.5,), (0.25,), 1.0, "squash", train=TrainingSize(224, 192, 0.95))
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
    assert preprocessing.training == Preprocessing(224, 192, 1, (0.5,), (0.25,), 0.95, "squash")
    assert preprocessing.training.training == preprocessing.training


def test_what_was_saved_before_there_were_sizes_of_training_is_trained_as_it_is_evaluated():
    values = Preprocessing(28, 28, 1, (0.1,), (0.3,)).to_json()
    del values["train"]
    found = Preprocessing.from_json(values)
    assert found.train is None
    assert found.training == found


def test_what_was_saved_before_there_were_sequences_is_of_pictures():
    values = Preprocessing(28, 28, 1, (0.1,), (0.3,)).to_json()
    del values["sequence"]
    assert Preprocessing.from_json(values).sequence is None


@pytest.mark.parametrize("change", [{"kind": "mfcc"}, {"mels": "many"}, {"hop_ms": None}])
def test_saved_features_of_a_sequence_that_are_none_are_refused(change):
    values = Preprocessing(120, 40, 1, (), (), sequence=SequenceFeatures()).to_json()
    values["sequence"] |= change
    with pytest.raises((ValueError, TypeError)):
        Preprocessing.from_json(values)


def test_imagenet_statistics_of_grey_are_the_mean_of_the_channels():
    assert imagenet_statistics(3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    (mean,), (std,) = imagenet_statistics(1)
    assert (mean, std) == (pytest.approx(0.449), pytest.approx(0.226))
