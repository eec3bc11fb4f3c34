"""Folders of images, as people have them."""

import numpy as np
import pytest
from PIL import Image

from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.folder import open_folder
from pcls.errors import UserError

NO_IMAGES = "no .jpg, .jpeg, .png, .webp files in folders below it"
TRAIN = {"train/a/1.png": 1, "train/b/1.png": 1}
PREPROCESSING = Preprocessing(4, 6, 3, (0.0,) * 3, (1.0,) * 3)


def complaint(root) -> str:
    with pytest.raises(UserError) as raised:
        open_folder(root)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value).replace(str(root), "ROOT")


def test_each_folder_is_a_class_in_lexical_order(write_images):
    source, evaluation = open_folder(write_images({"dog/1.png": 1, "cat/1.png": 2, "Zebra/1.png": 3, "cat10/1.png": 4}))
    assert evaluation is None
    assert source.class_names == ("Zebra", "cat", "cat10", "dog")
    assert source.labels.tolist() == [0, 1, 2, 3]
    assert source.labels.dtype == np.int32
    read = source.read(np.array([3, 0]), PREPROCESSING, None)
    assert read.images[:, 0, 0, 0].tolist() == [1, 3]
    assert read.labels.tolist() == [3, 0]


def test_images_are_found_at_any_depth_under_any_case_of_the_extension(write_images):
    names = ["cat/b/deep/1.PNG", "cat/2.JPG", "cat/3.Jpeg", "cat/4.webp", "dog/ä ö/ü 猫.png"]
    source, _ = open_folder(write_images({name: 1 for name in names}))
    assert source.files == ["cat/2.JPG", "cat/3.Jpeg", "cat/4.webp", "cat/b/deep/1.PNG", "dog/ä ö/ü 猫.png"]
    # The content decides, not the name.
    assert source.read(np.arange(5), PREPROCESSING, None).decoded.all()


def test_hidden_files_and_folders_and_other_files_are_left_out(write_images):
    root = write_images({"cat/1.png": 1, "dog/1.png": 1, ".git/x/1.png": 1, "cat/.2.png": 1, "cat/._1.png": b"mac"})
    write_images({"cat/.thumbs/1.png": 1, "cat/notes.txt": b"", "cat/1.png.part": b"", "readme.png": 1})
    source, _ = open_folder(root)
    assert source.files == ["cat/1.png", "dog/1.png"]


@pytest.mark.parametrize("name", ["val", "validation", "valid", "test"])
def test_a_part_beside_train_is_evaluated_on(write_images, name):
    root = write_images({"train/a/1.png": 1, "train/b/1.png": 2, f"{name}/a/1.png": 3, f"{name}/b/1.png": 4})
    train, evaluation = open_folder(root)
    assert (train.files, evaluation.files) == (["a/1.png", "b/1.png"], ["a/1.png", "b/1.png"])
    assert evaluation.name(1) == str(root / name / "b/1.png")


def test_val_goes_before_test(write_images):
    parts = {f"{part}/{name}/1.png": 1 for part in ("train", "val", "test") for name in "ab"}
    _, evaluation = open_folder(write_images(parts))
    assert evaluation.root.name == "val"


def test_train_alone_has_no_evaluation_part(write_images):
    train, evaluation = open_folder(write_images({"train/a/1.png": 1, "train/b/1.png": 2}))
    assert (len(train), evaluation) == (2, None)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, f"ROOT: {NO_IMAGES}; one folder a class is needed"),
        ({"a.png": 1, "b.png": 1}, f"ROOT: {NO_IMAGES}; one folder a class is needed"),
        ({"cat/1.txt": b"", "dog/x": b""}, f"ROOT: {NO_IMAGES}"),
        ({"cat/1.png": 1}, "ROOT: only one class, 'cat'; a classifier needs two or more class folders"),
        ({"cat/1.png": 1, "dog/readme": b""}, "ROOT: no images in the class folder 'dog'; fill or remove it"),
        (
            {**TRAIN, "val/a/1.png": 1, "val/c/1.png": 1},
            "ROOT: train and val differ in the classes b, c; both need the",
        ),
        ({**TRAIN, "val/a/1.png": 1}, "ROOT/val: only one class, 'a'"),
        ({**TRAIN, "val/a/1.png": 1, "val/b/x": b""}, "ROOT/val: no images in the class folder 'b'"),
    ],
)
def test_a_folder_that_cannot_be_learned_from_is_refused(write_images, files, message):
    assert complaint(write_images(files)).startswith(message)


def test_a_missing_folder_is_refused(tmp_path):
    assert complaint(tmp_path / "no").startswith("ROOT: there is no such folder; ")


def test_a_file_that_cannot_be_decoded_is_zeros_and_has_a_reason(write_images):
    root = write_images({"a/1.png": 9, "b/2.jpg": b"", "b/3.jpg": b"<html>", "b/4.png": 7})
    source, _ = open_folder(root)
    read = source.read(np.arange(4), PREPROCESSING, None)
    assert read.decoded.tolist() == [True, False, False, True]
    assert read.images.max((1, 2, 3)).tolist() == [9, 0, 0, 7]
    assert source.failure(1, PREPROCESSING) == "cannot be decoded (the file is empty)"
    assert source.failure(2, PREPROCESSING) == "cannot be decoded (not a JPEG, PNG or WebP image, 6 bytes)"
    assert source.failure(0, PREPROCESSING) == "could not be decoded before, and can be now"
    (root / "a" / "1.png").unlink()
    assert source.read(np.array([0]), PREPROCESSING, None).decoded.tolist() == [False]
    assert source.failure(0, PREPROCESSING) == "cannot be read (No such file or directory)"


def test_a_random_crop_has_the_generator_of_its_place(write_images):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    root = write_images({"a/1.png": 1, "b/1.png": 1})
    Image.fromarray(noise).save(root / "a" / "1.png")
    source, _ = open_folder(root)
    twice = source.read(np.array([0, 0]), PREPROCESSING, lambda i: np.random.default_rng(i)).images
    assert not np.array_equal(twice[0], twice[1])
    again = source.read(np.array([0]), PREPROCESSING, lambda i: np.random.default_rng(1)).images
    assert np.array_equal(again[0], twice[1])
