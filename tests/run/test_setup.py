"""What is checked before a run is written: images for the devices."""

import numpy as np
import pytest
from PIL import Image

from pcls.config import load_recipe
from pcls.data.sources.arrays import open_digits
from pcls.errors import UserError
from pcls.run.setup import images_on_devices, prepare


def set_up(**overrides):
    return prepare(load_recipe("digits_rnn", {"data.image_size": 10, "data.on_device": True} | overrides))


@pytest.fixture
def photos(tmp_path):
    """Two classes of eight digits, as PNG files."""
    digits = open_digits()
    for number in range(16):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        Image.fromarray(digits.images[number, ..., 0]).save(tmp_path / str(number % 2) / f"{number:02}.png")
    return tmp_path


def of_photos(photos, **overrides):
    return set_up(
        **{"data.source": "folder", "data.path": str(photos), "data.channels": 1, "train.batch_size": 8} | overrides
    )


def test_every_device_holds_the_whole_training_set():
    setup = set_up()
    images = images_on_devices(setup)
    records = setup.dataset.train.read(np.arange(1438), setup.preprocessing, None)
    assert (images.image.dtype, images.label.dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(images.image, records.images)
    np.testing.assert_array_equal(images.label, records.labels)
    assert {shard.data.shape for shard in images.image.addressable_shards} == {(1438, 10, 10, 1)}
    assert len(images.image.addressable_shards) == 8


def test_files_cut_anew_each_epoch_cannot_stay_on_the_devices(photos):
    with pytest.raises(UserError) as raised:
        images_on_devices(of_photos(photos))
    assert str(raised.value) == (
        "data.on_device keeps each image once, and data.train_crop=random cuts it anew each epoch; "
        "write data.train_crop=center, or data.on_device=false"
    )


def test_files_cut_at_the_centre_can(photos):
    setup = of_photos(photos, **{"data.train_crop": "center"})
    images = images_on_devices(setup)
    records = setup.dataset.train.read(np.arange(len(setup.dataset.train)), setup.preprocessing, None)
    np.testing.assert_array_equal(images.image, records.images)


@pytest.mark.faults
def test_an_image_that_cannot_be_decoded_is_refused_by_name(photos):
    for path in photos.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:40])
    setup = of_photos(photos, **{"data.train_crop": "center"})
    with pytest.raises(UserError) as raised:
        images_on_devices(setup)
    text = str(raised.value)
    assert text.startswith(f"{photos}/")
    assert " cannot be decoded (" in text
    assert text.endswith("; data.on_device needs all of them; mend or remove it")


def test_more_images_than_half_of_a_devices_memory_are_refused(monkeypatch):
    class Small:
        def memory_stats(self):
            return {"bytes_limit": 200_000}

    setup = set_up()
    monkeypatch.setattr("pcls.run.setup.jax.local_devices", lambda: [Small()])
    with pytest.raises(UserError) as raised:
        images_on_devices(setup)
    assert str(raised.value) == (
        "data.on_device: the 1,438 images take 0.0 GB, more than half of a device's 0.0 GB; write data.on_device=false"
    )
