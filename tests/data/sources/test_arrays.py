"""Sets in memory: the embedded digits, and idx files in every form and every damage."""

import copy
import gzip
import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.arrays import ArraySource, open_arrays, open_digits, open_idx, pixel_statistics, read_idx
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


COLOUR = np.random.default_rng(2).integers(0, 256, (6, 4, 5, 3), np.uint8)
SAVED = {"images": COLOUR, "labels": LABELS}
EXACT = Preprocessing(4, 5, 3, (0.0,) * 3, (1.0,) * 3, 1.0)


def save(place, arrays, form):
    """An archive, plain or packed, or a folder of files."""
    if form == "folder":
        place.mkdir()
        for name, array in arrays.items():
            np.save(place / f"{name}.npy", array)
        return place
    file = place.with_suffix(".npz")
    (np.savez_compressed if form == "packed" else np.savez)(file, **arrays)
    return file


FORMS = ["plain", "packed", "folder"]


@pytest.mark.parametrize("form", FORMS)
def test_saved_arrays_are_read(tmp_path, form):
    path = save(tmp_path / "set", SAVED, form)
    source, evaluation = open_arrays(path)
    assert (len(source), evaluation) == (6, None)
    assert (source.class_names, source.labels.tolist(), source.labels.dtype) == (
        ("0", "1", "2"),
        [0, 1, 2] * 2,
        np.int32,
    )
    read = source.read(np.array([4, 1]), EXACT, None)
    assert np.array_equal(read.images, COLOUR[[4, 1]])
    assert read.labels.tolist() == [1, 1]
    assert source.name(3) == (f"{path}/images.npy #3" if form == "folder" else "set.npz images #3")


@pytest.mark.parametrize("form", FORMS)
def test_names_and_an_evaluation_part_are_taken(tmp_path, form):
    evaluation = {"eval_images": IMAGES[:2], "eval_labels": np.array([2, 2], np.uint8)}
    names = {"class_names": np.array(["cat", "dog", "emü", "none of it"])}
    train, held_out = open_arrays(
        save(tmp_path / "set", {"images": IMAGES, "labels": LABELS} | names | evaluation, form)
    )
    assert train.class_names == held_out.class_names == ("cat", "dog", "emü", "none of it")
    assert held_out.labels.tolist() == [2, 2]
    assert [stored.image.shape for stored in held_out.__getitems__([1])] == [(4, 5, 1)]
    assert np.array_equal(held_out.__getitems__([1])[0].image[..., 0], IMAGES[1])


def test_a_folder_is_read_when_asked_for_also_in_another_process(tmp_path):
    source = copy.deepcopy(open_arrays(save(tmp_path / "set", SAVED, "folder"))[0])
    assert np.array_equal(source.__getitems__([5])[0].image, COLOUR[5])
    file = tmp_path / "set" / "images.npy"
    with file.open("r+b") as damaged:
        damaged.truncate(file.stat().st_size - 1)
    assert source.read(np.array([4, 5]), EXACT, None).decoded.tolist() == [True, False]
    assert source.failure(5, EXACT) == "cannot be read (the file was cut short)"
    file.unlink()
    assert source.failure(0, EXACT) == "cannot be read (No such file or directory)"


BAD_ARRAYS = {
    "no labels": ({"images": COLOUR}, "no array 'labels'; images and labels are needed, and it holds: images"),
    "keras's names": (
        {"x_train": COLOUR, "y_train": LABELS},
        "no array 'images'; images and labels are needed, and it holds: x_",
    ),
    "half an evaluation part": (
        SAVED | {"eval_labels": LABELS},
        "eval_labels without eval_images; add it, or leave both out",
    ),
    "floats": (SAVED | {"images": COLOUR / 255}, "images is float64; uint8, from 0 to 255, is needed"),
    "flat": (SAVED | {"images": COLOUR.reshape(6, 60)}, "images has the shape [6, 60]; [n, height, width] or"),
    "channels first": (
        SAVED | {"images": COLOUR.transpose(0, 3, 1, 2).copy()},
        "images has the shape [6, 3, 4, 5]; channels come last: save images.transpose(0, 2, 3, 1)",
    ),
    "no images": (
        {"images": COLOUR[:0], "labels": LABELS[:0]},
        "images has the shape [0, 4, 5, 3]: it holds no images",
    ),
    "Fortran order": (
        SAVED | {"images": np.asfortranarray(COLOUR)},
        "images is in Fortran order; save numpy.ascontiguousarray",
    ),
    "label column": (SAVED | {"labels": LABELS[:, None]}, "labels has the shape [6, 1]; [n] is needed"),
    "float labels": (SAVED | {"labels": LABELS / 1}, "labels is float64; whole numbers are needed"),
    "text labels": (SAVED | {"labels": LABELS.astype(str)}, "labels is <U21; whole numbers are needed"),
    "fewer labels": (SAVED | {"labels": LABELS[:5]}, "labels has 5 values for 6 images"),
    "negative label": (SAVED | {"labels": LABELS - 1}, "labels has -1 at record 0; the classes are 0 to 1"),
    "wild label": (
        SAVED | {"labels": LABELS * 10**12},
        "labels has 2,000,000,000,000 at record 2, and only 6 records; classes",
    ),
    "label without a name": (
        SAVED | {"class_names": np.array(["a", "b"])},
        "labels has 2 at record 2; the classes are 0 to 1",
    ),
    "evaluation label without a class": (
        SAVED | {"eval_images": COLOUR, "eval_labels": LABELS + 1},
        "eval_labels has 3 at record 2; the classes are 0 to 2",
    ),
    "a name twice": (
        SAVED | {"class_names": np.array(["a", "b", "a"])},
        "class_names has an empty name, or one twice; each",
    ),
    "names that are none": (
        SAVED | {"class_names": np.arange(3)},
        "class_names is int64 of shape [3]; text of shape [classes] is",
    ),
    "objects": (
        SAVED | {"labels": np.array([{}] * 6)},
        "labels holds Python objects, which are never loaded; save it as",
    ),
}


@pytest.mark.parametrize("form", ["plain", "folder"])
@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_are_no_set_are_refused(tmp_path, case, form):
    arrays, message = BAD_ARRAYS[case]
    path = save(tmp_path / "set", arrays, form)
    assert complaint(open_arrays, path).startswith(
        (f"{path}: {message}", f"{path}/{message.split()[0]}.npy: {message}")
    )


def npy(shape, body: bytes) -> bytes:
    """An .npy file whose header claims a shape."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue() + body


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            npy((6, 4, 5), bytes(119)),
            "images has 247 bytes and its header claims 248: cut short or damaged; save it again",
        ),
        (npy((1 << 20, 99, 99), bytes(9)), "images has 137 bytes and its header claims 10,277,093,504: cut short or"),
        (npy((-6, -4, 5), bytes(120)), "images is no .npy array (its header claims the shape [-6, -4, 5])"),
        (npy((6, 4, 5), bytes(120))[:30], "images is no .npy array ("),
        (b"<html>404</html>", "images is no .npy array ("),
        (b"", "images is no .npy array ("),
    ],
)
@pytest.mark.parametrize("form", ["plain", "packed", "folder"])
def test_headers_are_not_believed(tmp_path, data, message, form):
    if form == "folder":
        path = save(tmp_path / "set", SAVED, form) / "images.npy"
        path.write_bytes(data)
        assert complaint(open_arrays, path.parent).startswith(f"{path}: {message}")
        return
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if form == "packed" else zipfile.ZIP_STORED) as archive:
        archive.writestr("images.npy", data)
        archive.write(save(tmp_path / "other", SAVED, "folder") / "labels.npy", "labels.npy")
    assert complaint(open_arrays, path).startswith(f"{path}: {message}")


def test_a_claim_of_more_than_memory_names_the_way_out(tmp_path):
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", npy((1 << 22, 256, 256, 3), b""))
        archive.writestr("labels.npy", npy((1 << 22,), b""))
    assert complaint(open_arrays, path) == (
        f"{path}: images claims 824,633,720,960 bytes, more than 17,179,869,184; "
        "save the arrays as .npy files in a folder, which are read when asked for"
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-30], "cannot be read (File is not a zip file); a whole .npz archive is needed"),
        (
            lambda data: data[:300] + bytes([data[300] ^ 1]) + data[301:],
            "cannot be read (Bad CRC-32 for file 'images.npy')",
        ),
        (lambda data: b"", "cannot be read (File is not a zip file)"),
    ],
)
def test_a_damaged_archive_is_named(tmp_path, damage, message):
    path = save(tmp_path / "set", SAVED, "plain")
    path.write_bytes(damage(path.read_bytes()))
    assert complaint(open_arrays, path).startswith(f"{path}: {message}")


def test_no_such_archive_is_named(tmp_path):
    assert complaint(open_arrays, tmp_path / "no.npz") == (
        f"{tmp_path}/no.npz: there is no such file; an .npz archive or a folder with images.npy is needed"
    )
