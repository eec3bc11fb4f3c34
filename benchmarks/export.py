"""Exported programs beside the models that they were made of, and ResNet-50 on CPU beside onnxruntime: `make bench`, or

    python benchmarks/export.py [--models resnet50,gru] [--quantized cnn28] [--images 10] [--rounds 15]

Weights are random, with BatchNorm's statistics from one training pass: without that, parity is chaos. Latencies are of
one image at a time, uint8 in; each contender lives in a process of its own with all cores, and only ratios count.
Quantized models are in int8, weights and inputs, their ranges those of some random images.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from _export_worker import CONTENDERS
from _ledger import append
from _worker import Worker, median_and_range, rates_in_turn

from pcls.compression.quantize import input_ranges, with_integers
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import Preprocessing, SequenceFeatures, imagenet_statistics
from pcls.deliver.export import SUFFIXES, export_bundle
from pcls.deliver.export_parity import OF_FLOATS, OF_ROUNDED, Sample, sample_of
from pcls.errors import UserError
from pcls.models.registry import define_model, model_entry
from pcls.nn.training import TrainingPass
from pcls.pretrained.bundle import Bundle, save_bundle

MODELS = (
    *("cnn28", "resnet18", "resnet50", "resnet50d", "convnext_tiny", "efficientnet_b0", "mobilenetv3_large_100"),
    *("rnn28", "gru", "lstm", "lru", "mingru", "crnn", "sequencer2d_s"),
)
QUANTIZED = ("cnn28", "resnet50")
CLASSES, GATE = 10, 1.5
LOADED, _, PEER, *_ = CONTENDERS


def random_bundle(name: str) -> Bundle:
    """An untrained model of its customary size."""
    entry = model_entry(name)
    size, channels = entry.image_size, entry.channels
    mean, std = imagenet_statistics(channels)
    definition = define_model(name, height=size, width=size, channels=channels, classes=CLASSES)
    params, stats = jax.jit(definition.init)(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (16, size, size, channels))
    stats = jax.jit(lambda p, s, x: definition.apply(p, s, x, TrainingPass())[1])(params, stats, images)
    names = tuple(map(str, range(CLASSES)))
    sequence = None
    if entry.lengths:
        sequence, mean, std = SequenceFeatures(), (0.0,) * size, (1.0,) * size
        if channels != 1:
            raise SystemExit(f"{name}: sequences are of one channel")
    preprocessing = Preprocessing(size, size, channels, mean, std, sequence=sequence)
    as_numpy = [{path: np.asarray(array) for path, array in arrays.items()} for arrays in (params, stats)]
    return Bundle(name, names, preprocessing, "float32", *as_numpy, {})


def in_int8(bundle: Bundle) -> Bundle:
    """The same quantized, weights and inputs."""
    images = np.random.default_rng(1).integers(0, 256, (16, *bundle.preprocessing.shape), np.uint8)
    arrays = dict(bundle.params), dict(bundle.stats)
    batch = Batch(images, label=None, weight=None, record=None, epoch=None)
    ranges = input_ranges(bundle.definition(), *arrays, [batch], bundle.preprocessing, bundle.precision)
    return with_integers(bundle, 8, ranges)


def parities(models: list[str], quantized: list[str]) -> list[list[str]]:
    rows = []
    for name in (*models, *(f"{name}, int8" for name in quantized)):
        base, _, small = name.partition(", ")
        bundle = in_int8(random_bundle(base)) if small else random_bundle(base)
        for to in ("onnx", "stablehlo", "litert"):
            with tempfile.TemporaryDirectory() as folder:
                sample = lambda: sample_of(Path(folder), "", bundle.preprocessing)  # noqa: B023, E731
                try:
                    done = export_bundle(bundle, to, Path(folder) / f"a{SUFFIXES[to]}", sample, with_preprocessing=True)
                except UserError as error:
                    rows.append([name, to, "", str(error), "", ""])
                    continue
            parity = done.parity
            assert parity is not None
            same = f"{parity.agreeing:,} of {parity.records:,}"
            rows.append([name, to, f"{done.size / 1e6:.1f}", f"{parity.relative:.1e}", f"{parity.largest:.1e}", same])
            print(*rows[-1], flush=True)
    return rows


def latencies(name: str, images: int, rounds: int) -> list[list[str]]:
    bundle = random_bundle(name)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_bundle(bundle, folder / "bundle")
        small = in_int8(bundle)
        files = (
            *(("a.onnx", bundle, ()), ("int8.onnx", small, ()), ("cpu.stablehlo", bundle, ("cpu",))),
            # Of a network so deep with random weights, LiteRT's integers are too far off to be written.
            ("a.tflite", bundle, ()),
        )
        for out, model, platforms in files:
            to = next(form for form, suffix in SUFFIXES.items() if out.endswith(suffix))
            # Some are enough: how near they are is the other table's.
            few = islice(sample_of(folder, "", bundle.preprocessing).batches, 1)
            sample = lambda: Sample("random images", few)  # noqa: B023, E731
            export_bundle(model, to, folder / out, sample, with_preprocessing=True, platforms=platforms)
        image = np.random.default_rng(0).integers(0, 256, (1, *bundle.preprocessing.shape), np.uint8)
        np.save(folder / "image.npy", image)
        workers = {one: Worker(sys.executable, "_export_worker.py", one, place) for one in CONTENDERS}
        rates = rates_in_turn(workers, rounds, images)
    rows = []
    for one in CONTENDERS:
        ratios = [peer / own for own, peer in zip(rates[one], rates[PEER], strict=True)]
        times = [1000 / rate for rate in rates[one]]
        gate = f"{GATE}" if one == LOADED else ""
        shown = "" if one == PEER else median_and_range(ratios, ".2f")
        rows.append([one, median_and_range(times, ",.1f"), shown, gate])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--quantized", default=",".join(QUANTIZED), help="models exported in int8, too")
    parser.add_argument("--latency", default="resnet50", help="the model of the latencies; empty: none are taken")
    parser.add_argument("--images", type=int, default=10, help="of a turn")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    models, quantized = (list(filter(None, text.split(","))) for text in (arguments.models, arguments.quantized))
    append(
        "Exported programs beside the models that they were made of",
        ["model", "format", "MB", "relative L2 of logits", "largest difference", "same class"],
        parities(models, quantized),
        packages=["jax", "onnx", "onnxruntime", "litert-converter", "ai-edge-litert"],
        note=(
            f"benchmarks/export.py; random weights and images, preprocessing inside, BatchNorm folded in the exported "
            f"program and not in the model. Gate: relative L2 at most {OF_FLOATS.relative:.0e}, of int8 "
            f"{OF_ROUNDED.relative:.0e}."
        ),
    )
    if arguments.latency:
        append(
            f"One image at a time, {arguments.latency}, CPU, all cores",
            ["contender", "ms", "its time / onnxruntime's", "gate"],
            latencies(arguments.latency, arguments.images, arguments.rounds),
            packages=["jax", "onnxruntime", "ai-edge-litert", "numpy"],
            note=(
                f"benchmarks/export.py, {arguments.rounds} rounds of {arguments.images} in turn; median (range), "
                "ratios within a round; the same weights, uint8 in, logits or probabilities out."
            ),
        )


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
