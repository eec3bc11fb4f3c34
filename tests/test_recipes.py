"""Each recipe of configs/ trains as a tiny twin: the same recipe, on a handful of images for a few steps."""

import gzip
import re
import struct
import wave
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import pcls
from pcls.config import flat_recipe, load_recipe, named_recipes
from pcls.data.sources.arrays import open_digits
from pcls.models import resnet
from pcls.models.convnext import ConvNeXt
from pcls.models.registry import MODELS
from pcls.models.resnet import BasicBlock, Bottleneck, ResNet
from pcls.models.sequencer import Sequencer2D
from pcls.models.speednet import SpeedNet
from pcls.parallel.mesh import make_mesh
from pcls.training import program

TINY = ["train.duration=3 steps", "train.batch_size=16", "evaluate.every=3 steps", "checkpoint.every=3 steps"]
ANY_NUMBER = ["data.expect_classes=0", "data.expect_records=0"]
# What the twin of a recipe needs beside; the shape of a schedule stays: a step of warm-up where there are epochs.
TWINS = {
    "folder_resnet18": ["optimizer.warmup=1 steps"],
    "imagenet_resnet50": [*ANY_NUMBER, "batch_norm.group_size=2", "optimizer.warmup=1 steps"],
    "imagenet_resnet50_fast": [
        *ANY_NUMBER,
        "batch_norm.group_size=2",
        "optimizer.warmup=1 steps",
        "data.image_size=40",
        "data.progressive=[{until: 2 steps, image_size: 32, batches: 2}]",
    ],
    "imagenet_convnext_tiny": [*ANY_NUMBER, "optimizer.warmup=1 steps"],
    "imagenet_sequencer2d_s": [*ANY_NUMBER, "optimizer.warmup=1 steps"],
    # What buckets change is tested by training/test_sequences.py; each is compiled for itself.
    **{key: ["data.buckets=1"] for key in ("spoken_digits_lstm", "spoken_digits_crnn", "japanese_vowels_gru")},
    "mnist_pixels_lru": ["data.image_size=8", "optimizer.warmup=1 steps"],
    "mnist_pixels_mingru": ["data.image_size=8", "optimizer.warmup=1 steps"],
    "cifar10_resnet18": [*ANY_NUMBER, "data.source=folder", "optimizer.warmup=1 steps"],
    "cifar10_speed": [*ANY_NUMBER, "data.source=folder", "optimizer.warmup=1 steps", "batch_norm.recalibrate=1 steps"],
}


@pytest.fixture(scope="module", autouse=True)
def narrow_networks() -> Iterator[None]:
    """One block a stage, an eighth of the channels, one device: the same layers, compiled in a fraction of the time."""
    depths, widths = (1, 1, 1, 1), (8, 16, 32, 64)
    builds = {
        "resnet18": partial(ResNet, BasicBlock, depths),
        "resnet18_cifar": partial(ResNet, BasicBlock, depths, small_images=True),
        "resnet50": partial(ResNet, Bottleneck, depths),
        "speednet": partial(SpeedNet, widths=(8, 16, 16)),
        "convnext_tiny": partial(ConvNeXt, depths, widths),
        "sequencer2d_s": partial(Sequencer2D, (1, 1), (8, 16), (7, 2), remat=("none",) * 2),
    }
    with pytest.MonkeyPatch.context() as patched:
        # What several devices change is tested by training/test_program.py.
        patched.setattr(program, "make_mesh", lambda *axes: make_mesh(*axes[:3], jax.devices()[:1]))
        patched.setattr(resnet, "STAGE_WIDTHS", widths)
        for name, build in builds.items():
            patched.setitem(MODELS, name, replace(MODELS[name], build=build))
        yield


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
    files = [f"data.path={folder}", "data.image_size=32"]
    return {
        "idx": [f"data.path={idx}"],
        "folder": files,
        "tfds:cifar10": files,
        "digits": [],
        "audio": [f"data.path={write_recordings(tmp_path_factory.mktemp('audio'))}"],
        "ts": [f"data.path={write_series(tmp_path_factory.mktemp('ts'))}"],
    }


def write_recordings(folder: Path) -> Path:
    """A tone of its own for each digit, of 40 to 100 ms; number 0 of each is tested on."""
    for digit in range(10):
        for number in range(4):
            times = np.arange(320 + 160 * number) / 8000
            samples = (8000 * np.sin(2 * np.pi * 200 * (digit + 1) * times)).astype("<i2")
            with wave.open(str(folder / f"{digit}_a_{4 + number}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(samples.tobytes())
    return folder


def write_series(folder: Path) -> Path:
    """Ten classes, four series each of 3 to 6 steps."""
    head = "@timeStamps false\n@dimensions 2\n@equalLength false\n@classLabel true 0 1 2 3 4 5 6 7 8 9\n@data\n"
    lines = [
        f"{','.join(['0.5'] * steps)}:{','.join([str(label)] * steps)}:{label}\n"
        for label in range(10)
        for steps in range(3, 7)
    ]
    for part in ("TRAIN", "TEST"):
        (folder / f"Tiny_{part}.ts").write_text("@problemName Tiny\n" + head + "".join(lines))
    return folder


def write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


@pytest.mark.system
@pytest.mark.parametrize("name", sorted(named_recipes()))
def test_the_tiny_twin_of_a_recipe_trains(
    name: str, tiny_data: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(name)
    source = recipe.data.source
    overrides = [*TINY, *tiny_data[source], *TWINS.get(name, [])]
    if recipe.model.init:
        # Its weights come from the twin of the recipe that their folder is called after.
        start = pcls.train(Path(recipe.model.init).name, [f"run.dir={tmp_path / 'start'}", *TINY, *tiny_data["idx"]])
        overrides.append(f"model.init={start.path}")
    run = pcls.train(name, [f"run.dir={tmp_path / 'run'}", *overrides])
    assert run.evaluation.n == (359 if source == "digits" else len(labels_held_out(source)))
    assert np.isfinite(run.evaluation.loss)
    assert len(run.evaluation.class_names) == 10
    # One that was trained to tell digits is of no use for clothes.
    told = load_recipe(Path(recipe.model.init).name).data.class_names if recipe.model.init else ()
    other = bool(recipe.model.init) and told != recipe.data.class_names
    assert ("the 10 classes are not the 10 of the weights" in capsys.readouterr().err) == other


def labels_held_out(source: str) -> range:
    # idx and ts: the whole test split. folder: a fifth of each class of four, rounded: one image a class.
    return range(40) if source in ("idx", "ts") else range(10)


def test_the_recipes_that_scripts_rely_on_are_there() -> None:
    expected = {"mnist_cnn", "mnist_rnn", "fashion_mnist_cnn", "fashion_mnist_rnn", "digits_cnn", "digits_rnn"}
    expected |= {"folder_resnet18", "cifar10_resnet18", "cifar10_speed"}
    expected |= {"imagenet_resnet50", "imagenet_resnet50_fast", "imagenet_convnext_tiny", "imagenet_sequencer2d_s"}
    expected |= {f"mnist_rows_{cell}" for cell in ("rnn", "gru", "lstm", "lru")} | {"fashion_mnist_rows_lstm"}
    expected |= {"mnist_pixels_lru", "mnist_pixels_mingru", "spoken_digits_lstm", "spoken_digits_crnn"}
    expected |= {"japanese_vowels_gru", "fashion_mnist_cnn_from_mnist", "fashion_mnist_rows_lstm_from_mnist"}
    expected |= {"fashion_mnist_cnn_int8"}
    assert expected <= named_recipes().keys()


def test_a_twin_changes_sizes_and_not_what_is_done() -> None:
    """Each twin keeps its recipe's model, optimizer, schedule, loss, precision, augmentation and layout."""
    kept = re.compile(
        r"augment\.|model\.|optimizer\.(?!warmup$)|train\.(loss|precision|ema|label)|mesh\.|batch_norm\.over|on_dev"
    )
    for name, overrides in TWINS.items():
        whole, twin = flat_recipe(load_recipe(name)), flat_recipe(load_recipe(name, [*TINY, *overrides]))
        assert {key for key in whole if whole[key] != twin[key] and kept.search(key)} == set()
        assert (twin["optimizer.warmup"] == "0 epochs") == (whole["optimizer.warmup"] == "0 epochs")
