import io
import os
import threading
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

import pcls
from pcls.data.dataset import open_dataset
from pcls.data.decode import DecodeError
from pcls.data.preprocessing import Preprocessing, SequenceFeatures
from pcls.data.sources.audio import log_mel
from pcls.data.workers import usable_cores
from pcls.deliver import classifier as module
from pcls.deliver.classifier import Classifier
from pcls.deliver.inputs import reading_threads
from pcls.models.registry import define_model
from pcls.pretrained.bundle import Bundle
from pcls.run.evaluate import read_evaluation, saved_preprocessing
from pcls.run.folder import RunFolder


@pytest.fixture(scope="module")
def classifier(finished_run):
    return pcls.load(finished_run)


@pytest.fixture(scope="module")
def held_out(finished_run):
    """[359, 10, 10, 1] pixels that the run was evaluated on."""
    folder = RunFolder(finished_run)
    preprocessing = saved_preprocessing(folder)
    source = open_dataset(folder.recipe().data, preprocessing).evaluation
    return source.read(np.arange(len(source)), preprocessing, None).images


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_predictions_are_those_of_the_evaluation_on_the_same_pixels(classifier, held_out, finished_run):
    _, expected = read_evaluation(RunFolder(finished_run))
    found = classifier.predict(list(held_out))
    assert [int(answer.label) for answer in found] == expected.predicted.tolist()
    np.testing.assert_allclose([answer.probability for answer in found], expected.probability, rtol=1e-5)


def test_an_answer_holds_the_probabilities_of_all_classes(classifier, held_out):
    (answer,) = classifier.predict(held_out[0])
    assert len(answer.probabilities) == len(classifier.class_names) == 10
    assert sum(answer.probabilities) == pytest.approx(1, abs=1e-6)
    assert answer.probability == max(answer.probabilities)
    assert classifier.class_names[int(np.argmax(answer.probabilities))] == answer.label
    assert answer.error == ""


def test_a_file_and_its_pixels_get_the_same_answer(classifier, held_out, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(held_out[number, ..., 0]))
    files = classifier.predict(tmp_path / f"{number}.png" for number in range(3))
    arrays = classifier.predict([held_out[number] for number in range(3)])
    assert [answer.path for answer in files] == [str(tmp_path / f"{number}.png") for number in range(3)]
    assert [answer.path for answer in arrays] == ["#0", "#1", "#2"]
    assert [answer.probabilities for answer in files] == [answer.probabilities for answer in arrays]


def test_the_order_is_kept_beyond_one_batch(classifier, held_out):
    everything = classifier.predict(list(held_out[:70]))
    backwards = classifier.predict(list(held_out[69::-1]))
    assert [answer.label for answer in everything] == [answer.label for answer in backwards][::-1]
    assert [answer.path for answer in everything] == [f"#{place}" for place in range(70)]


def test_arrays_of_other_sizes_and_colours_are_brought_to_size(classifier, held_out):
    gray = np.kron(held_out[0, ..., 0], np.ones((2, 2), np.uint8))
    colour = np.repeat(gray[..., None], 3, axis=2)
    labels = {answer.label for answer in classifier.predict([gray, gray[..., None], colour, gray[:, ::-1][:, ::-1]])}
    assert labels == {classifier.predict(held_out[0])[0].label}


@pytest.mark.faults
def test_unreadable_files_are_reported_in_their_place_and_disturb_no_other(classifier, held_out, tmp_path):
    good = png(held_out[0, ..., 0])
    for name, content in (("a.png", good), ("cut.png", good[:50]), ("text.png", b"hello"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
    # A pipe is never opened: whoever reads it would wait without end.
    os.mkfifo(tmp_path / "pipe.png")
    names = ["a.png", "cut.png", "text.png", "empty.png", "nowhere.png", ".", "pipe.png", "a.png"]
    found = classifier.predict([tmp_path / name for name in names])
    # Two: one image alone is answered at another size, and its last digits differ.
    expected, _ = classifier.predict(list(held_out[:2]))
    for answer in (found[0], found[-1]):
        assert (answer.label, answer.probabilities, answer.error) == (expected.label, expected.probabilities, "")
    for answer, words in zip(
        found[1:-1],
        (
            "",
            "not a JPEG, PNG or WebP image, 5 bytes",
            "the file is empty",
            "No such file",
            "is no regular file",
            "is no regular file",
        ),
        strict=True,
    ):
        assert (answer.label, answer.probability, answer.probabilities) == ("", 0.0, ())
        assert answer.error
        assert words in answer.error


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((8, 8), np.float32),
        np.zeros(8, np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 1), np.uint8),
        np.zeros((0, 8), np.uint8),
        np.zeros((8, 0, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_images_say_what_is_needed(classifier, held_out, picture):
    bad, good = classifier.predict([picture, held_out[0]])
    assert bad.error == (f"{picture.dtype}{list(picture.shape)}; uint8 [height, width] or [height, width, 1 or 3]")
    assert good.error == ""


def test_an_array_of_several_is_several(classifier, held_out):
    assert classifier.predict(held_out[:3]) == classifier.predict(list(held_out[:3]))


def test_a_picture_that_pillow_has_opened_is_one(classifier, held_out, tmp_path):
    (tmp_path / "a.png").write_bytes(png(held_out[0][..., 0]))
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (from_file,) = classifier.predict(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert classifier.predict(picture)[0].probabilities == from_file.probabilities
    with Image.open(tmp_path / "cut.png") as picture:
        assert classifier.predict([picture])[0].error


@pytest.mark.parametrize(
    "inputs",
    [np.zeros((10, 10, 1), np.uint8), [np.zeros((10, 10, 1), np.float32)], [np.zeros((1, 1, 1), np.uint8)]],
    ids=["one in place of several", "floats", "one pixel"],
)
def test_who_has_batches_of_his_own_is_told_of_what_read_would_not_give(classifier, inputs):
    with pytest.raises(ValueError, match=r"input 0 is .*, and uint8\[10, 10, 1\] is needed, as"):
        classifier.probabilities(inputs)


def test_tiny_files_of_tiny_images_are_read_by_one_thread(classifier, held_out):
    tiny, large = classifier.preprocessing, replace(classifier.preprocessing, height=224, width=224)
    several = max(2, usable_cores())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pcls.deliver.inputs.usable_cores", lambda: several)
        picture = png(held_out[0][..., 0])
        assert reading_threads([picture, "missing.png"], tiny) == 1
        assert reading_threads([picture], large) == several
        assert reading_threads([bytes(5000), picture], tiny) == several


def test_nothing_asked_is_nothing_answered(classifier):
    assert classifier.predict([]) == []


def test_one_compilation_serves_one_image_and_another_all_other_numbers(finished_run, held_out, monkeypatch):
    traced, normalise = [], module.normalise

    def counting(*arguments):
        traced.append(1)
        return normalise(*arguments)

    monkeypatch.setattr(module, "normalise", counting)
    classifier = pcls.load(finished_run)
    for count in (1, 2, 33, 64, 100):
        assert len(classifier.predict(list(held_out[:count]))) == count
        assert len(traced) == (1 if count == 1 else 2)


def test_one_image_alone_gets_the_same_answer(classifier, held_out):
    together = classifier.predict(list(held_out[:2]))[0]
    alone = classifier.predict(held_out[0])[0]
    assert alone.label == together.label
    np.testing.assert_allclose(alone.probabilities, together.probabilities, rtol=1e-5)


def test_who_has_batches_of_his_own_gets_the_same_answers_at_any_size(classifier, held_out):
    inputs = [classifier.read(png(pixels[..., 0])) for pixels in held_out[:3]]
    assert [(one.shape, one.dtype) for one in inputs] == [((10, 10, 1), np.uint8)] * 3
    expected = classifier.predict(list(held_out[:3]))
    for size in (3, 8):
        rows = classifier.probabilities(inputs, size)
        assert (rows.shape, rows.dtype) == ((3, 10), np.float64)
        np.testing.assert_allclose(rows, [answer.probabilities for answer in expected], rtol=1e-5)
    assert classifier.prediction("#0", classifier.probabilities(inputs)[0]) == expected[0]
    with pytest.raises(ValueError, match="3 inputs in a batch of 2"):
        classifier.probabilities(inputs, 2)


def test_what_was_compiled_ahead_is_not_compiled_again(finished_run, held_out, monkeypatch):
    traced, normalise = [], module.normalise

    def counting(*arguments):
        traced.append(1)
        return normalise(*arguments)

    monkeypatch.setattr(module, "normalise", counting)
    classifier = pcls.load(finished_run)
    classifier.compile(4)
    classifier.compile(32)
    classifier.probabilities([classifier.read(held_out[0])], 4)
    classifier.predict(list(held_out[:2]))
    assert len(traced) == 2


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>", "not a JPEG, PNG or WebP image, 6 bytes"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), ""),
        ("/nowhere/at/all.png", "No such file or directory"),
        ("a\0b.png", "cannot be read"),
    ],
)
def test_the_reason_why_nothing_can_be_read_holds_no_path(classifier, picture, reason):
    with pytest.raises(DecodeError) as caught:
        classifier.read(picture)
    assert str(caught.value) == reason or not reason
    assert not {"/", "0x"} & set(str(caught.value).split())
    assert "nowhere" not in str(caught.value)


def test_images_are_taken_as_they_are_needed(classifier, held_out):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield held_out[0]

    answers = classifier.stream(endless())
    assert next(answers).path == "#0"
    assert len(taken) == 64
    # Nothing is left running.
    answers.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pcls-read")]


def test_a_bundle_alone_is_enough(finished_run, held_out, classifier):
    alone = pcls.load(finished_run / "bundle")
    assert alone.predict(held_out[0]) == classifier.predict(held_out[0])


# Sequences


def sequence_classifier(model: str, features: SequenceFeatures, width: int, **options) -> Classifier:
    """Untrained: of 3 classes, trained at 6 steps."""
    definition = define_model(model, height=6, width=width, channels=1, classes=3, **options)
    mean, std = (1.0,) * width, (2.0,) * width
    preprocessing = Preprocessing(6, width, 1, mean, std, sequence=features)
    params, stats = definition.init(jax.random.key(0))
    return Classifier(Bundle(model, ("a", "b", "c"), preprocessing, "float32", params, stats, {}, options=options))


@pytest.fixture(scope="module")
def reader():
    return sequence_classifier("rnn", SequenceFeatures(), 2, hidden=4)


def numbers(steps: int) -> np.ndarray:
    return np.random.default_rng(steps).normal(1, 2, (steps, 2)).astype(np.float32)


def test_answers_do_not_depend_on_what_a_sequence_is_padded_to(reader):
    alone = reader.predict(numbers(4))[0].probabilities
    # Beside a longer one than it was trained with, it is padded to the next multiple.
    beside, longer = reader.predict([numbers(4), numbers(13)])
    np.testing.assert_allclose(beside.probabilities, alone, rtol=1e-5)
    np.testing.assert_allclose(reader.predict(numbers(13))[0].probabilities, longer.probabilities, rtol=1e-5)
    assert np.abs(np.subtract(alone, longer.probabilities)).max() > 1e-3


def test_a_sequence_may_lie_in_a_file(reader, tmp_path):
    np.save(tmp_path / "a.npy", numbers(5).astype(np.float64))
    found, expected = reader.predict([tmp_path / "a.npy", numbers(5)])
    assert found.path == str(tmp_path / "a.npy")
    assert found.probabilities == expected.probabilities


@pytest.mark.faults
def test_sequences_that_cannot_be_read_are_told_in_their_place(reader, tmp_path):
    np.save(tmp_path / "good.npy", numbers(3))
    whole = (tmp_path / "good.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-4])
    (tmp_path / "text.npy").write_bytes(b"1,2,3")
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "objects.npy", np.array([{}, None]))
    (tmp_path / "header.npy").write_bytes(whole.replace(b"'descr'", b"[[[[[['"))
    os.mkfifo(tmp_path / "pipe.npy")
    names = ("good", "cut", "text", "empty", "objects", "header", "pipe", "absent")
    arrays = [
        np.zeros((0, 2)),
        np.zeros((4, 3)),
        np.full((3, 2), np.inf),
        np.full((2, 2), 1e300),
        np.array([["a", "b"]]),
    ]
    answers = reader.predict([*(tmp_path / f"{name}.npy" for name in names), *arrays])
    errors = [answer.error for answer in answers]
    assert errors[0] == ""
    assert all(error.startswith("no .npy file, in which numpy.save puts numbers [steps, 2] (") for error in errors[1:6])
    assert errors[6:] == [
        "is no regular file",
        "No such file or directory",
        "float64[0, 2]; numbers [steps, 2] are needed",
        "float64[4, 3]; numbers [steps, 2] are needed",
        "holds a value that is not finite",
        "holds a value that is not finite",
        "<U1[1, 2]; numbers [steps, 2] are needed",
    ]
    np.testing.assert_allclose(answers[0].probabilities, reader.predict(numbers(3))[0].probabilities, rtol=1e-5)


def test_a_model_of_one_length_sees_no_longer_sequence():
    one_length = sequence_classifier("rnn28", SequenceFeatures(), 2)
    short, long = one_length.predict([numbers(6), numbers(7)])
    assert short.error == ""
    assert long.error == "7 steps; a prediction takes 6 at most"


def test_sound_is_heard_as_in_training(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    features = SequenceFeatures("log_mel", 8000, 5, 25.0, 10.0)
    listener = sequence_classifier("rnn", features, 5, hidden=4)
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 640), 8000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:99])
    heard, cut, given = listener.predict(
        [tmp_path / "a.wav", tmp_path / "cut.wav", log_mel((tmp_path / "a.wav").read_bytes(), features)]
    )
    assert heard.probabilities == given.probabilities
    assert cut.error.startswith("cut short")
