"""The input pipeline on one core beside torch, tf.data and the decoder alone, and the wait of a loop: `make bench`, or

    python benchmarks/input.py [--pcls-python PYTHON ...]

Photographs of 500 x 375 are cut from scikit-learn's two. Every contender lives in a process of its own, on one core;
they read in turn, a few batches a round, and only the ratios count.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from _input_worker import BATCH, CONTENDERS, SIZE
from _ledger import append
from _worker import Worker, median_and_range, rates_in_turn
from PIL import Image

ROUNDS, BATCHES = 7, 12
PHOTOGRAPHS, QUALITY = 512, 90
GATES = {
    "torch DataLoader, Pillow": 2.0,
    "tf.data, decode_and_crop_jpeg": 1.1,
    "simplejpeg, decoding alone": 1.0,
}


def photograph(rng: np.random.Generator, originals: list[Image.Image]) -> Image.Image:
    """A part of one of the originals, 500 x 375."""
    whole = originals[rng.integers(len(originals))]
    width = int(whole.height * 4 / 3 * rng.uniform(0.7, 1))
    left, top = rng.integers(whole.width - width + 1), rng.integers(whole.height - width * 3 // 4 + 1)
    part = whole.crop((left, top, left + width, top + width * 3 // 4))
    return part.resize((500, 375), Image.Resampling.LANCZOS)


def write_photographs(folder: Path) -> float:
    """Fills `jpeg/` with files and `raw/` with pixels of 256 x 256; returns the files' mean size in kB."""
    from sklearn.datasets import load_sample_images

    rng, sizes = np.random.default_rng(0), []
    originals = [Image.fromarray(image) for image in load_sample_images().images]
    raw = np.empty((PHOTOGRAPHS, 256, 256, 3), np.uint8)
    for number in range(PHOTOGRAPHS):
        image = photograph(rng, originals)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=QUALITY)
        path = folder / "jpeg" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue())
        sizes.append(len(stream.getvalue()) / 1000)
        raw[number] = np.asarray(image.resize((256, 256)))
    (folder / "raw").mkdir()
    np.save(folder / "raw" / "images.npy", raw)
    np.save(folder / "raw" / "labels.npy", np.arange(PHOTOGRAPHS) % 2)
    return statistics.mean(sizes)


def rates_of(folder: Path, pythons: list[str]) -> dict[str, list[float]]:
    """Images/s of each contender in each round."""
    ours = {
        f"{name}, Python {version_of(python)}": Worker(python, "_input_worker.py", name, str(folder))
        for python in pythons
        for name in CONTENDERS
        if name.startswith("pcls")
    }
    peers = {
        name: Worker(sys.executable, "_input_worker.py", name, str(folder))
        for name in CONTENDERS
        if not name.startswith("pcls")
    }
    rates = rates_in_turn(ours | peers, ROUNDS, BATCHES)
    return {name: [BATCH * value for value in values] for name, values in rates.items()}


def version_of(python: str) -> str:
    import subprocess

    program = "import platform; print(platform.python_version())"
    return subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def waiting_share(folder: Path) -> tuple[float, float]:
    """The share of time that a loop waits for data whose step needs two thirds of what the pipeline can do.

    The step sleeps, as a host does while an accelerator computes.

    Returns:
      The share, and the images/s that the pipeline can do.
    """
    from pcls.data.order import Order
    from pcls.data.pipeline import Workers, training_batches
    from pcls.data.preprocessing import Preprocessing
    from pcls.data.sources.folder import open_folder

    source, _ = open_folder(folder / "jpeg")
    preprocessing = Preprocessing(SIZE, SIZE, 3, (0.0,) * 3, (1.0,) * 3)
    threads = len(os.sched_getaffinity(0))

    def stream(steps: range):
        options = {"order": Order(len(source), BATCH, 0), "rows": {BATCH: np.arange(BATCH)}, "random_crop": True}
        return training_batches(source, preprocessing, steps=steps, workers=Workers(threads), **options)

    with stream(range(45)) as batches:
        for _ in range(5):
            next(batches)
        start = time.perf_counter()
        able = BATCH * len(list(batches)) / (time.perf_counter() - start)
    waited, step_seconds = 0.0, BATCH / (able / 1.5)
    with stream(range(200, 300)) as batches:
        next(batches)
        start = time.perf_counter()
        for _ in range(99):
            threading.Event().wait(step_seconds)
            asked = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - asked
        return waited / (time.perf_counter() - start), able


def row(name: str, values: list[float], rates: dict[str, list[float]], reference: str) -> list[str]:
    """A row of the table; `reference` is what the others are divided by."""
    ratios = [rate / own for own, rate in zip(values, rates[reference], strict=True)]
    return [
        name,
        median_and_range(values, ",.0f"),
        median_and_range(ratios, ".2f"),
        f"{GATES[name]:.1f}" if name in GATES else "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pcls-python", nargs="*", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kilobytes = write_photographs(Path(folder))
        rates = rates_of(Path(folder), [sys.executable, *arguments.pcls_python])
        share, able = waiting_share(Path(folder))
    reference = next(iter(rates))
    append(
        f"Input pipeline on one core, random resized crops of {SIZE} px, batch {BATCH}",
        ["contender", "images/s, median (range)", f"{reference} to it", "gate"],
        [row(name, values, rates, reference) for name, values in rates.items()],
        packages=["simplejpeg", "opencv-python-headless", "pillow", "grain", "torch", "tensorflow-cpu"],
        note=f"{PHOTOGRAPHS} JPEG files of 500 x 375, quality {QUALITY}, {kilobytes:.0f} kB on average, from the "
        f"page cache. {ROUNDS} rounds of {BATCHES} batches in turn, a process on one core each; ratios are taken "
        "round by round. torch's loader works in its own process, tf.data with one thread and its fast DCT. A batch "
        f"goes to the device as {SIZE * SIZE * 3 / 1000:.1f} kB an image. A loop whose step needs two thirds of what "
        f"the pipeline can do ({able:,.0f} images/s with all cores) waits {share:.2%} of the time for data (gate: "
        "below 2 %).",
    )


if __name__ == "__main__":
    main()
