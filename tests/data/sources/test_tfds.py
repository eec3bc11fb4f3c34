"""Sets that TensorFlow Datasets prepares as ArrayRecord: written here, read without TensorFlow."""

import io
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from pcls.config.data import DataSection
from pcls.data.dataset import open_dataset
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.tfds import open_tfds
from pcls.errors import UserError

PREPROCESSING = Preprocessing(4, 6, 3, (0.0,) * 3, (1.0,) * 3)
SPLITS = {"train": 12, "test": 5, "validation": 3}


def picture(value: int) -> io.BytesIO:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (value, value + 1, value + 2)).save(stream, "PNG")
    stream.seek(0)
    return stream


# Not registered: reading must find the set by its files, as in a program that has never seen this class.
with tfds.core.registered.skip_registration():

    class Flowers(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        IMAGE = "image"
        url_infos = {}  # noqa: RUF012 - nothing is downloaded; TFDS would look for checksums beside this file

        def _info(self):
            features = {
                self.IMAGE: tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["rose", "tulip", "iris"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(count) for split, count in SPLITS.items()}

        def _generate_examples(self, count):
            for number in range(count):
                yield number, {self.IMAGE: picture(10 * number), "label": number % 3}

    class Sounds(Flowers):
        IMAGE = "spectrum"

    class Records(Flowers):
        pass


def prepare(builder_class, folder, file_format) -> None:
    builder = builder_class(data_dir=str(folder), file_format=file_format)
    # The statistics step would only recount the records.
    builder.download_and_prepare()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data directory with `flowers` and `sounds`."""
    folder = tmp_path_factory.mktemp("tfds")
    prepare(Flowers, folder, "array_record")
    prepare(Sounds, folder, "array_record")
    return folder


def section(prepared, source: str, **fields) -> DataSection:
    return DataSection(source=source, path=str(prepared), **fields)


def complaint(source: str, data_dir) -> str:
    with pytest.raises(UserError) as raised:
        open_tfds(source, str(data_dir))
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value).replace(str(data_dir), "DATA")


def test_pixels_labels_and_classes_are_those_that_were_written(prepared):
    train, _ = open_tfds("tfds:flowers", str(prepared))
    assert (len(train), train.class_names) == (12, ("rose", "tulip", "iris"))
    read = train.read(np.arange(12), PREPROCESSING, None)
    assert read.decoded.all()
    # TFDS shuffles while it writes; the pixels say which record is which.
    numbers = read.images[:, 0, 0, 0] // 10
    assert sorted(numbers.tolist()) == list(range(12))
    assert np.array_equal(read.images[..., 2], read.images[..., 0] + 2)
    assert np.array_equal(read.labels, numbers % 3)
    assert np.array_equal(train.labels, read.labels)
    assert (read.labels.dtype, train.labels.dtype) == (np.int32, np.int32)
    assert train.name(3) == "flowers train #3"
    again = train.read(np.array([7, 2, 7]), PREPROCESSING, None)
    assert np.array_equal(again.images, read.images[[7, 2, 7]])


def test_the_validation_split_is_evaluated_on_before_the_test_split(prepared):
    assert [len(source) for source in open_tfds("tfds:flowers", str(prepared))] == [12, 3]
    assert [len(source) for source in open_tfds("tfds:flowers:train", str(prepared))] == [12, 3]
    assert [len(source) for source in open_tfds("tfds:flowers:validation", str(prepared))] == [3, 5]
    assert [len(source) for source in open_tfds("tfds:flowers:train[:25%]", str(prepared))] == [3, 3]


def test_a_slice_of_a_split_is_not_evaluated_on_the_rest_of_it(prepared):
    assert [len(source) for source in open_tfds("tfds:flowers:validation[:2]", str(prepared))] == [2, 5]


def test_a_recipe_opens_a_prepared_set(prepared):
    dataset = open_dataset(section(prepared, "tfds:flowers", image_size=8, classes=(2, 0), per_class=2))
    assert dataset.class_names == ("iris", "rose")
    assert np.bincount(dataset.train.labels).tolist() == [2, 2]
    assert len(dataset.evaluation) == 2  # numbers 0 and 2 of the validation split
    assert (dataset.preprocessing.height, dataset.preprocessing.width, dataset.preprocessing.channels) == (8, 8, 3)


def test_reading_imports_no_tensorflow(prepared):
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from pcls.config.schema import DataSection\n"
        "from pcls.data.dataset import open_dataset\n"
        "dataset = open_dataset(DataSection(source='tfds:flowers', path=sys.argv[1]))\n"
        "read = dataset.train.read(np.arange(12), dataset.preprocessing, None)\n"
        "print(read.images.shape, sum(dataset.train.labels), 'tensorflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(prepared)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "(12, 224, 224, 3) 12 False\n", done.stderr


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:flowrs", "tfds:flowrs was not found in DATA ("),
        ("tfds:", "tfds: was not found in DATA ("),
        ("tfds:mnist", "tfds:mnist has no split 'train'; it is not prepared in DATA"),
        ("tfds:flowers:nope", "tfds:flowers has no split 'nope'; it has "),
        ("tfds:flowers:train[oops]", "tfds:flowers has no split 'train[oops]'"),
        ("tfds:flowers:train[:oops%]", "tfds:flowers has no split 'train[:oops%]'"),
        ("tfds:sounds", "tfds:sounds has the features label, spectrum; image and label are needed"),
    ],
)
def test_a_set_that_is_not_there_or_not_fit_is_refused(prepared, source, message):
    assert complaint(source, prepared).startswith(message)


def test_a_missing_data_directory_is_refused(tmp_path):
    assert complaint("tfds:flowers", tmp_path / "no").startswith(
        "DATA: there is no such folder; data.path needs the fold"
    )


def test_a_set_in_another_file_format_is_refused(tmp_path):
    # Writing TFRecord files needs TensorFlow; what is read of them first is their description.
    prepare(Records, tmp_path, "array_record")
    info = tmp_path / "records" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    assert complaint("tfds:records", tmp_path) == (
        "tfds:records is stored as tfrecord; prepare it with file_format=array_record"
    )


def test_a_damaged_picture_is_zeros_and_has_a_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "picture", lambda value: io.BytesIO(b"") if value == 10 else io.BytesIO(b"<html>"))
    prepare(Records, tmp_path, "array_record")
    train, _ = open_tfds("tfds:records", str(tmp_path))
    read = train.read(np.arange(12), PREPROCESSING, None)
    assert not read.decoded.any()
    assert read.images.max() == 0
    reasons = sorted(train.failure(record, PREPROCESSING) for record in range(12))
    assert reasons[0] == "cannot be decoded (not a JPEG, PNG or WebP image, 6 bytes)"
    assert reasons[-1] == "cannot be decoded (the file is empty)"


def test_a_damaged_record_costs_no_other(prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "tfds")
    (file,) = folder.glob("flowers/1.0.0/flowers-train*")
    data = bytearray(file.read_bytes())
    third = [match.start() for match in re.finditer(b"PNG", data)][2]
    data[third + 10] ^= 1
    file.write_bytes(data)
    train, _ = open_tfds("tfds:flowers", str(folder))
    read = train.read(np.arange(12), PREPROCESSING, None)
    (bad,) = np.flatnonzero(~read.decoded)
    assert train.failure(int(bad), PREPROCESSING).startswith("cannot be read (")
    assert read.images[read.decoded].max() > 0
