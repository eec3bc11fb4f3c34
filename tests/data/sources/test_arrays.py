"""Sets in memory: the embedded digits, and idx files in every form and every damage."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.arrays import ArraySource, open_digits, open_idx, pixel_statistics, read_idx
from pcls.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def complaint(read, *args, **kwargs) -> str:
    with pytest.raises(UserError) as raised:
        read(*args, **kwargs)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def test_digits_are_those_of_scikit_learn():
    digits = open_digits()
    assert len(digits) == 1797
    assert digits.images.shape == (1797, 8, 8, 1)
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.class_names == tuple("0123456789")
    assert digits.name(3) == "digits #3"


@pytest.mark.parametrize("joint", ["-", "."])
@pytest.mark.parametrize("gz", [False, True])
def test_idx_files_are_read_under_both_names_gzipped_or_not(write_idx, joint, gz):
    source = open_idx(write_idx(IMAGES, LABELS, joint=joint, gz=gz), "train")
    assert np.array_equal(source.images[..., 0], IMAGES)
    assert source.labels.tolist() == LABELS.tolist()
    assert source.labels.dtype == np.int32
    assert source.class_names == ("0", "1", "2")


def test_the_evaluation_split_has_its_own_files(write_idx):
    write_idx(IMAGES, LABELS)
    folder = write_idx(IMAGES[:2], LABELS[:2], split="t10k")
    assert (len(open_idx(folder, "train")), len(open_idx(folder, "t10k"))) == (6, 2)
    assert open_idx(folder, "t10k").name(1) == f"{folder.name} t10k #1"


def test_a_missing_file_is_named(tmp_path):
    assert complaint(open_idx, tmp_path, "train") == (
        f"{tmp_path}: no file train-images-idx3-ubyte (or .gz); data.path needs the folder of the four idx files"
    )


def header(*sizes: int, dimensions: int = 3, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, dimensions]) + struct.pack(f">{len(sizes)}I", *sizes)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "magic number  instead of 00000803: this is no such idx file"),
        (b"\x00\x00\x08", "magic number 000008 instead of 00000803: this is no such idx file"),
        (header(6, dimensions=1) + bytes(6), "magic number 00000801 instead of 00000803: this is no such idx file"),
        (header(1, 1, 1, kind=0x0D) + bytes(4), "magic number 00000d03 instead of 00000803: this is no such idx file"),
        (b"<html><body>404</body></html>", "magic number 3c68746d instead of 00000803: this is no such idx file"),
        (header(2, 2), "is cut short inside its header; copy it again"),
        (header(2, 2, 2) + bytes(5), "only 5 of 8 bytes follow the header: cut short or damaged; copy it again"),
        (header(2, 2, 2) + bytes(9), "more than 8 of 8 bytes follow the header: cut short or damaged; copy it again"),
        (header(2, 2, 2), "only 0 of 8 bytes follow the header: cut short or damaged; copy it again"),
        (header(1 << 31, 1 << 31, 4), "its header claims 18,446,744,073,709,551,616 bytes, more than 17,179,869,184"),
    ],
)
@pytest.mark.parametrize("gz", [False, True])
def test_a_damaged_idx_file_is_named_with_what_is_wrong(tmp_path, data, message, gz):
    file = tmp_path / f"images{'.gz' if gz else ''}"
    file.write_bytes(gzip.compress(data) if gz else data)
    assert complaint(read_idx, file, dimensions=3).startswith(f"{file}: {message}")


def test_a_header_that_claims_4_gb_takes_no_memory(tmp_path):
    file = tmp_path / "images"
    file.write_bytes(header(65536, 256, 256) + b"1234")
    tracemalloc.start()
    message = complaint(read_idx, file, dimensions=3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message.startswith(f"{file}: only 4 of 4,294,967,296 bytes follow the header")
    assert peak < 40 << 20


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-20], "is cut short inside its gzip stream; copy it again"),
        (lambda data: data[:60] + bytes([data[60] ^ 255]) + data[61:], "cannot be read ("),
        (lambda data: data[:-8] + b"\0\0\0\0" + data[-4:], "cannot be read (CRC check failed"),
        (lambda data: b"plain text", "cannot be read (Not a gzipped file"),
    ],
)
def test_a_damaged_gzip_stream_is_named(tmp_path, damage, message):
    data = gzip.compress(header(20, 10, 10) + np.random.default_rng(0).integers(0, 9, 2000, np.uint8).tobytes())
    file = tmp_path / "images.gz"
    file.write_bytes(damage(data))
    assert complaint(read_idx, file, dimensions=3).startswith(f"{file}: {message}")


def test_images_and_labels_of_different_counts_are_refused(write_idx):
    folder = write_idx(IMAGES, LABELS[:5])
    assert complaint(open_idx, folder, "train") == (
        f"{folder}/train-labels-idx1-ubyte: 5 labels for 6 images in train-images-idx3-ubyte"
    )


def test_a_set_of_no_images_is_refused(write_idx):
    folder = write_idx(IMAGES[:0], LABELS[:0])
    assert complaint(open_idx, folder, "train") == f"{folder}/train-images-idx3-ubyte: holds no images"


def test_the_original_mnist_files_are_read(shared_data):
    train, test = (open_idx(shared_data / "mnist", split) for split in ("train", "t10k"))
    assert (train.images.shape, test.images.shape) == ((60000, 28, 28, 1), (10000, 28, 28, 1))
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # The figures of every MNIST tutorial.
    (mean,), (std,) = pixel_statistics(train.images)
    assert (round(mean, 4), round(std, 4)) == (0.1307, 0.3081)


def test_pixel_statistics_are_those_of_numpy():
    images = np.random.default_rng(1).integers(0, 256, (5, 6, 7, 3), np.uint8)
    means, deviations = pixel_statistics(images)
    np.testing.assert_allclose(means, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(deviations, (images / 255).std((0, 1, 2)), rtol=1e-12)


def test_a_set_of_one_grey_value_is_not_divided_by_0():
    assert pixel_statistics(np.full((2, 3, 3, 1), 51, np.uint8)) == ((pytest.approx(0.2),), (1.0,))


def test_resizing_keeps_records_and_makes_channels():
    source = ArraySource(IMAGES[..., None], LABELS, ("0", "1", "2"), "x")
    assert source.resized(4, 5, 1) is source
    colour = source.resized(4, 5, 3)
    assert all(np.array_equal(colour.images[..., channel], IMAGES) for channel in range(3))
    assert colour.resized(8, 10, 1).images.shape == (6, 8, 10, 1)
    flat = ArraySource(np.full((1, 8, 8, 1), 99, np.uint8), LABELS[:1], ("0",), "x").resized(28, 28, 1)
    assert set(flat.images.ravel().tolist()) == {99}


def test_reading_copies_the_records_asked_for():
    source = ArraySource(IMAGES[..., None], LABELS, ("0", "1", "2"), "x")
    read = source.read(np.array([4, 1]), Preprocessing(4, 5, 1, (), ()), None)
    assert np.array_equal(read.images[..., 0], IMAGES[[4, 1]])
    assert read.labels.tolist() == [1, 1]
    assert read.decoded.tolist() == [True, True]
