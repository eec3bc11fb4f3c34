"""A network of every kind of layer that training treats in its own way, small enough to compile in a second."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest
from flax import nnx

from pcls.config import Recipe, with_overrides
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import Preprocessing
from pcls.models.registry import MODELS, Entry
from pcls.nn.conv import Conv
from pcls.nn.dropout import Dropout
from pcls.nn.norm import BatchNorm
from pcls.nn.pooling import global_mean_pool
from pcls.nn.training import TrainingPass
from pcls.training.program import Program, make_program

SIZE, CLASSES, BATCH, RECORDS = 8, 4, 32, 320


class Tiny(nnx.Module):
    """Two normalised convolutions, dropout, the head."""

    def __init__(self, *, channels, classes, dropout=0.0, dtype, rngs):
        self.conv1 = Conv(channels, 8, 3, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(8, rngs=rngs)
        self.conv2 = Conv(8, 16, 3, stride=2, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(16, rngs=rngs)
        self.dropout = Dropout(dropout, 0)
        self.head = nnx.Linear(16, classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array, training: TrainingPass | None = None) -> jax.Array:
        x = nnx.relu(self.bn1(self.conv1(images), training))
        x = nnx.relu(self.bn2(self.conv2(x), training))
        return self.head(self.dropout(global_mean_pool(x), training))


@pytest.fixture(scope="module")
def program() -> Iterator[object]:
    """A function from a number of devices and overrides to the program of the tiny network, `model.name=tiny`."""
    entry = Entry("for tests", Tiny, SIZE, SIZE, 1, CLASSES, options=frozenset(("dropout",)))
    preprocessing = Preprocessing(SIZE, SIZE, 1, (0.5,), (0.25,))

    def make(devices: int = 8, **overrides: object) -> Program:
        settings = {
            "model.name": "tiny",
            "train.batch_size": BATCH,
            "train.duration": "50 steps",
            "optimizer.name": "sgd",
            "optimizer.lr": 0.02,
            "optimizer.schedule": "constant",
        }
        recipe = with_overrides(Recipe(), settings | overrides)
        some = jax.devices()[:devices]
        return make_program(recipe, preprocessing, classes=CLASSES, records=RECORDS, devices=some)

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(MODELS, "tiny", entry)
        yield make


@pytest.fixture(scope="session")
def batch_at():
    """A function from a step to its batch: each class is brighter in another corner; a tenth has the weight 0."""

    def make(step: int) -> Batch:
        rng = np.random.default_rng(step)
        label = rng.integers(0, CLASSES, BATCH).astype(np.int32)
        image = rng.normal(110, 50, (BATCH, SIZE, SIZE, 1))
        half = SIZE // 2
        for row, corner in enumerate(label):
            top, left = (corner // 2) * half, (corner % 2) * half
            image[row, top : top + half, left : left + half] += 60
        return Batch(
            image=image.clip(0, 255).astype(np.uint8),
            label=label,
            weight=(rng.random(BATCH) > 0.1).astype(np.float32),
            record=(np.arange(BATCH) + step * BATCH).astype(np.int32) % RECORDS,
            epoch=np.full(BATCH, step * BATCH // RECORDS, np.int32),
        )

    return make


@pytest.fixture(scope="session")
def host_copy():
    """A function that copies a state to the host, for comparison after its buffers were given up."""
    return lambda tree: jax.tree.map(np.array, jax.device_get(tree))
