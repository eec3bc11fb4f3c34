"""A batch as the model sees it."""

import numpy as np
import pytest
from PIL import Image, ImageFont

import pcls.data.show as show
from pcls.cli import main
from pcls.config.schema import AugmentSection
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import Preprocessing

GREY = Preprocessing(4, 4, 1, (0.3,), (0.2,))


def batch_of(images: np.ndarray) -> Batch:
    n = len(images)
    return Batch(
        images,
        np.arange(n, dtype=np.int32),
        np.ones(n, np.float32),
        np.arange(n, dtype=np.int32),
        np.zeros(n, np.int32),
    )


def test_without_augmentation_the_pixels_are_those_of_the_batch():
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 1), np.uint8)
    pixels, other, share = show.augmented_images(batch_of(images), AugmentSection(), GREY, seed=0)
    assert np.array_equal(pixels, images)
    assert other.tolist() == [0, 1, 2, 3]
    assert share.tolist() == [1.0] * 4


def test_mixed_images_carry_both_labels():
    images = np.repeat(np.array([0, 200], np.uint8), 16).reshape(2, 4, 4, 1)
    pixels, other, share = show.augmented_images(batch_of(images), AugmentSection(mixup=1.0), GREY, seed=3)
    assert other.tolist() == [1, 0]
    assert pixels[0].mean() == pytest.approx(200 * (1 - share[0]), abs=1)
    assert pixels[1].mean() == pytest.approx(200 * share[1], abs=1)


def test_a_grid_has_each_image_at_its_place():
    images = np.stack([np.full((64, 64, 3), level, np.uint8) for level in (10, 90, 170)])
    sheet = np.asarray(show.grid(images, ["a", "b", "c"], columns=2))
    step, tile, line = 128 + show.GAP, 128, show.LINE
    assert sheet.shape == (2 * (tile + line + show.GAP) + show.GAP, 2 * step + show.GAP, 3)
    for number, level in enumerate((10, 90, 170)):
        row, column = divmod(number, 2)
        top, left = show.GAP + row * (tile + line + show.GAP), show.GAP + column * step
        assert (sheet[top : top + tile, left : left + tile] == level).all()
        # Some ink below.
        assert (sheet[top + tile : top + tile + line, left : left + tile] < 128).any()


def test_captions_say_what_was_mixed_in_and_fit_below_the_image():
    assert show.caption("cat", "dog", 0.7) == "70% cat + 30% dog"
    assert show.caption("cat", "dog", 1.0) == "cat"
    assert show.caption("cat", "cat", 0.5) == "cat"
    assert show.plain("Blüte 猫") == "Blute ?"
    font = ImageFont.load_default(12)
    assert show.shortened("cat", 128, font) == "cat"
    cut = show.shortened("a very long name of a class", 60, font)
    assert cut.endswith("...") and 50 < font.getlength(cut) <= 60


def test_the_verb_writes_a_png(tmp_path, capsys):
    out = tmp_path / "batch.png"
    words = ["data", "show", "digits", "augment.shift=1", "--images", "5", "--columns", "3", "--out", str(out)]
    assert main(words) == 0
    with Image.open(out) as image:
        assert image.size == (3 * (128 + 6) + 6, 2 * (128 + 16 + 6) + 6)
    assert capsys.readouterr().out == f"{out}: 5 images of step 1\n"


def test_an_odd_batch_is_mixed_but_for_its_last_image(tmp_path, capsys):
    words = ["data", "show", "digits", "train.batch_size=5", "augment.mixup=0.2", "--out", str(tmp_path / "batch.png")]
    assert main(words) == 0
    assert capsys.readouterr().out.endswith("4 images of step 1\n")


def test_the_verb_refuses_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(["data", "show", "digits", "--out", str(tmp_path / "no" / "batch.png")]) == 2
    assert "there is no folder" in capsys.readouterr().err
