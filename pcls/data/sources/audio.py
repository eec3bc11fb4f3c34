"""Folders of recordings (`.wav`), as sequences of logarithmic mel energies."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pcls.data.decode import DecodeError
from pcls.data.preprocessing import SequenceFeatures
from pcls.data.sources.folder import (
    MAX_FILE_BYTES,
    ClassFiles,
    FileStore,
    check_same_classes,
    class_folders,
    numbered_files,
    set_parts,
    shown,
)
from pcls.data.sources.sequences import SequenceSource
from pcls.data.sources.source import Stored, Unreadable
from pcls.errors import UserError, first_line

EXTENSION = ".wav"
# 512 MiB as float32: two hours of one channel at 16 kHz.
MAX_SAMPLES = 1 << 27
MIN_RATE, MAX_RATE = 1_000, 768_000
MAX_CHUNKS = 256
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
# What a program writes that streams, and so does not know how much will follow.
UNKNOWN_BYTES = 0xFFFFFFFF
# 32-bit integers kept as floats; NaN is not below it, and from 1e18 on energies are infinite.
MAX_AMPLITUDE = 1 << 31
MAX_WINDOW = 1 << 20
# Sets whose features are not larger are kept once computed, which takes a millisecond for each second of sound.
MAX_KEPT_BYTES = 1 << 28


class WavHeader(NamedTuple):
    """What is known of a recording before it is decoded.

    Attributes:
      samples: of each channel.
      rate: in Hz.
      channels: they are averaged.
    """

    samples: int
    rate: int
    channels: int


def wav_header(file: BinaryIO, size: int) -> WavHeader:
    """Reads the header of a wav file: PCM of 8 to 32 bits, or float.

    Args:
      file: at its start.
      size: of the whole, in bytes.

    Raises:
      DecodeError: it is none, is damaged, or claims what the file does not hold.
    """
    if not size:
        raise DecodeError("the file is empty")
    begin = file.read(12)
    if begin[:4] != b"RIFF" or begin[8:] != b"WAVE":
        raise DecodeError(f"not a wav file, {size:,} bytes")
    form = b""
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            raise DecodeError("cut short inside its header")
        name, length = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            return _checked_header(form, length, size - file.tell())
        # Chunks begin at even places.
        end = file.tell() + length + length % 2
        if name == b"fmt ":
            form = file.read(min(length, 40))
        file.seek(end)
    raise DecodeError(f"no samples after {MAX_CHUNKS} other chunks")


def _checked_header(form: bytes, claimed: int, follow: int) -> WavHeader:
    if len(form) < 16:
        raise DecodeError("no format before its samples")
    encoding, channels, rate, _, frame_bytes, _ = struct.unpack("<HHIIHH", form[:16])
    if encoding == EXTENSIBLE:
        encoding = int.from_bytes(form[24:26], "little")
    if encoding not in (PCM, FLOAT):
        raise DecodeError(f"encoding {encoding}; PCM (1) or float (3) is needed")
    if not channels or frame_bytes % channels or frame_bytes // channels not in (1, 2, 3, 4, 8):
        raise DecodeError(f"{channels} channels in {frame_bytes} bytes")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise DecodeError(f"{rate:,} Hz; {MIN_RATE:,} to {MAX_RATE:,} are read")
    if claimed > follow and claimed != UNKNOWN_BYTES:
        raise DecodeError(f"cut short: its header claims {claimed:,} bytes of samples, and {follow:,} follow")
    samples = min(claimed, follow) // frame_bytes
    if not samples:
        raise DecodeError("holds no samples")
    if samples * channels > MAX_SAMPLES:
        raise DecodeError(f"{samples * channels:,} samples, more than {MAX_SAMPLES:,}")
    return WavHeader(samples, rate, channels)


def steps_of(header: WavHeader, features: SequenceFeatures) -> int:
    """Steps that `log_mel` makes of a recording: one for each hop, rounded.

    Raises:
      DecodeError: not one.
    """
    # As soxr rounds: halves to even.
    samples = round(header.samples * features.sample_rate / header.rate)
    if samples > MAX_SAMPLES:
        raise DecodeError(f"{samples:,} samples at {features.sample_rate:,} Hz, more than {MAX_SAMPLES:,}")
    hop = _samples(features.hop_ms, features)
    steps = (samples + hop // 2) // hop
    if not steps:
        raise DecodeError(f"{header.samples:,} samples at {header.rate:,} Hz, less than half a step")
    return steps


def _samples(milliseconds: float, features: SequenceFeatures) -> int:
    return round(features.sample_rate * milliseconds / 1000)


def log_mel(data: bytes, features: SequenceFeatures) -> np.ndarray:
    """Logarithms of mel filter energies, as Kaldi defines them.

    The middle of step i is that of hop i; the recording is reflected at its ends. Pre-emphasis 0.97, the Povey window,
    no dither; samples are in -1 to 1, and energies below 2 ** -23 (digital silence too) count as that.

    Args:
      data: a wav file. Channels are averaged; another rate than `features.sample_rate` is resampled (soxr, high
        quality).
      features: of kind `log_mel`.

    Returns:
      [steps, mels] float32, with as many steps as `steps_of` says.

    Raises:
      DecodeError: it cannot be decoded.
    """
    import kaldi_native_fbank
    import soxr

    header = wav_header(io.BytesIO(data), len(data))
    # Before memory is taken.
    steps_of(header, features)
    wave = _decoded(data, header)
    if header.rate != features.sample_rate:
        wave = soxr.resample(wave, header.rate, features.sample_rate)
    bank = kaldi_native_fbank.OnlineFbank(_options(features))
    bank.accept_waveform(features.sample_rate, wave)
    bank.input_finished()
    return np.stack([bank.get_frame(step) for step in range(bank.num_frames_ready)])


def _decoded(data: bytes, header: WavHeader) -> np.ndarray:
    """[samples] float32, the mean of the channels."""
    import soundfile

    try:
        wave, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DecodeError(error.error_string) from error
    if (*wave.shape, rate) != (header.samples, header.channels, header.rate):
        raise DecodeError(f"{len(wave):,} samples, and its header claims {header.samples:,}")
    if not float(np.abs(wave).max()) <= MAX_AMPLITUDE:
        raise DecodeError(f"holds a sample that is not finite, or beyond {MAX_AMPLITUDE:,}")
    return wave[:, 0] if header.channels == 1 else wave.mean(axis=1)


def _options(features: SequenceFeatures) -> Any:
    """Of the filter bank."""
    import kaldi_native_fbank

    # The library cuts off what stands behind the point of a number of samples, after it has rounded in float32: half a
    # sample more is out of reach of that.
    window, hop = (
        (_samples(milliseconds, features) + 0.5) * 1000 / features.sample_rate
        for milliseconds in (features.window_ms, features.hop_ms)
    )
    frames = kaldi_native_fbank.FrameExtractionOptions(
        samp_freq=features.sample_rate, frame_length_ms=window, frame_shift_ms=hop, dither=0, snip_edges=False
    )
    mels = kaldi_native_fbank.MelBanksOptions(num_bins=features.mels)
    return kaldi_native_fbank.FbankOptions(frame_opts=frames, mel_opts=mels)


def check_audio(features: SequenceFeatures) -> None:
    """Checks that recordings can be turned into such features on this machine.

    Raises:
      UserError: a library is missing, or the settings do not go together.
    """
    try:
        import kaldi_native_fbank
        import soundfile  # noqa: F401
        import soxr  # noqa: F401
    # soundfile raises OSError where its wheel has no libsndfile for this system.
    except (ImportError, OSError) as error:
        raise UserError(f"recordings need more packages ({first_line(error)}): pip install 'pcls[audio]'") from error
    rate = features.sample_rate
    if not MIN_RATE <= rate <= MAX_RATE:
        raise UserError(f"data.audio.sample_rate is {rate:,}; {MIN_RATE:,} to {MAX_RATE:,} Hz are allowed")
    for key, milliseconds, least in (("window_ms", features.window_ms, 2), ("hop_ms", features.hop_ms, 1)):
        if not least <= _samples(milliseconds, features) <= MAX_WINDOW:
            raise UserError(
                f"data.audio.{key} is {milliseconds:g}; at {rate:,} Hz {least * 1000 / rate:.3g} to "
                f"{MAX_WINDOW * 1000 // rate:,} ms are allowed, {least} to {MAX_WINDOW:,} samples"
            )
    try:
        kaldi_native_fbank.OnlineFbank(_options(features))
    except ValueError as error:
        raise UserError(
            f"data.audio.mels is {features.mels}; 3 or more are needed, and a window of {features.window_ms:g} ms at "
            f"{rate:,} Hz cannot tell too many apart: take fewer, or a longer data.audio.window_ms"
        ) from error


class AudioStore:
    """Recordings below a folder; read and turned into features when asked for.

    Sent to another process, it leaves behind what it kept.

    Args:
      root: the folder. A link below it must not lead out of it.
      classes: its recordings.
      features: of kind `log_mel`.
      keeps: keep the features of each recording once it was asked for.
    """

    def __init__(self, root: Path, classes: ClassFiles, features: SequenceFeatures, keeps: bool):
        self._files = FileStore(root, classes.files, classes.labels)
        self._labels = classes.labels
        self._features = features
        self._keeps = keeps
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __getitems__(self, records: Sequence[int]) -> list[Stored]:
        """[steps, mels] float32 each."""
        return [Stored(self._log_mel(record), int(self._labels[record])) for record in records]

    def name(self, record: int) -> str:
        """The file's path; fit to be shown."""
        return self._files.name(record)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def _log_mel(self, record: int) -> np.ndarray | Unreadable:
        if record in self._kept:
            return self._kept[record]
        (stored,) = self._files.__getitems__([record])
        if not isinstance(stored.image, bytes):
            return stored.image
        try:
            values = log_mel(stored.image, self._features)
        except DecodeError as error:
            return Unreadable(str(error))
        if self._keeps:
            # Two threads may compute the same record: one of two equal values stays.
            self._kept[record] = values
        return values


def open_audio(
    path: Path, features: SequenceFeatures, test_match: str = ""
) -> tuple[SequenceSource, SequenceSource | None]:
    """Opens a folder of wav files.

    Either one folder a class, with the files at any depth below it; or files side by side, named LABEL_....wav: what
    stands before the first `_` is the class. Either may stand in `train`, with another (`val`, `test`) for evaluation
    beside it. Classes come in natural order: 2 before 10. The steps of each file are known from its header; one that
    cannot be read counts as a step, and is not decoded.

    Args:
      path: the folder.
      features: of kind `log_mel`; with sample rate 0 that of most recordings is taken.
      test_match: a regular expression; files in whose path below the folder it is found are evaluated on. Empty: the
        folder itself tells what is.

    Returns:
      The recordings to train on; and those to evaluate on, where there are such.

    Raises:
      UserError: missing, no recordings, one class only, a class without recordings, parts that disagree on the classes,
        a library is missing, or settings that do not go together.
    """
    parts = [(part, _classes(part)) for part in set_parts(path)]
    if test_match:
        if len(parts) > 1:
            raise UserError(f"data.test_match has no effect: {parts[1][0]} is evaluated on; leave it out")
        parts = [(parts[0][0], classes) for classes in _parted(*parts[0], test_match)]
    for part, classes in parts[1:]:
        check_same_classes(str(path), parts[0][1].class_names, part.name, classes.class_names)
    headers = [[_header(part, file) for file in classes.files] for part, classes in parts]
    features = replace(features, sample_rate=features.sample_rate or _commonest_rate(path, headers[0]))
    check_audio(features)
    train, *others = [_source(*part, found, features) for part, found in zip(parts, headers, strict=True)]
    return train, others[0] if others else None


def _classes(root: Path) -> ClassFiles:
    """The recordings of a part by their classes."""
    try:
        folders = {name: list(_below(root, name)) for name in class_folders(root)}
        beside = [file.removeprefix("./") for file in _in_folder(root, ".")[0]]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from error
    if beside and any(folders.values()):
        full = next(name for name, files in folders.items() if files)
        raise UserError(
            f"{root}: .wav files both beside each other and in the folder {full!r}; one or the other is needed"
        )
    found = _by_label(root, beside) if beside else folders
    if not any(found.values()):
        raise UserError(f"{root}: no {EXTENSION} files; one folder a class, or files named LABEL_NAME.wav, are needed")
    if empty := [name for name, files in found.items() if not files]:
        raise UserError(f"{root}: no {EXTENSION} files in the class folder {empty[0]!r}; fill or remove it")
    if len(found) < 2:
        raise UserError(f"{root}: only one class, {next(iter(found))!r}; a classifier needs two or more")
    return numbered_files(found, sorted(found, key=natural_order))


def natural_order(name: str) -> tuple[list[str | int], str]:
    """A key that sorts digits by their number, so that 2 comes before 10."""
    pieces = re.split("([0-9]+)", name)
    return [int(piece) if place % 2 else piece for place, piece in enumerate(pieces)], name


def _below(root: Path, folder: str) -> Iterator[str]:
    """Paths below the root of a folder's recordings, at any depth; links to folders are not followed."""
    folders = [folder]
    while folders:
        files, more = _in_folder(root, folders.pop())
        folders += more
        yield from files


def _in_folder(root: Path, folder: str) -> tuple[list[str], list[str]]:
    """Recordings and folders in a folder, by their paths below the root; hidden ones are other programs' leftovers."""
    files, folders = [], []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{folder}/{entry.name}")
            elif entry.name.lower().endswith(EXTENSION) and not (entry.is_symlink() and Path(entry.path).is_dir()):
                files.append(f"{folder}/{entry.name}")
    return files, folders


def _by_label(root: Path, files: list[str]) -> dict[str, list[str]]:
    """Class -> files, by what stands before the first `_` of their names."""
    found: dict[str, list[str]] = {}
    for file in files:
        label, joint, _ = file.partition("_")
        if not joint or not label:
            raise UserError(
                f"{root / file}: no label before a _ in its name; files side by side are named LABEL_NAME.wav"
            )
        found.setdefault(label, []).append(file)
    return found


def _parted(root: Path, classes: ClassFiles, test_match: str) -> list[ClassFiles]:
    """What is trained on, and what is evaluated on."""
    pattern = re.compile(test_match)
    is_test = np.array([pattern.search(file) is not None for file in classes.files])
    if not is_test.any():
        raise UserError(f"data.test_match {test_match!r} is found in no path below {root}, as {classes.files[0]}")
    left = np.bincount(classes.labels[~is_test], minlength=len(classes.class_names))
    if not left.all():
        name = classes.class_names[int(left.argmin())]
        raise UserError(f"data.test_match {test_match!r} leaves no recording of the class {name!r} to train on")
    return [
        classes._replace(files=[classes.files[n] for n in np.flatnonzero(chosen)], labels=classes.labels[chosen])
        for chosen in (~is_test, is_test)
    ]


def _header(root: Path, file: str) -> WavHeader | None:
    """None where there is none, or the file will not be read: why, is said when it is asked for."""
    path = f"{root}/{file}"
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            if not Path(path).resolve().is_relative_to(root.resolve()):
                return None
            status = Path(path).stat()
        # A pipe would be waited for without end.
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            return None
        with open(path, "rb") as opened:  # noqa: PTH123
            return wav_header(opened, status.st_size)
    # Python before 3.13 raises RuntimeError for links in a circle.
    except (OSError, RuntimeError, DecodeError):
        return None


def _commonest_rate(path: Path, headers: Sequence[WavHeader | None]) -> int:
    """In Hz; of equally common ones the lowest, which needs nothing that is not in the recordings."""
    rates, counts = np.unique([header.rate for header in headers if header], return_counts=True)
    if not len(rates):
        raise UserError(f"{path}: not one of {len(headers):,} recordings has a wav header that can be read")
    return int(rates[counts.argmax()])


def _source(
    root: Path, classes: ClassFiles, headers: Sequence[WavHeader | None], features: SequenceFeatures
) -> SequenceSource:
    lengths = np.array([_steps_or_one(header, features) for header in headers], np.int32)
    keeps = int(lengths.sum(dtype=np.int64)) * features.mels * np.dtype(np.float32).itemsize <= MAX_KEPT_BYTES
    return SequenceSource(
        AudioStore(root, classes, features, keeps),
        classes.class_names,
        classes.labels,
        lengths,
        features.mels,
        sequence=features,
        notice=_rates_notice(classes.files, headers, features.sample_rate),
    )


def _steps_or_one(header: WavHeader | None, features: SequenceFeatures) -> int:
    """What cannot be read has a step, of zeros."""
    try:
        return steps_of(header, features) if header else 1
    except DecodeError:
        return 1


def _rates_notice(files: Sequence[str], headers: Sequence[WavHeader | None], rate: int) -> str:
    others = [
        (file, header.rate) for file, header in zip(files, headers, strict=True) if header and header.rate != rate
    ]
    if not others:
        return ""
    file, first = others[0]
    return (
        f"{len(others):,} of {len(files):,} recordings are resampled to {rate:,} Hz (data.audio.sample_rate); "
        f"the first is {shown(file)}, of {first:,} Hz"
    )
