"""One way of going through files, in a process of its own: started by predict.py, which asks for so many files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from _worker import answer

SIZE, BATCH = 28, 128

# Goes through so many files.
Reader = Callable[[int], None]


def files_of(folder: Path) -> Iterator[Path]:
    """The same files again and again."""
    return cycle(sorted(path for path in folder.rglob("*") if path.is_file()))


def training_reader(folder: Path) -> Reader:
    """What `pcls data bench` calls together: the training's stream, random crops, the threads that it would take."""
    from pcls.data.order import Order
    from pcls.data.pipeline import Workers, training_batches
    from pcls.data.sources.folder import open_folder
    from pcls.data.workers import measure_threads

    source, size = open_folder(folder)[0], preprocessing()
    threads = measure_threads(source, size, random_crop=True).threads
    rows, order = {BATCH: np.arange(BATCH)}, Order(len(source), BATCH, seed=0)
    options = {"order": order, "rows": rows, "random_crop": True, "workers": Workers(threads)}

    def read(count: int) -> None:
        # Anew each time: what is read ahead would be read while it is the turn of others.
        with training_batches(source, size, steps=range(-(-count // BATCH)), **options) as stream:
            for batch in stream:
                assert batch.weight.all()

    return read


def evaluation_reader(folder: Path) -> Reader:
    """Reading and decoding with the exact crop that a prediction sees, in as many threads as a prediction has."""
    from pcls.data.workers import usable_cores
    from pcls.deliver.inputs import read_pixels

    size, files, pool = preprocessing(), files_of(folder), ThreadPoolExecutor(usable_cores())

    def read_some(paths: list[Path]) -> None:
        for path in paths:
            read_pixels(path, size)

    def read(count: int) -> None:
        paths = list(islice(files, count))
        list(pool.map(read_some, (paths[place : place + 8] for place in range(0, count, 8))))

    return read


def predicting(folder: Path) -> Reader:
    """`Classifier.stream`, which `pcls predict` prints, with a cnn28 of ten classes."""
    import jax

    from pcls.deliver.classifier import Classifier
    from pcls.models.registry import define_model
    from pcls.pretrained.bundle import Bundle

    params, stats = define_model("cnn28", height=SIZE, width=SIZE, channels=1, classes=10).init(jax.random.key(0))
    names = tuple(map(str, range(10)))
    classifier = Classifier(Bundle("cnn28", names, preprocessing(), "float32", params, stats, {}))
    files = files_of(folder)

    def read(count: int) -> None:
        assert not any(answer.error for answer in classifier.stream(islice(files, count)))

    return read


def preprocessing():
    from pcls.data.preprocessing import Preprocessing

    return Preprocessing(SIZE, SIZE, 1, (0.3,), (0.3,))


CONTENDERS: dict[str, Callable[[Path], Reader]] = {
    "pcls predict": predicting,
    "pcls data bench, together": training_reader,
    "decoding as a prediction does, alone": evaluation_reader,
}


if __name__ == "__main__":
    # As pcls.load and pcls.train do.
    from pcls.parallel.tuning import tune_process

    tune_process()
    answer(CONTENDERS[sys.argv[1]](Path(sys.argv[2])), warm_up=512)
