"""A recipe's data section, opened: who is trained on, who is evaluated on, and whose statistics count."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pcls.config.data import AudioSection, DataSection
from pcls.data.dataset import SOURCES, data_settings, described_preprocessing, open_dataset
from pcls.data.decode import fit_pixels
from pcls.data.preprocessing import IMAGENET_MEAN, Preprocessing, SequenceFeatures, TrainingSize
from pcls.errors import UserError

DIGIT_COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
RAMP = np.arange(40)[:, None, None] + np.zeros((40, 3, 4), int)  # image n is n everywhere
LABELS = np.arange(40) % 4


def complaint(**section) -> str:
    with pytest.raises(UserError) as raised:
        open_dataset(DataSection(**section))
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def names(source) -> list[str]:
    return [source.name(record) for record in range(len(source))]


@pytest.fixture
def ramp(write_idx):
    """An idx folder of 40 training and 8 evaluation images, of 4 classes."""
    write_idx(RAMP, LABELS)
    return str(write_idx(RAMP[:8] + 100, LABELS[:8], split="t10k"))


# The split


def test_a_set_without_an_evaluation_part_is_split_by_class():
    dataset = open_dataset(DataSection())
    assert not set(names(dataset.train)) & set(names(dataset.evaluation))
    assert len(dataset.train) + len(dataset.evaluation) == 1797
    assert np.bincount(dataset.evaluation.labels).tolist() == [round(n * 0.2) for n in DIGIT_COUNTS]


def test_few_labels_leave_all_the_rest_to_be_evaluated_on():
    dataset = open_dataset(DataSection(per_class=5, classes=(5, 6, 7, 8, 9)))
    assert np.bincount(dataset.train.labels).tolist() == [5] * 5
    assert len(dataset.evaluation) == sum(DIGIT_COUNTS[5:]) - 25
    assert not set(names(dataset.train)) & set(names(dataset.evaluation))
    assert dataset.class_names == ("5", "6", "7", "8", "9")


def test_the_split_seed_decides_the_split():
    some, same, other = (open_dataset(DataSection(per_class=5, split_seed=seed)) for seed in (1, 1, 2))
    assert names(some.train) == names(same.train)
    assert names(some.train) != names(other.train)


def test_a_set_with_an_evaluation_part_keeps_it(ramp):
    dataset = open_dataset(DataSection(source="idx", path=ramp))
    assert (len(dataset.train), len(dataset.evaluation)) == (40, 8)


def test_few_labels_of_a_set_with_an_evaluation_part_leave_that_part_whole(ramp):
    dataset = open_dataset(DataSection(source="idx", path=ramp, per_class=2, classes=(3, 1)))
    assert np.bincount(dataset.train.labels).tolist() == [2, 2]
    assert len(dataset.evaluation) == 4
    assert dataset.class_names == ("3", "1")
    pixels = dataset.evaluation.read(np.arange(4), dataset.preprocessing, None).images[:, 0, 0, 0]
    assert pixels.tolist() == [101, 103, 105, 107]
    assert dataset.evaluation.labels.tolist() == [1, 0, 1, 0]


def test_a_folder_is_split_by_class(write_images):
    files = {f"{name}/{number}.png": number for name in ("cat", "dog") for number in range(10)}
    dataset = open_dataset(DataSection(source="folder", path=str(write_images(files)), validation=0.3))
    assert np.bincount(dataset.train.labels).tolist() == [7, 7]
    assert np.bincount(dataset.evaluation.labels).tolist() == [3, 3]


def test_a_folder_with_parts_keeps_them(write_images):
    files = {f"{part}/{name}/1.png": 1 for part in ("train", "val") for name in ("cat", "dog")}
    dataset = open_dataset(DataSection(source="folder", path=str(write_images(files))))
    assert (len(dataset.train), len(dataset.evaluation)) == (2, 2)


# Preprocessing


def test_statistics_are_those_of_the_training_part_alone(ramp):
    (mean,), (std,) = (
        getattr(open_dataset(DataSection(source="idx", path=ramp)).preprocessing, f) for f in ("mean", "std")
    )
    assert mean == pytest.approx(np.arange(40).mean() / 255)
    assert std == pytest.approx(np.arange(40).std() / 255)


def test_statistics_of_few_labels_are_those_of_the_few():
    dataset = open_dataset(DataSection(per_class=2))
    pixels = dataset.train.read(np.arange(20), dataset.preprocessing, None).images / 255
    assert dataset.preprocessing.mean == (pytest.approx(pixels.mean()),)
    assert dataset.preprocessing.std == (pytest.approx(pixels.std()),)


def test_mnist_has_the_statistics_of_every_tutorial(shared_data):
    dataset = open_dataset(DataSection(source="idx", path=str(shared_data / "mnist")))
    assert (len(dataset.train), len(dataset.evaluation)) == (60000, 10000)
    assert [round(dataset.preprocessing.mean[0], 4), round(dataset.preprocessing.std[0], 4)] == [0.1307, 0.3081]


def test_arrays_keep_their_size_unless_the_recipe_says_one():
    assert open_dataset(DataSection()).preprocessing.height == 8
    dataset = open_dataset(DataSection(image_size=28, channels=3))
    images = dataset.train.read(np.arange(3), dataset.preprocessing, None).images
    assert images.shape == (3, 28, 28, 3)
    assert dataset.preprocessing.crop_pct == 1.0
    assert len(dataset.preprocessing.mean) == 3


def test_an_oblong_array_stays_oblong(ramp):
    preprocessing = open_dataset(DataSection(source="idx", path=ramp)).preprocessing
    assert (preprocessing.height, preprocessing.width, preprocessing.channels) == (3, 4, 1)


def test_a_later_picture_is_bent_as_oblong_arrays_were(ramp):
    for size in (0, 6):
        dataset = open_dataset(DataSection(source="idx", path=ramp, image_size=size))
        whole = open_dataset(DataSection(source="idx", path=ramp)).evaluation
        seen = dataset.evaluation.read(np.arange(len(whole)), dataset.preprocessing, None).images
        for record, image in enumerate(seen):
            np.testing.assert_array_equal(fit_pixels(whole.images[record], dataset.preprocessing), image)


def test_files_have_imagenet_statistics_and_224_pixels_unless_the_recipe_says_others(write_images):
    root = str(write_images({"a/1.png": 1, "a/2.png": 1, "b/1.png": 1, "b/2.png": 1}))
    assert open_dataset(DataSection(source="folder", path=root, validation=0.5)).preprocessing == Preprocessing(
        224, 224, 3, IMAGENET_MEAN, (0.229, 0.224, 0.225), 0.875
    )
    small = open_dataset(DataSection(source="folder", path=root, validation=0.5, image_size=64, channels=1))
    assert (small.preprocessing.height, small.preprocessing.channels, len(small.preprocessing.mean)) == (64, 1, 1)


def test_the_preprocessing_of_pretrained_weights_holds():
    given = Preprocessing(16, 12, 3, (0.5,) * 3, (0.25,) * 3)
    dataset = open_dataset(DataSection(), given)
    # Square pictures are bent to that size, those of predictions too.
    assert dataset.preprocessing == replace(given, crop_mode="squash")
    assert dataset.train.read(np.arange(2), given, None).images.shape == (2, 16, 12, 3)


TWO_SIZES = Preprocessing(
    20, 20, 3, (0.5,) * 3, (0.25,) * 3, 1.0, "squash", "bicubic", train=TrainingSize(16, 12, 0.75)
)


def test_weights_of_two_sizes_are_trained_with_one_and_evaluated_with_the_other(write_images, ramp):
    given = replace(TWO_SIZES, crop_mode="center", interpolation="bilinear", train=TrainingSize(16, 12, 1.0))
    root = str(write_images({"a/1.png": 1, "a/2.png": 1, "b/1.png": 1, "b/2.png": 1}))
    files = open_dataset(DataSection(source="folder", path=root, validation=0.5), TWO_SIZES)
    held_out, own_evaluation = (
        open_dataset(DataSection(), TWO_SIZES),
        open_dataset(DataSection(source="idx", path=ramp), TWO_SIZES),
    )
    # Arrays are seen whole.
    bent = replace(given, crop_mode="squash")
    for dataset, expected in ((files, TWO_SIZES), (held_out, given), (own_evaluation, bent)):
        assert dataset.preprocessing == expected
        train = dataset.train.read(np.arange(2), expected.training, None).images
        evaluation = dataset.evaluation.read(np.arange(1), expected, None).images
        assert (train.shape, evaluation.shape) == ((2, 16, 12, 3), (1, 20, 20, 3))
    assert len(held_out.train) == 1438
    assert len(held_out.evaluation) == 359
    same = open_dataset(DataSection(), replace(TWO_SIZES, train=TrainingSize(20, 20, 1.0)))
    np.testing.assert_array_equal(held_out.evaluation.labels, same.evaluation.labels)
    np.testing.assert_array_equal(
        held_out.evaluation.read(np.arange(359), given, None).images,
        same.evaluation.read(np.arange(359), given, None).images,
    )


def test_what_a_recipe_says_of_pictures_holds_for_weights_too(write_images):
    root = str(write_images({"a/1.png": 1, "a/2.png": 1, "b/1.png": 1, "b/2.png": 1}))
    folder = {"source": "folder", "path": root, "validation": 0.5}
    seen = open_dataset(DataSection(**folder, image_size=24), TWO_SIZES).preprocessing
    assert seen == replace(TWO_SIZES, height=24, width=24, crop_pct=0.75, train=None)
    # As a resumed run asks: with the preprocessing that it was started with.
    assert open_dataset(DataSection(**folder, image_size=24), seen).preprocessing == seen
    asked = {"crop_pct": 0.5, "crop_mode": "border", "interpolation": "lanczos"}
    assert open_dataset(DataSection(**folder, **asked), TWO_SIZES).preprocessing == replace(TWO_SIZES, **asked)
    with pytest.raises(UserError, match=r"data\.channels is 1, and the weights see 3; leave it out"):
        open_dataset(DataSection(**folder, channels=1), TWO_SIZES)


def test_files_are_cropped_as_the_recipe_says(write_images):
    root = str(write_images({"a/1.png": 1, "a/2.png": 1, "b/1.png": 1, "b/2.png": 1}))
    options = {"source": "folder", "path": root, "validation": 0.5, "image_size": 4}
    assert open_dataset(DataSection(**options, crop_pct=1.0)).preprocessing.crop_pct == 1.0
    assert open_dataset(DataSection(**options)).preprocessing.crop_pct == 0.875


def test_the_share_that_a_crop_keeps_is_that_of_the_pixels(write_images):
    """A picture whose left quarter is white: a crop of half its side sees nothing of it."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :16] = 255
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    files = {f"{name}/{number}.png": stream.getvalue() for name in "ab" for number in range(2)}
    root = str(write_images(files))
    white = {}
    for share in (1.0, 0.75, 0.5):
        section = DataSection(source="folder", path=root, validation=0.5, image_size=32, crop_pct=share)
        dataset = open_dataset(section)
        images = dataset.evaluation.read(np.arange(1), dataset.preprocessing, None).images
        white[share] = float((images[0, :, :, 0] > 127).mean())
    # A quarter of the picture; an eighth of 48 pixels is a sixth less: (16 - 8) / 48.
    assert white == pytest.approx({1.0: 1 / 4, 0.75: 1 / 6, 0.5: 0}, abs=1 / 32)


def test_files_are_described_without_being_opened():
    section = DataSection(source="folder", path="no/such", image_size=64, channels=1, crop_pct=0.9)
    found = described_preprocessing(section)
    assert (found.height, found.width, found.channels, found.crop_pct) == (64, 64, 1, 0.9)
    assert described_preprocessing(DataSection(source="tfds:cifar10")).height == 224
    assert described_preprocessing(DataSection()) is None


def test_a_description_is_what_opening_finds(write_images):
    root = str(write_images({"a/1.png": 1, "a/2.png": 1, "b/1.png": 1, "b/2.png": 1}))
    section = DataSection(source="folder", path=root, validation=0.5, image_size=32)
    assert described_preprocessing(section) == open_dataset(section).preprocessing


def test_numbers_that_are_as_expected_are_fine():
    assert len(open_dataset(DataSection(expect_classes=10, expect_records=1438)).train) == 1438
    assert len(open_dataset(DataSection(classes=(3, 8), per_class=5, expect_classes=2, expect_records=10)).train) == 10


def test_a_quarantine_leaves_pixels_in_memory_what_they_are(tmp_path):
    (tmp_path / "list").write_text("digits #0\ndigits #5\n")
    dataset = open_dataset(DataSection(quarantine=str(tmp_path / "list")))
    assert dataset.in_memory
    assert dataset.preprocessing.shape == (8, 8, 1)
    assert len(dataset.train) + len(dataset.evaluation) == 1795


def test_a_quarantine_that_takes_a_whole_class_is_refused(tmp_path, write_images):
    root = (
        write_images({f"pictures/{part}/{name}/1.png": 1 for part in ("train", "val") for name in "abc"}) / "pictures"
    )
    (tmp_path / "list").write_text(f"{root}/train/b/1.png\n")
    with pytest.raises(UserError, match="class 'b' has no training records"):
        open_dataset(DataSection(source="folder", path=str(root), quarantine=str(tmp_path / "list")))


def test_few_of_each_class_part_no_groups(tmp_path, write_images):
    root = write_images({f"{i}.png": i for i in range(8)})
    rows = "".join(f"{i}.png,{'ab'[i % 2]},{i // 4}\n" for i in range(8))
    (root / "list.csv").write_text(f"path,label,group\n{rows}")
    with pytest.raises(UserError, match="would part the groups"):
        open_dataset(DataSection(source="manifest", path=str(root / "list.csv"), per_class=1))


# Sequences


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An archive of 40 sequences of 3 to 12 steps to train on, 6 of 2 to 14 to evaluate on; 2 features, 2 classes."""
    rng, arrays = np.random.default_rng(0), {"class_names": np.array(["up", "down"])}
    for prefix, lengths in (("", rng.permutation(np.arange(40) % 10 + 3)), ("test_", np.array([2, 3, 5, 8, 11, 14]))):
        arrays[f"{prefix}lengths"] = lengths
        arrays[f"{prefix}labels"] = np.arange(len(lengths)) % 2
        arrays[f"{prefix}values"] = rng.normal((2, -7), (1, 3), (lengths.sum(), 2))
    path = tmp_path_factory.mktemp("saved") / "some.npz"
    np.savez(path, **arrays)
    return str(path)


def test_sequences_are_padded_to_the_lengths_of_their_buckets(saved):
    dataset = open_dataset(DataSection(source="sequences", path=saved, buckets=4))
    assert len(dataset.padded) == 4
    # The longest of all is one of the evaluation's.
    assert dataset.padded[-1] == dataset.preprocessing.height == 14
    assert sum(len(bucket.records) for bucket in dataset.train_buckets) == 40
    assert sum(len(bucket.records) for bucket in dataset.evaluation_buckets) == 6
    assert dataset.evaluation_buckets[-1].records.tolist() == [5]
    assert open_dataset(DataSection(source="sequences", path=saved)).padded == (14,)


def test_sequences_are_normalised_by_what_is_trained_on(saved):
    dataset = open_dataset(DataSection(source="sequences", path=saved))
    with np.load(saved) as arrays:
        values = arrays["values"].astype(np.float32).astype(np.float64)
    assert dataset.preprocessing == Preprocessing(
        14, 2, 1, dataset.preprocessing.mean, dataset.preprocessing.std, sequence=SequenceFeatures()
    )
    np.testing.assert_allclose(dataset.preprocessing.mean, values.mean(0), rtol=1e-9)
    np.testing.assert_allclose(dataset.preprocessing.std, values.std(0), rtol=1e-9)
    assert dataset.class_names == ("up", "down")


def test_the_classes_and_the_quarantine_choose_among_sequences(saved, tmp_path):
    (tmp_path / "list").write_text(f"{saved} values #3\n")
    section = {"source": "sequences", "path": saved, "classes": (1, 0), "quarantine": str(tmp_path / "list")}
    dataset = open_dataset(DataSection(**section, buckets=2))
    assert dataset.class_names == ("down", "up")
    assert (len(dataset.train), len(dataset.evaluation)) == (39, 6)
    read = dataset.train.read(np.arange(39), dataset.preprocessing, None)
    assert read.lengths.tolist() == dataset.train.lengths.tolist()
    assert read.images.shape == (39, 14, 2, 1)


def test_pretrained_weights_keep_their_statistics_and_see_the_lengths_of_the_data(saved):
    given = Preprocessing(99, 2, 1, (0.5,) * 2, (0.25,) * 2, sequence=SequenceFeatures())
    dataset = open_dataset(DataSection(source="sequences", path=saved), given)
    assert dataset.preprocessing == replace(given, height=14)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            Preprocessing(9, 3, 1, (0.0,) * 3, (1.0,) * 3, sequence=SequenceFeatures()),
            "the weights expect 3 features a step, and sequences {} has 2; name other data",
        ),
        (
            Preprocessing(9, 2, 1, (0.5,), (0.25,)),
            "the weights expect pictures, and data.source=sequences has sequences; name other data",
        ),
        (
            Preprocessing(9, 2, 1, (0.0,) * 2, (1.0,) * 2, sequence=SequenceFeatures("log_mel", 8000, 2, 25.0, 10.0)),
            "the weights expect features of sound, and data.source=sequences has others; name other data",
        ),
    ],
)
def test_weights_of_another_kind_of_data_are_refused(saved, given, message):
    with pytest.raises(UserError) as raised:
        open_dataset(DataSection(source="sequences", path=saved), given)
    assert str(raised.value) == message.format(saved)


def test_weights_of_sequences_see_no_pictures():
    given = Preprocessing(9, 2, 1, (0.0,) * 2, (1.0,) * 2, sequence=SequenceFeatures())
    with pytest.raises(UserError, match=r"the weights expect sequences, and data\.source=digits has pictures"):
        open_dataset(DataSection(), given)


def test_no_thread_is_of_use_to_sequences_in_memory(saved):
    assert complaint(source="sequences", path=saved, workers=2) == (
        "data.workers has no effect with sequences, whose sequences are kept whole in memory; leave it out"
    )


def test_sound_is_heard_as_the_recipe_or_the_weights_say(tmp_path):
    for number in range(8):
        wave = np.random.default_rng(number).normal(0, 0.1, 800 + 160 * number)
        soundfile = pytest.importorskip("soundfile")
        soundfile.write(tmp_path / f"{'ab'[number % 2]}_{number}.wav", wave, 8000)
    section = DataSection(source="audio", path=str(tmp_path), audio=AudioSection(mels=6), test_match="_[67]")
    dataset = open_dataset(section)
    heard = SequenceFeatures("log_mel", 8000, 6, 25.0, 10.0)
    assert (len(dataset.train), len(dataset.evaluation)) == (6, 2)
    assert (dataset.preprocessing.shape, dataset.preprocessing.sequence) == ((24, 6, 1), heard)
    assert not dataset.in_memory
    given = replace(dataset.preprocessing, sequence=replace(heard, mels=4), width=4, mean=(0.0,) * 4, std=(1.0,) * 4)
    unsaid = section.model_copy(update={"audio": AudioSection()})
    assert open_dataset(unsaid, given).preprocessing == given
    assert open_dataset(unsaid, given).train.read(np.arange(2), given, None).images.shape == (2, 24, 4, 1)
    with pytest.raises(
        UserError, match=r"^data\.audio\.mels is 6, and the weights expect 4; leave it out, or train anew$"
    ):
        open_dataset(section, given)


# What is refused


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"source": "cifar"},
            f"data.source is 'cifar'; allowed: {SOURCES}",
        ),
        ({"path": "x"}, "data.path is 'x', and digits come with the package: leave it empty"),
        ({"source": "idx"}, "data.path is empty; the source idx needs a place: add data.path=FOLDER"),
        ({"source": "folder", "path": "no/such"}, "data.path no/such: there is no such folder"),
        ({"classes": (1, 10)}, "data.classes names class 10; digits has 0 to 9"),
        ({"cache": "some/folder"}, "data.cache has no effect with digits on this machine; leave it out"),
        ({"classes": (1, 2, 1)}, "data.classes names a class twice: 1, 2, 1"),
        ({"classes": (3,)}, "digits: only one class; a classifier needs two or more"),
        (
            {"crop_pct": 0.9},
            "data.crop_pct has no effect with digits, whose images are kept whole in memory; leave it out",
        ),
        (
            {"expect_classes": 1000},
            "data.expect_classes is 1,000 and there are 10 classes; check the source, or correct the number",
        ),
        (
            {"expect_records": 1797},
            "data.expect_records is 1,797 and there are 1,438 training records; "
            "check the source, or correct the number",
        ),
        ({"per_class": 1000}, "digits : too few records to hold any out for evaluation; add some"),
    ],
)
def test_a_wrong_data_section_is_refused(section, message):
    assert complaint(**section) == message


def test_a_class_between_the_labels_without_records_is_refused(write_idx):
    write_idx(RAMP[:6], [0, 1, 3, 0, 1, 3])
    path = str(write_idx(RAMP[:2], [0, 1], split="t10k"))
    assert complaint(source="idx", path=path) == "class '2' has no training records; check the labels"
    # Naming the classes that are there is the way round it.
    assert open_dataset(DataSection(source="idx", path=path, classes=(0, 1, 3))).class_names == ("0", "1", "3")


def test_classes_that_files_only_number_are_called_as_the_recipe_says(ramp):
    called = ("boot", "bag", "T-shirt/top", "coat")
    assert open_dataset(DataSection(source="idx", path=ramp, class_names=called)).class_names == called
    some = open_dataset(DataSection(source="idx", path=ramp, class_names=called, classes=(3, 1)))
    assert some.class_names == some.evaluation.class_names == ("coat", "bag")


def test_a_class_without_a_name_or_a_name_without_records_is_refused(ramp):
    assert complaint(source="idx", path=ramp, class_names=("boot", "bag", "coat")) == (
        "data.class_names names 3 classes, and the labels run to 3; name all"
    )
    assert complaint(source="idx", path=ramp, class_names=("boot", "bag", "coat", "shirt", "dress")) == (
        "class 'dress' has no training records; check the labels"
    )


def test_an_evaluation_part_may_lack_the_last_class(write_idx):
    write_idx(RAMP[:6], [0, 1, 2, 0, 1, 2])
    path = str(write_idx(RAMP[:2], [0, 1], split="t10k"))
    for section in ({}, {"classes": (2, 0)}, {"per_class": 1}):
        dataset = open_dataset(DataSection(source="idx", path=path, **section))
        assert dataset.evaluation.class_names == dataset.train.class_names


def test_evaluation_labels_outside_the_classes_are_refused(write_idx):
    write_idx(RAMP[:4], [0, 1, 0, 1])
    path = str(write_idx(RAMP[:2], [1, 2], split="t10k"))
    assert (
        complaint(source="idx", path=path) == "the evaluation labels run to class '2', which no training record carries"
    )


def test_a_set_of_one_class_is_refused(write_idx):
    write_idx(RAMP[:4], [0, 0, 0, 0])
    path = str(write_idx(RAMP[:2], [0, 0], split="t10k"))
    assert complaint(source="idx", path=path) == "idx: only one class; a classifier needs two or more"


def test_one_image_a_class_leaves_none_to_evaluate(write_images):
    root = str(write_images({"a/1.png": 1, "b/1.png": 2}))
    assert complaint(source="folder", path=root).endswith("too few records to hold any out for evaluation; add some")


# Data in one word


def test_one_word_names_data(write_idx, tmp_path):
    (tmp_path / "photos").mkdir()
    idx = str(write_idx(RAMP, LABELS, gz=True))
    assert data_settings("digits") == {"data.source": "digits", "data.path": ""}
    assert data_settings("tfds:mnist:train") == {"data.source": "tfds:mnist:train", "data.path": ""}
    assert data_settings("idx:some/where") == {"data.source": "idx", "data.path": "some/where"}
    assert data_settings("folder:C:/x") == {"data.source": "folder", "data.path": "C:/x"}
    assert data_settings(idx) == {"data.source": "idx", "data.path": idx}
    photos = str(tmp_path / "photos")
    assert data_settings(photos) == {"data.source": "folder", "data.path": photos}


def test_one_word_names_sequences(saved, tmp_path):
    assert data_settings("sequences:x.npz") == {"data.source": "sequences", "data.path": "x.npz"}
    assert data_settings(saved) == {"data.source": "sequences", "data.path": saved}
    for name, kind in (("ts/x_TRAIN.ts", "ts"), ("flat/a_1.wav", "audio"), ("deep/a/1.wav", "audio"), ("x.ts", "ts")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        place = str(tmp_path / name.partition("/")[0])
        assert data_settings(place) == {"data.source": kind, "data.path": place}


@pytest.mark.parametrize("word", ["no/such/folder", "idx:", "cifar:x"])
def test_a_word_that_names_no_data_is_refused(word):
    with pytest.raises(UserError, match=r"there is no such file or folder of a known kind; name a folder, a file \("):
        data_settings(word)


def test_a_long_tail_is_made_of_the_training_records_only():
    plain, tailed = open_dataset(DataSection()), open_dataset(DataSection(long_tail=20))
    counts = np.bincount(tailed.train.labels)
    assert counts[0] == np.bincount(plain.train.labels)[0]
    assert 15 <= counts[0] / counts[-1] <= 25 and (np.diff(counts) <= 0).all()
    np.testing.assert_array_equal(tailed.evaluation.labels, plain.evaluation.labels)
