"""One contender of step.py in a process of its own: reads a step count a line, trains so many steps, prints seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from _worker import answer

BATCH = 128
Trainer = Callable[[int], None]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The embedded digits at 28 x 28: [n, 28, 28, 1] uint8 and [n] int64."""
    from pcls.data.sources.arrays import open_digits

    source = open_digits().resized(28, 28, 1)
    return source.images, source.labels.astype(np.int64)


def pcls_setup(model: str):
    """The digits recipe with a model, put together as `pcls train` does it."""
    from pcls.config import load_recipe
    from pcls.parallel.tuning import tune_process
    from pcls.run.setup import prepare

    tune_process()
    return prepare(load_recipe("digits_cnn", {"model.name": model, "train.batch_size": BATCH, "augment.shift": 0}))


def pcls_batches(setup, steps: range):
    """Of these steps, as `pcls train` reads them."""
    from pcls.data.pipeline import Workers, training_batches

    return training_batches(
        setup.dataset.train,
        setup.dataset.preprocessing,
        order=setup.order,
        rows={BATCH: setup.rows(BATCH)},
        random_crop=False,
        steps=steps,
        workers=Workers(threads=0),
    )


def pcls_trainer(model: str) -> Trainer:
    """pcls as `pcls train` runs it: batches, the compiled step, metrics read a step late."""
    from dataclasses import replace

    from pcls.parallel.processes import place
    from pcls.training.loop import Hooks, train_loop

    setup = pcls_setup(model)
    one, many = setup.train_step(), setup.train_steps()

    class Placing(Hooks):
        def place(self, batch):
            return place(batch, setup.batch_sharding, BATCH)

    state = setup.initial_state()

    def train(steps: int) -> None:
        nonlocal state
        first = int(state.step)
        plan = replace(setup.plan, steps=first + steps, evaluate_every=10**9, save_every=10**9)
        with pcls_batches(setup, range(first, first + steps)) as batches:
            state, _ = train_loop(state, lambda step, count: one if count == 1 else many, batches, plan, Placing())

    return train


def bare_trainer(model: str) -> Trainer:
    """The compiled step alone, on one batch that lies on the device; nothing is read until the end."""
    import jax

    setup = pcls_setup(model)
    compiled, state = setup.train_step(), setup.initial_state()
    with pcls_batches(setup, range(1)) as batches:
        batch = jax.device_put(next(batches), setup.batch_sharding)

    def train(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = compiled(state, batch)
        float(metrics["loss"])

    return train


def torch_trainer(model: str) -> Trainer:
    """PyTorch, channels-last, the images indexed in memory."""
    import torch
    from torch import nn

    class Rnn(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.RNN(28, 32, batch_first=True), nn.Linear(32, 10)

        def forward(self, x):
            return self.head(self.rnn(x[:, 0])[0][:, -1])

    cnn = nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1600, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    net = cnn.to(memory_format=torch.channels_last) if model == "cnn28" else Rnn()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    images, labels = (torch.from_numpy(array) for array in digits())
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    losses = nn.CrossEntropyLoss()

    def train(steps: int) -> None:
        total = torch.zeros(())
        for _ in range(steps):
            chosen = torch.randint(len(images), (BATCH,))
            x = (images[chosen].float() / 255 - 0.305) / 0.376
            optimizer.zero_grad(set_to_none=True)
            loss = losses(net(x), labels[chosen])
            loss.backward()
            optimizer.step()
            total += loss.detach()
        float(total)

    return train


def keras_trainer(model: str, *, style: str) -> Trainer:
    """Keras on TensorFlow: `fit` on a tf.data pipeline, or `train_on_batch` on arrays."""
    import keras
    import tensorflow as tf

    layers = keras.layers
    start = [keras.Input((28, 28, 1)), layers.Rescaling(1 / 255 / 0.376, -0.305 / 0.376)]
    body = (
        [
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
        ]
        if model == "cnn28"
        else [layers.Reshape((28, 28)), layers.SimpleRNN(32)]
    )
    net = keras.Sequential([*start, *body, layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=style == "fit_jit")
    images, labels = digits()
    data = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(2000).repeat().batch(BATCH).prefetch(4)
    generator = np.random.default_rng(0)

    def train(steps: int) -> None:
        if style.startswith("fit"):
            net.fit(data, steps_per_epoch=steps, epochs=1, verbose=0)
            return
        for _ in range(steps):
            chosen = generator.integers(len(images), size=BATCH)
            net.train_on_batch(images[chosen], labels[chosen])

    return train


CONTENDERS: dict[str, Callable[[str], Trainer]] = {
    "pcls": pcls_trainer,
    "pcls bare step": bare_trainer,
    "torch": torch_trainer,
    "keras fit": lambda model: keras_trainer(model, style="fit"),
    "keras fit jit_compile": lambda model: keras_trainer(model, style="fit_jit"),
    "keras train_on_batch": lambda model: keras_trainer(model, style="batch"),
}


if __name__ == "__main__":
    answer(CONTENDERS[sys.argv[1]](sys.argv[2]), warm_up=30)
