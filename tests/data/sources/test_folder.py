"""Folders of images, as people have them."""

import copy
import os
import threading

import numpy as np
import pytest
from PIL import Image

from pcls.data.crops import crop_draws
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.folder import open_folder, open_folder_as_it_is
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
    assert source.store.files == ["cat/2.JPG", "cat/3.Jpeg", "cat/4.webp", "cat/b/deep/1.PNG", "dog/ä ö/ü 猫.png"]
    # The content decides, not the name.
    assert source.read(np.arange(5), PREPROCESSING, None).decoded.all()


def test_hidden_files_and_folders_and_other_files_are_left_out(write_images):
    root = write_images({"cat/1.png": 1, "dog/1.png": 1, ".git/x/1.png": 1, "cat/.2.png": 1, "cat/._1.png": b"mac"})
    write_images({"cat/.thumbs/1.png": 1, "cat/notes.txt": b"", "cat/1.png.part": b"", "readme.png": 1})
    source, _ = open_folder(root)
    assert source.store.files == ["cat/1.png", "dog/1.png"]


@pytest.mark.parametrize("name", ["val", "validation", "valid", "test"])
def test_a_part_beside_train_is_evaluated_on(write_images, name):
    root = write_images({"train/a/1.png": 1, "train/b/1.png": 2, f"{name}/a/1.png": 3, f"{name}/b/1.png": 4})
    train, evaluation = open_folder(root)
    assert (train.store.files, evaluation.store.files) == (["a/1.png", "b/1.png"], ["a/1.png", "b/1.png"])
    assert evaluation.name(1) == str(root / name / "b/1.png")


def test_val_goes_before_test(write_images):
    parts = {f"{part}/{name}/1.png": 1 for part in ("train", "val", "test") for name in "ab"}
    _, evaluation = open_folder(write_images(parts))
    assert evaluation.store.root.name == "val"


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
            "ROOT: only train has 'b', only val has 'c'; both need the same classes: rename",
        ),
        (
            {**TRAIN, "train/c/1.png": 1, "val/a/1.png": 1, "val/B/1.png": 1},
            "ROOT: only train has 'b', 'c', only val has 'B'; 'b' and 'B' differ in capital letters only; both need",
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


def test_a_random_crop_has_the_draws_of_its_place(write_images):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    root = write_images({"a/1.png": 1, "b/1.png": 1})
    Image.fromarray(noise).save(root / "a" / "1.png")
    source, _ = open_folder(root)
    draws = crop_draws(0, np.zeros(2), np.array([5, 6]))
    twice = source.read(np.array([0, 0]), PREPROCESSING, draws).images
    assert not np.array_equal(twice[0], twice[1])
    again = source.read(np.array([0]), PREPROCESSING, draws[1:]).images
    assert np.array_equal(again[0], twice[1])


def test_a_folder_with_the_name_of_an_image_is_none_and_its_files_count(write_images):
    root = write_images({"cat/x.jpg/1.png": 1, "dog/1.png": 2})
    (root / "dog" / "empty.jpg").mkdir()
    (root / "dog" / "link.jpg").symlink_to("empty.jpg")
    source, _ = open_folder(root)
    assert source.store.files == ["cat/x.jpg/1.png", "dog/1.png"]


@pytest.mark.parametrize("name", ["a\nb.png", "tab\t.png", "ü 猫 🐈.png", os.fsdecode(b"\xff\xfe.png"), "a\x1b[2J.png"])
def test_names_of_any_bytes_are_read_and_shown_in_one_line(write_images, name):
    root = write_images({f"cat/{name}": 7, "dog/1.png": 1})
    source, _ = open_folder(root)
    assert source.read(np.array([0]), PREPROCESSING, None).images[0, 0, 0, 0] == 7
    shown = source.name(0)
    assert shown.isprintable()
    # Fit for any terminal and log: what is no text is written as an escape.
    assert shown.encode()
    assert shown.endswith(".png")
    assert ("猫" in name) == ("猫" in shown)


def test_a_pipe_is_never_opened(write_images):
    root = write_images({"cat/1.png": 1, "dog/1.png": 1})
    os.mkfifo(root / "cat" / "2.jpg")
    source, _ = open_folder(root)
    writer_came_through = threading.Event()

    def write():
        with (root / "cat" / "2.jpg").open("wb"):
            writer_came_through.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert source.failure(1, PREPROCESSING) == "cannot be read (is no regular file)"
    assert not writer_came_through.wait(0.05)
    with (root / "cat" / "2.jpg").open("rb"):
        writer.join()


def test_links_to_images_may_stay_inside_and_not_lead_out(write_images):
    root = write_images({"set/cat/1.png": 1, "set/dog/1.png": 2, "other/2.png": 3}) / "set"
    (root / "cat" / "inside.png").symlink_to("../dog/1.png")
    (root / "cat" / "outside.png").symlink_to("../../other/2.png")
    (root / "dog" / "dangling.png").symlink_to("no.png")
    (root / "dog" / "loop.png").symlink_to("loop.png")
    source, _ = open_folder(root)
    assert source.store.files[1:3] == ["cat/inside.png", "cat/outside.png"]
    assert source.read(np.arange(6), PREPROCESSING, None).decoded.tolist() == [True, True, False, True, False, False]
    assert source.failure(2, PREPROCESSING) == "cannot be read (is a link that leads out of the folder)"
    assert source.failure(4, PREPROCESSING) == "cannot be read (No such file or directory)"
    assert source.failure(5, PREPROCESSING).startswith("cannot be read (")


def test_a_class_folder_that_leads_out_is_refused_at_once(write_images):
    root = write_images({"set/cat/1.png": 1, "other/1.png": 3}) / "set"
    (root / "dog").symlink_to(root.parent / "other")
    assert complaint(root) == (
        "ROOT/dog: is a link that leads out of the folder; "
        "copy the class here, or list its files in a manifest, by absolute paths"
    )
    (root / "dog").unlink()
    (root / "dog").symlink_to("cat")
    assert len(open_folder(root)[0]) == 2


def test_the_root_itself_may_be_a_link(write_images):
    root = write_images({"set/cat/1.png": 1, "set/dog/1.png": 2})
    (root / "link").symlink_to("set")
    source, _ = open_folder(root / "link")
    assert source.read(np.arange(2), PREPROCESSING, None).decoded.all()


def test_a_huge_file_is_not_read(write_images):
    root = write_images({"cat/1.png": 1, "dog/1.png": 1})
    with (root / "cat" / "1.png").open("wb") as file:
        file.truncate(1 << 40)
    source, _ = open_folder(root)
    assert source.failure(0, PREPROCESSING) == "cannot be read (1,099,511,627,776 bytes, more than 1,073,741,824)"


def test_a_folder_that_cannot_be_listed_is_named(write_images, monkeypatch):
    root = write_images({"cat/in/1.png": 1, "dog/1.png": 1})
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/in"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert complaint(root) == "ROOT/cat/in: cannot be listed (Permission denied)"


def test_a_folder_is_the_same_in_another_process(write_images):
    source, _ = open_folder(write_images({"cat/1.png": 1, "dog/1.png": 2}))
    read = copy.deepcopy(source).read(np.arange(2), PREPROCESSING, None)
    assert read.images[:, 0, 0, 0].tolist() == [1, 2]


def test_a_folder_is_opened_as_it_is_for_who_looks_for_what_is_wrong(write_images):
    root = write_images({"train/cat/1.png": 1, "train/Dog/1.png": 2, "val/cat/2.png": 3, "val/dog/1.png": 4})
    (root / "train" / "empty").mkdir()
    train, evaluation = open_folder_as_it_is(root)
    assert train.class_names == evaluation.class_names == ("Dog", "cat", "dog", "empty")
    assert (train.labels.tolist(), evaluation.labels.tolist()) == ([0, 1], [1, 2])
    with pytest.raises(UserError, match="no images in the class folder 'empty'"):
        open_folder(root)
    with pytest.raises(UserError, match="folders below it; one folder a class is needed"):
        open_folder_as_it_is(root / "train" / "empty")
