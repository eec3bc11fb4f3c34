"""JPEG to a random crop of 224 px, by each decoder that could do it, on one core: `make bench`, or

    python benchmarks/decoders.py

In one process, in turn. PyTurboJPEG is measured where it and libturbojpeg are installed.
"""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
from _ledger import append
from _worker import median_and_range
from input import QUALITY, photograph
from PIL import Image

from pcls.data.crops import crop_draws, random_box
from pcls.data.decode import decode
from pcls.data.preprocessing import Preprocessing

SIZE, ROUNDS, FILES = 224, 9, 64
PREPROCESSING = Preprocessing(SIZE, SIZE, 3, (0.0,) * 3, (1.0,) * 3)
# Bytes and the draws of a crop to pixels.
Decoder = Callable[[bytes, np.ndarray], object]


def box_of(width: int, height: int, draws: np.ndarray) -> tuple[int, int, int, int]:
    left, top, right, bottom = random_box(width, height, draws)
    return int(left), int(top), int(np.ceil(right)), int(np.ceil(bottom))


def cut(pixels: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """A random crop of decoded pixels, resized as pcls does it."""
    left, top, right, bottom = box_of(pixels.shape[1], pixels.shape[0], draws)
    return cv2.resize(pixels[top:bottom, left:right], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def pillow(data: bytes, draws: np.ndarray) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box_of(*image.size, draws)))


def pillow_draft(data: bytes, draws: np.ndarray) -> np.ndarray:
    """Pillow decodes at a fraction of the size where the crop allows it."""
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    box = box_of(width, height, draws)
    shrink = max(1, min(box[2] - box[0], box[3] - box[1]) // SIZE)
    image.draft("RGB", (width // shrink, height // shrink))
    scale = image.width / width
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=tuple(scale * side for side in box)))


def opencv(data: bytes, draws: np.ndarray) -> np.ndarray:
    return cut(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), draws)


def opencv_reduced(data: bytes, draws: np.ndarray) -> np.ndarray:
    """OpenCV decodes at half the size where the crop is at least twice the size wanted."""
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    left, top, right, bottom = box_of(width, height, draws)
    half = min(right - left, bottom - top) >= 2 * SIZE
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_2 if half else cv2.IMREAD_COLOR)
    shrink = 2 if half else 1
    part = pixels[top // shrink : bottom // shrink, left // shrink : right // shrink, ::-1]
    return cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def simplejpeg_whole(data: bytes, draws: np.ndarray) -> np.ndarray:
    return cut(simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=True), draws)


def simplejpeg_least(data: bytes, draws: np.ndarray) -> np.ndarray:
    """simplejpeg decodes at the smallest fraction (of sixteenths) that the crop allows."""
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    left, top, right, bottom = box_of(width, height, draws)
    scale = min(1.0, SIZE / min(right - left, bottom - top))
    pixels = simplejpeg.decode_jpeg(
        data, fastdct=True, fastupsample=True, min_height=int(height * scale), min_width=int(width * scale)
    )
    scale = pixels.shape[0] / height
    top, bottom, left, right = (int(side * scale) for side in (top, bottom, left, right))
    part = pixels[top : max(bottom, top + 1), left : max(right, left + 1)]
    return cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def turbojpeg_crop() -> Decoder | None:
    """PyTurboJPEG cuts the file itself, without loss and along blocks, and decodes what is left."""
    try:
        from turbojpeg import TJPF_RGB, TurboJPEG

        turbo = TurboJPEG()
    except (ImportError, RuntimeError):
        return None

    def crop(data: bytes, draws: np.ndarray) -> np.ndarray:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        left, top, right, bottom = box_of(width, height, draws)
        part = turbo.crop(data, left // 16 * 16, top // 16 * 16, right - left, bottom - top)
        return cv2.resize(turbo.decode(part, TJPF_RGB), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)

    return crop


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    originals = [Image.fromarray(image) for image in load_sample_images().images]
    files = []
    for _ in range(FILES):
        stream = io.BytesIO()
        photograph(rng, originals).save(stream, "JPEG", quality=QUALITY)
        files.append(stream.getvalue())
    decoders: dict[str, Decoder | None] = {
        "pcls: simplejpeg, rows below the crop cut off": lambda data, draws: decode(data, PREPROCESSING, draws),
        "simplejpeg, whole": simplejpeg_whole,
        "simplejpeg, least size": simplejpeg_least,
        "OpenCV, whole": opencv,
        "OpenCV, reduced": opencv_reduced,
        "PyTurboJPEG, lossless crop": turbojpeg_crop(),
        "Pillow": pillow,
        "Pillow, draft": pillow_draft,
        "simplejpeg, decoding alone": lambda data, draws: simplejpeg.decode_jpeg(data),
    }
    rates: dict[str, list[float]] = {name: [] for name, decoder in decoders.items() if decoder}
    for number in range(ROUNDS):
        for name in rates:
            numbers = np.arange(FILES)
            draws, start = crop_draws(number, numbers, numbers), time.perf_counter()
            for data, of_file in zip(files, draws, strict=True):
                decoders[name](data, of_file)
            rates[name].append(FILES / (time.perf_counter() - start))
    ours = rates[next(iter(rates))]
    rows = [
        [
            name,
            median_and_range(rates[name], ",.0f"),
            f"{statistics.median(own / other for own, other in zip(ours, rates[name], strict=True)):.2f}",
        ]
        if name in rates
        else [name, "not measured: no libturbojpeg here", ""]
        for name in decoders
    ]
    append(
        f"JPEG to a random crop of {SIZE} px, one core, by decoder",
        ["decoder", "images/s, median (range)", "pcls to it"],
        rows,
        packages=["simplejpeg", "opencv-python-headless", "pillow", "PyTurboJPEG"],
        note=f"{FILES} photographs of 500 x 375, quality {QUALITY}, from memory; {ROUNDS} rounds in turn.",
    )


if __name__ == "__main__":
    main()
