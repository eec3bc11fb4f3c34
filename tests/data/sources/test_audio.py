"""Folders of recordings, as people have them."""

import copy
import io
import math
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pcls.data.decode import DecodeError
from pcls.data.preprocessing import Preprocessing, SequenceFeatures
from pcls.data.sources import audio
from pcls.data.sources.audio import log_mel, natural_order, open_audio, steps_of, wav_header
from pcls.errors import UserError

FSDD = Path(__file__).parents[4] / "shared" / "data" / "fsdd" / "recordings"
FEATURES = SequenceFeatures("log_mel", 8000, 20, 25.0, 10.0)
FLOOR = math.log(2**-23)


def tone(samples=800, rate=8000, hertz=1000.0, amplitude=0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)).astype(np.float32)


def wav(samples=800, rate=8000, subtype="PCM_16", form="WAV", **of_tone) -> bytes:
    """A file; `samples`: of a tone, or [n] or [n, channels] themselves."""
    wave = tone(samples, rate, **of_tone) if isinstance(samples, int) else np.asarray(samples)
    stream = io.BytesIO()
    soundfile.write(stream, wave, rate, subtype=subtype, format=form)
    return stream.getvalue()


def changed(data: bytes, place: int, form: str, *values: int) -> bytes:
    packed = struct.pack(f"<{form}", *values)
    return data[:place] + packed + data[place + len(packed) :]


def refusal(data: bytes, features=FEATURES) -> str:
    with pytest.raises(DecodeError) as raised:
        log_mel(data, features)
    return str(raised.value)


@pytest.fixture
def write_wavs(tmp_path):
    """Writes recordings of so many samples: `write_wavs({"cat/1.wav": 800, "dog/2.wav": b"raw bytes"})`."""

    def write(files: dict[str, int | bytes]) -> Path:
        for name, content in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(wav(content) if isinstance(content, int) else content)
        return tmp_path

    return write


def complaint(root, features=FEATURES, test_match="") -> str:
    with pytest.raises(UserError) as raised:
        open_audio(root, features, test_match)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value).replace(str(root), "ROOT")


def read_all(source):
    return source.read(np.arange(len(source)), Preprocessing(int(source.lengths.max()), 20, 1, (), ()), None)


# Features.


def test_a_tone_is_loudest_in_the_filter_around_its_frequency():
    # Kaldi's filters from 20 Hz to half the rate, equally far apart in mels = 1127 ln(1 + Hz / 700).
    mels = np.linspace(*(1127 * math.log(1 + hertz / 700) for hertz in (20, 4000)), 22)[1:-1]
    for number in (4, 10, 18):
        hertz = 700 * (math.exp(mels[number] / 1127) - 1)
        assert (log_mel(wav(hertz=hertz), FEATURES).argmax(1) == number).all()


def test_features_are_those_of_kaldi_by_another_computation():
    wave = np.random.default_rng(0).normal(0, 0.1, 2000).astype(np.float32)
    found = log_mel(wav(wave, subtype="FLOAT"), FEATURES)
    # A frame whole inside the recording: its middle is that of hop 9.
    frame = wave[9 * 80 + 40 - 100 :][:200].astype(np.float64)
    frame -= frame.mean()
    frame[1:] -= 0.97 * frame[:-1]
    frame[0] *= 1 - 0.97
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 199)) ** 0.85
    power = np.abs(np.fft.rfft(frame * window, 256)) ** 2
    mel = 1127 * np.log(1 + np.arange(129) * 8000 / 256 / 700)
    ends = np.linspace(1127 * math.log(1 + 20 / 700), 1127 * math.log(1 + 4000 / 700), 22)
    slope = ends[1] - ends[0]
    filters = np.clip(1 - np.abs(mel - ends[1:-1, None]) / slope, 0, None)
    assert found[9] == pytest.approx(np.log(filters @ power), abs=1e-3)


def test_twice_the_amplitude_is_four_times_the_energy():
    quiet, loud = (log_mel(wav(subtype="FLOAT", amplitude=amplitude), FEATURES) for amplitude in (0.25, 0.5))
    assert loud[:, 5] - quiet[:, 5] == pytest.approx(math.log(4), abs=1e-4)


def test_digital_silence_is_the_floor():
    silent = log_mel(wav(np.zeros(800, np.float32)), FEATURES)
    assert silent.shape == (10, 20)
    assert silent == pytest.approx(FLOOR)


@pytest.mark.parametrize(
    ("subtype", "form", "close"),
    [
        *[("PCM_U8", "WAV", 0.2), ("PCM_24", "WAV", 1e-3), ("PCM_32", "WAV", 1e-3), ("FLOAT", "WAV", 1e-3)],
        *[("DOUBLE", "WAV", 1e-3), ("PCM_16", "WAVEX", 1e-6), ("PCM_24", "WAVEX", 1e-3)],
    ],
)
def test_samples_of_any_width_give_the_same_features(subtype, form, close):
    expected = log_mel(wav(), FEATURES)
    found = log_mel(wav(subtype=subtype, form=form), FEATURES)
    assert found.shape == expected.shape
    # Where the tone is: elsewhere there is only the noise of rounding.
    assert found[:, 7:9] == pytest.approx(expected[:, 7:9], abs=close)


def test_channels_are_averaged():
    left, right = tone(hertz=500), tone(hertz=2000)
    both = log_mel(wav(np.stack([left, right], axis=1), subtype="FLOAT"), FEATURES)
    assert both == pytest.approx(log_mel(wav((left + right) / 2, subtype="FLOAT"), FEATURES), abs=1e-4)


def test_another_rate_is_resampled_and_loses_nothing_below_half_the_lower():
    expected = log_mel(wav(8000), FEATURES)
    for rate in (16_000, 44_100, 48_000):
        found = log_mel(wav(rate, rate), FEATURES)
        assert found.shape == expected.shape == (100, 20)
        assert found[5:-5, 7:9] == pytest.approx(expected[5:-5, 7:9], abs=0.02)


@pytest.mark.parametrize("rate", [8000, 11_025, 12_000, 22_050, 44_100, 96_000])
def test_steps_are_known_from_the_header_alone(rate):
    for to, hop in ((8000, 10.0), (22_050, 12.5), (44_100, 7.0)):
        features = SequenceFeatures("log_mel", to, 4, 25.0, hop)
        for samples in (rate // 100, rate // 40 + 1, 1000, 1838, 4411):
            data = wav(samples, rate)
            header = wav_header(io.BytesIO(data), len(data))
            assert (header.samples, header.rate, header.channels) == (samples, rate, 1)
            assert len(log_mel(data, features)) == steps_of(header, features)


# Bad recordings.


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>", "not a wav file, 6 bytes"),
        (b"RIFF", "not a wav file, 4 bytes"),
        (wav(form="FLAC"), "not a wav file, "),
        (wav()[:30], "cut short inside its header"),
        (wav()[:40], "cut short inside its header"),
        (wav()[:44], "cut short: its header claims 1,600 bytes of samples, and 0 follow"),
        (wav()[:1000], "cut short: its header claims 1,600 bytes of samples, and 956 follow"),
        (wav(np.zeros(0)), "holds no samples"),
        (wav(39), "39 samples at 8,000 Hz, less than half a step"),
        (changed(wav(), 34, "H", 99), "File contains data in an unimplemented format."),
        (wav(subtype="ULAW"), "encoding 7; PCM (1) or float (3) is needed"),
        (changed(wav(), 40, "I", 0xFFFFFFF0), "cut short: its header claims 4,294,967,280 bytes"),
        (changed(wav(), 16, "I", 0xFFFFFFF0), "cut short inside its header"),
        (changed(wav(), 22, "H", 0), "0 channels in 2 bytes"),
        (changed(wav(), 22, "H", 5), "5 channels in 2 bytes"),
        (changed(wav(), 24, "I", 0), "0 Hz; 1,000 to 768,000 are read"),
        (changed(wav(), 24, "I", 2**31), "2,147,483,648 Hz; "),
        (b"RIFF\0\0\0\0WAVEdata\x02\0\0\0\0\0", "no format before its samples"),
        (b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 300, "no samples after 256 other chunks"),
        (wav(np.full(800, np.nan), subtype="FLOAT"), "holds a sample that is not finite, or beyond 2,147,483,648"),
        (wav(np.full(800, np.inf), subtype="FLOAT"), "holds a sample that is not finite"),
        (wav(np.full(800, 1e30), subtype="FLOAT"), "holds a sample that is not finite"),
    ],
)
def test_a_recording_that_cannot_be_decoded_has_a_reason(data, reason):
    assert refusal(data).startswith(reason)


def test_memory_is_not_taken_for_more_samples_than_are_bearable(monkeypatch):
    monkeypatch.setattr(audio, "MAX_SAMPLES", 10_000)
    assert refusal(wav(10_001)) == "10,001 samples, more than 10,000"
    assert refusal(wav(np.zeros((6000, 2)))) == "12,000 samples, more than 10,000"
    assert refusal(wav(2000, 1000)) == "16,000 samples at 8,000 Hz, more than 10,000"


def test_chunks_before_and_after_the_samples_are_passed_over():
    data = wav()
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    assert np.array_equal(log_mel(data[:36] + odd + data[36:] + odd, FEATURES), log_mel(data, FEATURES))


def test_what_was_streamed_and_does_not_know_its_end_is_read_to_the_end():
    data = wav()
    assert np.array_equal(log_mel(changed(data, 40, "I", 0xFFFFFFFF), FEATURES), log_mel(data, FEATURES))


# Folders.


def test_each_folder_is_a_class_in_natural_order(write_wavs):
    root = write_wavs({"10/a.wav": 800, "9/b/deep.WAV": 1600, "x/.h.wav": 1, ".git/x.wav": 1, "x/c.wav": 80})
    write_wavs({"x/notes.txt": b"", "9/.cache/1.wav": 1})
    source, evaluation = open_audio(root, FEATURES)
    assert evaluation is None
    assert (source.class_names, source.features) == (("9", "10", "x"), 20)
    assert (source.labels.tolist(), source.lengths.tolist()) == ([0, 1, 2], [20, 10, 1])
    read = read_all(source)
    assert read.images.shape == (3, 20, 20, 1)
    assert read.decoded.all()
    assert not read.images[1, 10:].any()
    assert source.name(0) == str(root / "9/b/deep.WAV")
    assert (source.sequence, source.notice) == (FEATURES, "")


def test_digits_sort_by_their_number():
    names = ["10", "9", "b2", "b10", "a", "01", "1", "b2a"]
    assert sorted(names, key=natural_order) == ["01", "1", "9", "10", "a", "b2", "b2a", "b10"]


def test_files_side_by_side_have_their_label_before_the_first_joint(write_wavs):
    root = write_wavs({f"{label}_ann_{index}.wav": 800 for label in (2, 10) for index in range(3)})
    train, evaluation = open_audio(root, FEATURES, r"_0\.wav$")
    assert train.class_names == evaluation.class_names == ("2", "10")
    assert (train.labels.tolist(), evaluation.labels.tolist()) == ([0, 0, 1, 1], [0, 1])
    assert [Path(evaluation.name(record)).name for record in (0, 1)] == ["2_ann_0.wav", "10_ann_0.wav"]


def test_a_part_beside_train_is_evaluated_on(write_wavs):
    root = write_wavs({"train/a/1.wav": 800, "train/b/1.wav": 800, "test/a/1.wav": 80, "test/b/1.wav": 160})
    train, evaluation = open_audio(root, FEATURES)
    assert (len(train), evaluation.lengths.tolist()) == (2, [1, 2])
    assert complaint(root, test_match="1") == "data.test_match has no effect: ROOT/test is evaluated on; leave it out"


@pytest.mark.parametrize(
    ("files", "test_match", "message"),
    [
        ({}, "", "ROOT: no .wav files; one folder a class, or files named LABEL_NAME.wav, are needed"),
        ({"a/1.mp3": b""}, "", "ROOT: no .wav files; "),
        ({"a/1.wav": 800}, "", "ROOT: only one class, 'a'; a classifier needs two or more"),
        ({"a/1.wav": 800, "b/x": b""}, "", "ROOT: no .wav files in the class folder 'b'; fill or remove it"),
        ({"a_1.wav": 800, "b/1.wav": 800}, "", "ROOT: .wav files both beside each other and in the folder 'b'; one or"),
        ({"a.wav": 800, "b_1.wav": 800}, "", "ROOT/a.wav: no label before a _ in its name; files side by side are"),
        ({"_1.wav": 800, "b_1.wav": 800}, "", "ROOT/_1.wav: no label before a _"),
        ({"a/1.wav": 8, "b/1.wav": 8}, "2", "data.test_match '2' is found in no path below ROOT, as a/1.wav"),
        ({"a/1.wav": 8, "b/1.wav": 8}, "b/", "data.test_match 'b/' leaves no recording of the class 'b' to train on"),
        (
            {"train/a/1.wav": 8, "train/b/1.wav": 8, "val/a/1.wav": 8, "val/c/1.wav": 8},
            "",
            "ROOT: only train has 'b', only val has 'c'; both need the same classes: rename",
        ),
    ],
)
def test_a_folder_that_cannot_be_learned_from_is_refused(write_wavs, files, test_match, message):
    assert complaint(write_wavs(files), test_match=test_match).startswith(message)


def test_recordings_that_cannot_be_read_have_one_step_and_a_reason(write_wavs):
    root = write_wavs({"set/a/1.wav": 800, "set/b/1.wav": 800, "set/b/2.wav": wav()[:30], "out.wav": 800}) / "set"
    os.mkfifo(root / "b" / "3.wav")
    (root / "b" / "4.wav").symlink_to("../../out.wav")
    (root / "b" / "5.wav").symlink_to("../a/1.wav")
    (root / "b" / "6.wav").symlink_to("6.wav")
    (root / "b" / "7.wav").mkdir()
    with (root / "b" / "8.wav").open("wb") as file:
        file.write(changed(wav(), 40, "I", 0xFFFFFFFF))
        file.truncate(1 << 40)
    source, _ = open_audio(root, FEATURES)
    assert source.lengths.tolist() == [10, 10, 1, 1, 1, 10, 1, 1]
    read = read_all(source)
    assert read.decoded.tolist() == [True, True, False, False, False, True, False, False]
    preprocessing = Preprocessing(10, 20, 1, (), ())
    reasons = [source.failure(record, preprocessing) for record in (2, 3, 4, 6, 7)]
    assert reasons[:3] == [
        "cannot be read (cut short inside its header)",
        "cannot be read (is no regular file)",
        "cannot be read (is a link that leads out of the folder)",
    ]
    assert reasons[3].startswith("cannot be read (")
    assert reasons[4] == "cannot be read (1,099,511,627,776 bytes, more than 1,073,741,824)"


def test_a_recording_that_changed_since_it_was_opened_is_not_decoded(write_wavs):
    root = write_wavs({"a/1.wav": 800, "b/1.wav": 800})
    source, _ = open_audio(root, FEATURES)
    write_wavs({"a/1.wav": 1600})
    assert read_all(source).decoded.tolist() == [False, True]
    assert source.failure(0, Preprocessing(10, 20, 1, (), ())) == "has changed: the shape [20, 20] instead of [10, 20]"


def test_recordings_of_another_rate_are_told_once(write_wavs):
    root = write_wavs({"a/1.wav": wav(1600, 16_000), "a/2.wav": 800, "b/1.wav": wav(4410, 44_100), "b/2.wav": 800})
    source, _ = open_audio(root, FEATURES)
    assert source.lengths.tolist() == [10] * 4
    assert source.notice == (
        "2 of 4 recordings are resampled to 8,000 Hz (data.audio.sample_rate); the first is a/1.wav, of 16,000 Hz"
    )


def test_without_a_rate_that_of_most_recordings_is_taken(write_wavs):
    root = write_wavs({"a/1.wav": wav(1600, 16_000), "a/2.wav": b"", "b/1.wav": wav(1600, 16_000), "b/2.wav": 800})
    free = SequenceFeatures("log_mel", 0, 20, 25.0, 10.0)
    source, _ = open_audio(root, free)
    assert source.sequence == SequenceFeatures("log_mel", 16_000, 20, 25.0, 10.0)
    assert source.notice.startswith("1 of 4 recordings are resampled to 16,000 Hz")
    for name in ("a/1.wav", "b/1.wav", "b/2.wav"):
        (root / name).write_bytes(b"")
    assert complaint(root, free) == "ROOT: not one of 4 recordings has a wav header that can be read"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_rate": 500}, "data.audio.sample_rate is 500; 1,000 to 768,000 Hz are allowed"),
        ({"window_ms": 0.1}, "data.audio.window_ms is 0.1; at 8,000 Hz 0.25 to 131,072 ms are allowed, 2 to 1,048,576"),
        ({"window_ms": 1e9}, "data.audio.window_ms is 1e+09; "),
        ({"hop_ms": 0.01}, "data.audio.hop_ms is 0.01; at 8,000 Hz 0.125 to 131,072 ms are allowed, 1 to 1,048,576"),
        ({"mels": 128}, "data.audio.mels is 128; 3 or more are needed, and a window of 25 ms at 8,000 Hz cannot tell"),
        ({"mels": 2}, "data.audio.mels is 2; 3 or more are needed"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(write_wavs, settings, message):
    features = SequenceFeatures(**{**FEATURES.__dict__, **settings})
    assert complaint(write_wavs({"a/1.wav": 800, "b/1.wav": 800}), features).startswith(message)


def test_a_missing_library_is_named(write_wavs, monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    message = complaint(write_wavs({"a/1.wav": 800, "b/1.wav": 800}))
    assert message.startswith("recordings need more packages (")
    assert message.endswith("): pip install 'pcls[audio]'")


# Keeping.


def test_threads_and_other_processes_read_the_same(write_wavs):
    root = write_wavs({f"{label}/{index}.wav": 800 + 80 * index for label in "ab" for index in range(8)})
    source, _ = open_audio(root, FEATURES)
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(read_all, [source] * 8)
    for other in (*others, read_all(copy.deepcopy(source))):
        assert np.array_equal(other.images, first.images)


def test_features_of_small_sets_are_computed_once(write_wavs, monkeypatch):
    root = write_wavs({"a/1.wav": 800, "b/1.wav": 800})
    computed = []
    monkeypatch.setattr(audio, "log_mel", lambda *args: computed.append(args) or log_mel(*args))
    for limit, times in ((20 * 20 * 4, 2), (20 * 20 * 4 - 1, 4)):
        monkeypatch.setattr(audio, "MAX_KEPT_BYTES", limit)
        source, _ = open_audio(root, FEATURES)
        computed.clear()
        for _ in range(2):
            assert read_all(source).decoded.all()
        assert len(computed) == times


def test_what_is_kept_is_not_sent_to_another_process(write_wavs, monkeypatch):
    source, _ = open_audio(write_wavs({"a/1.wav": 800, "b/1.wav": 800}), FEATURES)
    read_all(source)
    sent = copy.deepcopy(source)
    monkeypatch.setattr(audio, "log_mel", lambda *args: np.zeros((10, 20), np.float32))
    assert not read_all(sent).images.any()
    assert read_all(source).images.any()


@pytest.mark.skipif(not FSDD.is_dir(), reason="../shared/data/fsdd is not there")
def test_the_spoken_digits_have_the_steps_that_their_headers_tell():
    train, evaluation = open_audio(FSDD, FEATURES, r"_[0-4]\.wav$")
    assert train.class_names == tuple("0123456789")
    assert np.bincount(train.labels).tolist() == [270] * 10
    assert np.bincount(evaluation.labels).tolist() == [30] * 10
    assert (train.notice, train.lengths.min(), train.lengths.max()) == ("", 14, 228)
    # A record whose features have other steps is not decoded.
    assert read_all(train).decoded.all()
    assert read_all(evaluation).decoded.all()
