"""What reads files that others made: each with valid files to start from, and a function that feeds it bytes.

`feed` returns the name of what became of them: `read`, or the typed error. Any other exception comes out.
"""

import gzip
import hashlib
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from mutations import Change, changed_bytes, changed_idx, changed_json, changed_safetensors, changed_wav, changed_yaml
from safetensors.numpy import save

from pcls.checkpoint.manifest import NAME, Damaged, Leaf, read_manifest, verify, write_manifest
from pcls.config.load import load_recipe, named_recipes
from pcls.data.decode import DecodeError
from pcls.data.preprocessing import Preprocessing, SequenceFeatures
from pcls.data.sources.arrays import read_idx
from pcls.data.sources.audio import log_mel
from pcls.errors import UserError
from pcls.models.registry import define_model
from pcls.pretrained.bundle import FACTS, WEIGHTS, Bundle, load_bundle, save_bundle
from pcls.pretrained.tensors import open_tensors

FEATURES = SequenceFeatures("log_mel", sample_rate=8000, mels=8, window_ms=25, hop_ms=10)


@dataclass(frozen=True)
class Parser:
    """One reader of files.

    Attributes:
      seeds: valid files.
      change: makes another file of one, by what its format is made of.
      feed: writes the bytes where the reader looks for them, and reads.
    """

    seeds: list[bytes]
    change: Change
    feed: Callable[[bytes], str]


def outcome(read: Callable[[], object]) -> str:
    try:
        read()
    except (UserError, Damaged, DecodeError) as error:
        return type(error).__name__
    return "read"


def recipe(folder: Path) -> Parser:
    file = folder / "recipe.yaml"

    def feed(data: bytes) -> str:
        file.write_bytes(data)
        return outcome(lambda: load_recipe(file))

    return Parser([path.read_bytes() for path in named_recipes().values()], changed_yaml, feed)


def manifest(folder: Path) -> Parser:
    step = folder / "12"
    (step / "state" / "d").mkdir(parents=True)
    for name, data in {"state/d/1f3c": bytes(300), "state/manifest.ocdbt": b"\x0c\xdb", "_METADATA": b"{}"}.items():
        (step / name).write_bytes(data)
    leaves = {name: Leaf((3, 25), "float32", "0" * 64) for name in ("params/conv1/kernel", "ema/conv1/kernel")}
    write_manifest(step, 12, leaves | {"step": Leaf((), "int32", "1" * 64)}, score=0.5, about={"mesh": {"data": 2}})

    def feed(data: bytes) -> str:
        (step / NAME).write_bytes(data)
        return outcome(lambda: verify(step, read_manifest(step)))

    return Parser([(step / NAME).read_bytes()], partial(changed_and_sealed, "sha256"), feed)


def safetensors(folder: Path) -> Parser:
    file = folder / "model.safetensors"

    def feed(data: bytes) -> str:
        file.write_bytes(data)

        def read():
            with open_tensors(file) as stored:
                for tensor in stored.tensors.values():
                    np.asarray(tensor)

        return outcome(read)

    numbers = np.arange(12, dtype=np.float32).reshape(3, 4)
    halves = {"a/kernel": numbers.astype(np.float16), "b": np.zeros((0, 2), np.float64), "c": np.array(1, np.float32)}
    return Parser([save({"weight": numbers}, {"format": "pt"}), save(halves)], changed_safetensors, feed)


def idx(folder: Path) -> Parser:
    file = folder / "train-images-idx3-ubyte"

    def feed(data: bytes) -> str:
        file.write_bytes(data)
        return outcome(lambda: read_idx(file, dimensions=3))

    seeds = [struct.pack(">HBB3I", 0, 8, 3, *shape) + bytes(24) for shape in ((2, 3, 4), (24, 1, 1))]
    return Parser(seeds, changed_idx, feed)


def idx_gzipped(folder: Path) -> Parser:
    file = folder / "train-images-idx3-ubyte.gz"

    def feed(data: bytes) -> str:
        file.write_bytes(data)
        return outcome(lambda: read_idx(file, dimensions=3))

    return Parser([gzip.compress(seed, mtime=0) for seed in idx(folder).seeds], changed_bytes, feed)


def wav(folder: Path) -> Parser:
    import soundfile

    def recording(subtype: str, channels: int, rate: int) -> bytes:
        file = io.BytesIO()
        wave = np.sin(np.arange(400)[:, None] / np.arange(3, 3 + channels))
        soundfile.write(file, wave, rate, subtype, format="WAV")
        return file.getvalue()

    seeds = [recording(*how) for how in (("PCM_16", 1, 8000), ("FLOAT", 2, 16000), ("PCM_24", 1, 8000))]
    return Parser(seeds, changed_wav, lambda data: outcome(lambda: log_mel(data, FEATURES)))


def bundle(folder: Path) -> Parser:
    """`model.json`, its weights left as they are."""
    own = folder / "bundle"
    facts = {"model": "cnn28", "class_names": ("a", "b", "c"), "precision": "float32", "metrics": {"top1": 0.5}}
    preprocessing = Preprocessing(12, 12, 1, (0.5,), (0.25,))
    definition = define_model("cnn28", height=12, width=12, channels=1, classes=3, precision="float32")
    arrays = {
        part: {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
        for part, leaves in (("params", definition.params), ("stats", definition.stats))
    }
    seeds = []
    for more in ({}, {"thresholds": (0.5, 0.25, 0.75)}, {"origin": {"name": "x", "licence": "MIT"}}):
        save_bundle(Bundle(preprocessing=preprocessing, **facts, **arrays, **more), own)
        seeds.append((own / FACTS).read_bytes())
    assert (own / WEIGHTS).is_file()

    def feed(data: bytes) -> str:
        (own / FACTS).write_bytes(data)
        return outcome(lambda: load_bundle(own))

    return Parser(seeds, partial(changed_and_sealed, "facts_sha256"), feed)


PARSERS = {
    "recipe": recipe,
    "checkpoint manifest": manifest,
    "safetensors": safetensors,
    "idx": idx,
    "idx, gzipped": idx_gzipped,
    "wav": wav,
    "model.json": bundle,
}


def changed_and_sealed(key: str, seed: bytes, dice: Random) -> bytes:
    """JSON with changes and, most of the time, the digest of itself that belongs to them: else all would end there."""
    data = changed_json(seed, dice)
    try:
        values = json.loads(data)
        del values[key]
    except (ValueError, TypeError, KeyError, RecursionError):
        return data
    if dice.random() < 0.1:
        return data
    sha256 = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return json.dumps(values | {key: sha256}).encode()
