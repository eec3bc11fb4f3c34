"""One way of reading photographs on one core, in a process of its own: started by input.py, which asks for batches.

Each contender makes batches of 128 uint8 images of 224 x 224 x 3 by a random resized crop (area 8 to 100 %, aspect 3/4
to 4/3) and a flip, from JPEG files in a folder; pcls leaves the flip to the device.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from _worker import answer

BATCH, SIZE = 128, 224

# Makes so many batches.
Reader = Callable[[int], None]


def pcls_reader(folder: Path) -> Reader:
    """As `pcls train` reads a folder, with one thread."""
    from pcls.data.sources.folder import open_folder

    return pcls_stream(open_folder(folder / "jpeg")[0], SIZE)


def raw_reader(folder: Path) -> Reader:
    """Pixels of 256 x 256 that lie in a file, cut and resized by pcls."""
    from pcls.data.sources.arrays import open_arrays

    return pcls_stream(open_arrays(folder / "raw")[0], SIZE)


def pcls_stream(source, size: int) -> Reader:
    from pcls.parallel.tuning import tune_process

    tune_process()
    from pcls.data.order import Order
    from pcls.data.pipeline import Workers, training_batches
    from pcls.data.preprocessing import Preprocessing

    preprocessing = Preprocessing(size, size, 3, (0.0,) * 3, (1.0,) * 3)
    step = 0

    def read(batches: int) -> None:
        nonlocal step
        steps = range(step, step + batches)
        order, rows = Order(len(source), BATCH, 0), {BATCH: np.arange(BATCH)}
        options = {"order": order, "rows": rows, "random_crop": True, "steps": steps, "workers": Workers(1)}
        with training_batches(source, preprocessing, **options) as stream:
            for batch in stream:
                assert batch.weight.all() and batch.image.nbytes == BATCH * SIZE * SIZE * 3
        step += batches

    return read


def decoder_reader(folder: Path) -> Reader:
    """simplejpeg decodes whole pictures, and nothing else is done with them."""
    import simplejpeg

    files = [path.read_bytes() for path in jpegs(folder)]

    def read(batches: int) -> None:
        for number in range(batches * BATCH):
            simplejpeg.decode_jpeg(files[number % len(files)])

    return read


def torch_reader(folder: Path) -> Reader:
    """torch's DataLoader in its own process, Pillow, and the crop of torchvision's recipe, collated as uint8."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset, RandomSampler

    torch.set_num_threads(1)
    files = jpegs(folder)

    class Photographs(Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, number: int):
            with files[number].open("rb") as file:
                image = Image.open(file).convert("RGB")
            image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=random_box(*image.size))
            if torch.rand(1) < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def random_box(width: int, height: int) -> tuple[float, float, float, float]:
        while True:
            area, aspect = torch.empty(2).uniform_(0, 1).tolist()
            area, aspect = (0.08 + 0.92 * area) * width * height, float(np.exp(np.log(3 / 4) * (1 - 2 * aspect)))
            w, h = (area * aspect) ** 0.5, (area / aspect) ** 0.5
            if w <= width and h <= height:
                left, top = (torch.rand(2) * torch.tensor([width - w, height - h])).tolist()
                return left, top, left + w, top + h

    def read(batches: int) -> None:
        sampler = RandomSampler(range(len(files)), replacement=True, num_samples=batches * BATCH)
        for batch in DataLoader(Photographs(), BATCH, sampler=sampler):
            assert batch.shape == (BATCH, 3, SIZE, SIZE)

    return read


def tf_data_reader(folder: Path) -> Reader:
    """tf.data with TensorFlow's fused decode-and-crop, on one thread."""
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)

    def load(path):
        data = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data),
            tf.zeros([0, 0, 4]),
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.io.decode_and_crop_jpeg(data, window, channels=3, dct_method="INTEGER_FAST")
        image = tf.image.random_flip_left_right(tf.image.resize(image, (SIZE, SIZE)))
        return tf.cast(image, tf.uint8)

    paths = [str(path) for path in jpegs(folder)]
    dataset = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    # Nothing is read ahead: there is one core, and it would be done while it is the turn of others.
    stream: Iterator = iter(dataset.map(load, num_parallel_calls=1).batch(BATCH).with_options(options))

    def read(batches: int) -> None:
        for _ in range(batches):
            assert next(stream).shape == (BATCH, SIZE, SIZE, 3)

    return read


def jpegs(folder: Path) -> list[Path]:
    return sorted(folder.glob("jpeg/*/*.jpg"))


CONTENDERS: dict[str, Callable[[Path], Reader]] = {
    "pcls": pcls_reader,
    "torch DataLoader, Pillow": torch_reader,
    "tf.data, decode_and_crop_jpeg": tf_data_reader,
    "simplejpeg, decoding alone": decoder_reader,
    "pcls, raw 256 px records": raw_reader,
}


if __name__ == "__main__":
    # One core for everything that a contender starts.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    answer(CONTENDERS[sys.argv[1]](Path(sys.argv[2])), warm_up=1)
