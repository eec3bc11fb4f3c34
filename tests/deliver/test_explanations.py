"""What speaks for an answer, drawn."""

import jax
import numpy as np
import pytest
from PIL import Image

from pcls.data.preprocessing import Preprocessing, SequenceFeatures
from pcls.deliver.classifier import Classifier
from pcls.deliver.explanations import Explainer, picture_name, save_picture
from pcls.errors import UserError
from pcls.models.registry import define_model
from pcls.pretrained.bundle import Bundle


def classifier(model, size, **options):
    """Untrained, of 3 classes."""
    shape = {"height": size.height, "width": size.width, "channels": size.channels}
    params, stats = define_model(model, **shape, classes=3, **options).init(jax.random.key(0))
    return Classifier(Bundle(model, ("a", "b", "c"), size, "float32", params, stats, {}, options=options))


def colour(picture):
    """[height, width], 0 where a pixel is grey."""
    return np.ptp(picture.astype(int), axis=-1)


GREY = Preprocessing(8, 6, 1, (0.5,), (0.5,))


@pytest.mark.parametrize(("read", "axis"), [("rows", 1), ("columns", 0)])
def test_a_network_that_reads_by_steps_is_drawn_by_steps(read, axis):
    explainer = Explainer(classifier("rnn", GREY, hidden=4, read=read))
    picture = explainer.picture(np.full((8, 6, 1), 200, np.uint8), 1)
    assert picture.shape == (8, 6, 3)
    assert np.ptp(colour(picture), axis=axis).max() == 0
    assert np.ptp(colour(picture), axis=1 - axis).max() > 0
    assert explainer.method == (
        f"Gradient times input (Shrikumar et al. 2016), summed over each step, which is one of the {read} of the image"
    )


def test_a_sequence_is_drawn_with_time_to_the_right_and_without_its_padding():
    size = Preprocessing(6, 2, 1, (0.0, 0.0), (1.0, 1.0), sequence=SequenceFeatures())
    steps = np.zeros((4, 2), np.float32)
    steps[3] = 2
    picture = Explainer(classifier("rnn", size, hidden=4)).picture(steps, 0)
    assert picture.shape == (2, 4, 3)
    # Zeros times any gradient say nothing.
    assert colour(picture)[:, :3].max() == 0
    assert colour(picture)[:, 3].min() > 50


def test_the_class_that_is_asked_for_is_drawn():
    explainer = Explainer(classifier("rnn", GREY, hidden=4))
    pixels = np.arange(48, dtype=np.uint8).reshape(8, 6, 1)
    assert (explainer.picture(pixels, 0) != explainer.picture(pixels, 1)).any()


def test_a_picture_has_a_name_that_any_disk_takes_and_is_large_enough_to_see(tmp_path):
    assert picture_name(12, "photos/cat 3.jpg") == "000012-cat_3.png"
    assert picture_name(0, "../\n\x1b" + "ä" * 300 + ".jpg") == f"000000-{'_' * 60}.png"
    save_picture(np.zeros((100, 50, 3), np.uint8), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (100, 200)
    with pytest.raises(UserError, match=r"none/a.png: cannot be written \(No such file"):
        save_picture(np.zeros((4, 4, 3), np.uint8), tmp_path / "none" / "a.png")
