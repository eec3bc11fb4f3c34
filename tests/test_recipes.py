"""Each recipe of configs/ trains as a tiny twin: the same recipe, on a handful of images for a few steps."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pcls
from pcls.config import load_recipe, named_recipes
from pcls.data.sources.arrays import open_digits

TINY = ["train.duration=3 steps", "train.batch_size=16", "evaluate.every=3 steps", "checkpoint.every=3 steps"]


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Overrides that point each kind of source at 40 digits: as idx files, and as PNG files in class folders."""
    digits = open_digits().resized(28, 28, 1)
    images, labels = digits.images[:40, ..., 0], digits.labels[:40]
    idx = tmp_path_factory.mktemp("idx")
    for split in ("train", "t10k"):
        write_idx(idx / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(idx / f"{split}-labels-idx1-ubyte.gz", labels)
    folder = tmp_path_factory.mktemp("folder")
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{number}.png")
    return {"idx": [f"data.path={idx}"], "folder": [f"data.path={folder}", "data.image_size=32"], "digits": []}


def write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


@pytest.mark.parametrize("name", sorted(named_recipes()))
def test_the_tiny_twin_of_a_recipe_trains(name: str, tiny_data: dict[str, list[str]], tmp_path: Path) -> None:
    source = load_recipe(name).data.source
    run = pcls.train(name, [f"run.dir={tmp_path / 'run'}", *TINY, *tiny_data[source]])
    assert run.evaluation.n == (359 if source == "digits" else len(labels_held_out(source)))
    assert np.isfinite(run.evaluation.loss)
    assert len(run.evaluation.class_names) == 10


def labels_held_out(source: str) -> range:
    # idx: the whole test split. folder: a fifth of each class of four, rounded: one image a class.
    return range(40) if source == "idx" else range(10)


def test_the_recipes_that_scripts_rely_on_are_there() -> None:
    expected = {"mnist_cnn", "mnist_rnn", "fashion_mnist_cnn", "fashion_mnist_rnn", "digits_cnn", "digits_rnn"}
    assert expected | {"folder_resnet18"} <= named_recipes().keys()
