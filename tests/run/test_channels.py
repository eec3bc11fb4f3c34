"""Images of two and of five channels, from arrays to predictions."""

import io
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import pcls
from pcls.config import load_recipe
from pcls.config.schema import AugmentSection
from pcls.data.augment import model_inputs
from pcls.data.augment.colour import luma
from pcls.data.decode import DecodeError, decode, fit_pixels, visible
from pcls.data.preprocessing import Preprocessing
from pcls.data.reencode import as_file
from pcls.data.show import grid
from pcls.data.sources.arrays import open_arrays
from pcls.errors import UserError
from pcls.evaluation.count import Predictions
from pcls.models.registry import define_model
from pcls.pretrained.bundle import Bundle, load_bundle, save_bundle
from pcls.pretrained.channels import first_kernel, with_image_channels
from pcls.run.setup import prepare
from pcls.run.shown import mistakes

TINY = [
    "data.image_size=14",
    "train.duration=12 epochs",
    "train.batch_size=16",
    "optimizer.lr=0.01",
    "evaluate.every=12 epochs",
]


def pictures(channels: int, count: int = 80, size: int = 14, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise; of the second class the last channel is brighter."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.integers(0, 120, (count, size, size, channels), np.uint8)
    images[..., -1] += (100 * labels[:, None, None]).astype(np.uint8)
    return images, labels


def saved(folder: Path, channels: int, kind: str) -> Path:
    images, labels = pictures(channels)
    if kind == "npz":
        np.savez(folder / "set.npz", images=images, labels=labels)
        return folder / "set.npz"
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    return folder


def recipe(path: Path, *overrides: str):
    return load_recipe("digits_cnn", ["data.source=arrays", f"data.path={path}", *TINY, *overrides])


@pytest.mark.parametrize(("channels", "kind"), [(2, "npz"), (5, "folder")])
def test_images_of_several_channels_are_learned_and_predicted(channels, kind, tmp_path):
    path = saved(tmp_path, channels, kind)
    own = ["augment.shift=1", "augment.contrast=0.1", "data.image_size=12"]
    settings = ["data.source=arrays", f"data.path={path}", f"run.dir={tmp_path / 'run'}", "model.widths=[4, 8]"]
    run = pcls.train("digits_cnn", [*settings, *TINY, *own])
    assert run.evaluation.top1 == 1
    bundle = load_bundle(run.path / "bundle")
    assert bundle.preprocessing.shape == (12, 12, channels)
    assert len(bundle.preprocessing.mean) == len(bundle.preprocessing.std) == channels
    # Half of the records have 100 more there.
    assert bundle.preprocessing.mean[-1] - bundle.preprocessing.mean[0] == pytest.approx(50 / 255, abs=0.02)
    images, labels = pictures(channels, seed=1)
    classifier = pcls.load(run.path)
    assert [answer.label for answer in classifier.predict(list(images))] == list(map(str, labels))
    np.save(tmp_path / "one.npy", images[1])
    (one,) = classifier.predict(tmp_path / "one.npy")
    assert (one.label, one.error) == ("1", "")
    (grey,) = classifier.predict(images[0, ..., 0])
    assert grey.error == f"uint8[14, 14]; uint8 [height, width, {channels}]"
    Image.new("RGB", (14, 14)).save(tmp_path / "file.png")
    (file,) = classifier.predict(tmp_path / "file.png")
    assert file.error.startswith(f"no .npy file, in which numpy.save puts uint8 [height, width, {channels}]")


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_other_channels_than_those_of_the_arrays_are_refused(kind, tmp_path):
    path = saved(tmp_path, 5, kind)
    with pytest.raises(UserError) as raised:
        prepare(recipe(path, "data.channels=3"))
    assert str(raised.value) == (
        f"the images of arrays {path} have 5 channels, and the model is to see 3; leave out data.channels, or fit "
        "public weights by: pcls models import NAME --channels 5"
    )
    assert prepare(recipe(path, "data.channels=5", "data.image_size=12")).preprocessing.channels == 5


@pytest.mark.parametrize("key", ["hue", "saturation", "greyscale"])
def test_colours_of_five_channels_are_refused(key, tmp_path):
    with pytest.raises(UserError) as raised:
        prepare(recipe(saved(tmp_path, 5, "npz"), f"augment.{key}=0.5"))
    assert str(raised.value) == f"augment.{key} has no effect on images of 5 channels; leave it out"


def test_image_files_have_no_five_channels(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (12, 12)).save(tmp_path / name / f"{number}.png")
    settings = ["data.source=folder", f"data.path={tmp_path}", "data.image_size=12", "data.channels=5"]
    with pytest.raises(UserError, match=r"data\.channels is 5, and the images of folder are files, grey \(1\) or RGB"):
        prepare(load_recipe("digits_cnn", settings))
    stream = io.BytesIO()
    Image.new("RGB", (12, 12)).save(stream, "PNG")
    with pytest.raises(DecodeError, match="an image file has no 5 channels"):
        decode(stream.getvalue(), Preprocessing(8, 8, 5, (0,) * 5, (1,) * 5))


def test_channels_before_the_pixels_are_told_apart(tmp_path):
    np.savez(tmp_path / "set.npz", images=np.zeros((4, 3, 32, 32), np.uint8), labels=np.arange(4) % 2)
    with pytest.raises(UserError, match=r"channels come last: save images\.transpose\(0, 2, 3, 1\)"):
        open_arrays(tmp_path / "set.npz")
    np.savez(tmp_path / "set.npz", images=np.zeros((4, 8, 8, 513), np.uint8), labels=np.arange(4) % 2)
    with pytest.raises(UserError, match="the last size is that of the channels, 512 at most"):
        open_arrays(tmp_path / "set.npz")


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_each_channel_is_cut_to_size_as_a_grey_image_is(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, channels), np.uint8)
    draws = np.random.default_rng(1).random((10, 4))
    means = tuple(np.linspace(0.1, 0.9, channels).tolist())
    for mode in ("center", "squash", "border"):
        whole = Preprocessing(24, 20, channels, means, (1.0,) * channels, crop_pct=0.9, crop_mode=mode)
        for drawn in (None, draws):
            out = np.zeros((2, *whole.shape), np.uint8)
            found = fit_pixels(pixels, whole, drawn, out[1])
            for channel in range(channels):
                grey = Preprocessing(24, 20, 1, means[channel : channel + 1], (1.0,), crop_pct=0.9, crop_mode=mode)
                expected = fit_pixels(pixels[..., [channel]], grey, drawn)
                np.testing.assert_array_equal(found[..., channel], expected[..., 0])
            assert np.shares_memory(found, out)
    with pytest.raises(DecodeError, match=f"{channels} channels, and the model sees 3"):
        fit_pixels(pixels, Preprocessing(24, 20, 3, (0,) * 3, (1,) * 3))


def test_arrays_in_memory_are_resized_channel_by_channel(tmp_path):
    source, _ = open_arrays(saved(tmp_path, 5, "npz"))
    small = source.resized(9, 11, 5)
    for channel in range(5):
        one = type(source)(source.images[..., [channel]], source.labels, source.class_names, "one")
        np.testing.assert_array_equal(small.images[..., channel], one.resized(9, 11, 1).images[..., 0])


@pytest.mark.parametrize("channels", [2, 5])
def test_what_has_no_colours_is_as_bright_as_the_mean_of_its_channels_and_takes_every_policy(channels):
    images, _ = pictures(channels, count=4)
    np.testing.assert_array_equal(luma(images[0])[..., 0], np.round(images[0].mean(-1)))
    section = AugmentSection(policy="rand-m5", brightness=0.1, contrast=0.1, erase=0.5, cutmix=1.0)
    keys = jax.random.split(jax.random.key(0), 4)
    seen = Preprocessing(14, 14, channels, (0.5,) * channels, (0.5,) * channels)
    found, _ = jax.eval_shape(
        lambda *batch: model_inputs(*batch, keys, section, seen, np.dtype("float32")), images, np.arange(4), np.ones(4)
    )
    assert found.shape == images.shape


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (5, 3)])
def test_a_person_is_shown_the_first_channels(channels, shown, tmp_path):
    images, _ = pictures(channels, count=4)
    np.testing.assert_array_equal(visible(images), images[..., :shown])
    assert grid(images, ["a"] * 4, columns=2).mode == "RGB"
    file = as_file(images[0], None)
    if channels in (1, 3):
        assert isinstance(file, bytes)
    else:
        assert file.reason == f"has {channels} channels, which no image file holds; train on the arrays themselves"


def test_the_report_shows_mistakes_of_five_channels(tmp_path):
    dataset = prepare(recipe(saved(tmp_path, 5, "npz"))).dataset
    count = len(dataset.evaluation)
    labels = dataset.evaluation.labels
    right, sure = labels.astype(np.int64), np.ones(count)
    predictions = Predictions(np.arange(count), right, 1 - right, sure, 5 * sure)
    (first, *_) = mistakes(dataset, predictions, np.arange(count))
    assert first.thumbnail.shape == (14, 14, 3)


@pytest.fixture(scope="module")
def colours() -> Bundle:
    """A network for RGB."""
    definition = define_model("cnn28", height=14, width=14, channels=3, classes=2, widths=(4, 8))
    params, stats = jax.device_get(definition.init(jax.random.key(0)))
    seen = Preprocessing(14, 14, 3, (0.2, 0.3, 0.7), (0.1, 0.2, 0.3))
    return Bundle("cnn28", ("0", "1"), seen, "float32", params, stats, {}, options={"widths": (4, 8)})


@pytest.mark.parametrize("channels", [2, 5])
def test_a_first_kernel_is_repeated_and_scaled_for_other_channels(channels, colours):
    wide = with_image_channels(colours, channels)
    path = first_kernel(colours)
    for channel in range(channels):
        expected = colours.params[path][:, :, channel % 3] * (3 / channels)
        np.testing.assert_allclose(wide.params[path][:, :, channel], expected, rtol=1e-6)
    assert wide.preprocessing.shape == (14, 14, channels)
    assert wide.preprocessing.mean == pytest.approx((0.4,) * channels)
    assert wide.preprocessing.std == pytest.approx((0.2,) * channels)


def test_weights_for_colours_are_trained_further_on_five_channels(colours, tmp_path):
    save_bundle(colours, tmp_path / "colours")
    path = saved(tmp_path, 5, "npz")
    settings = ["data.source=arrays", f"data.path={path}", f"run.dir={tmp_path / 'run'}", *TINY]
    settings += ["model.widths=[4, 8]", "train.duration=1 steps", "evaluate.every=1 steps"]
    with pytest.raises(UserError, match=r"have 5 channels, and the model is to see 3; .* import NAME --channels 5"):
        pcls.train("digits_cnn", [*settings, f"model.init={tmp_path / 'colours'}"])
    save_bundle(with_image_channels(colours, 5), tmp_path / "five")
    run = pcls.train("digits_cnn", [*settings, f"model.init={tmp_path / 'five'}"])
    assert load_bundle(run.path / "bundle").params["conv1/kernel"].shape == (3, 3, 5, 4)
