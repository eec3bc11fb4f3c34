"""One contender of zoo.py in a process of its own: reads a step count a line, trains so many steps, prints seconds.

Every contender trains on one batch that lies in memory, with SGD and momentum, and 1,000 classes.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from _worker import answer

CLASSES, RATE, MOMENTUM = 1000, 0.01, 0.9


def examples(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [batch, size, size, 3] float32, and labels [batch] int64."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, size, size, 3), np.float32), rng.integers(CLASSES, size=batch)


def train_pcls(name: str, batch: int, size: int) -> Any:
    """As pcls compiles a training step, in a process that is set up as pcls does it."""
    from pcls.parallel.tuning import tune_process

    tune_process()
    import jax
    import optax

    from pcls.models.registry import define_model
    from pcls.nn.training import TrainingPass
    from pcls.training.program import _compiler_options

    model = define_model(name, height=size, width=size, channels=3, classes=CLASSES)
    params, stats = jax.jit(model.init)(jax.random.key(0))
    optimizer = optax.sgd(RATE, MOMENTUM)

    def step(state: Any, images: Any, labels: Any) -> Any:
        params, stats, moments = state

        def loss_of(params: Any) -> Any:
            logits, new = model.apply(params, stats, images, TrainingPass())
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        (loss, new), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, moments = optimizer.update(grads, moments)
        kept = jax.tree.map(lambda old, now: MOMENTUM * old + (1 - MOMENTUM) * now, stats, new)
        return (optax.apply_updates(params, updates), kept, moments), loss

    options = _compiler_options(jax.default_backend(), model)
    compiled = jax.jit(step, donate_argnums=0, compiler_options=options)
    state = params, stats, optimizer.init(params)
    images, labels = jax.device_put(examples(batch, size))

    def train(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, loss = compiled(state, images, labels)
        float(loss)

    return train


def train_timm(name: str, batch: int, size: int) -> Any:
    """timm on torch, channels last."""
    import _timm  # noqa: F401
    import timm
    import torch

    model = timm.create_model(name, num_classes=CLASSES).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, fused=True)
    images, labels = map(torch.from_numpy, examples(batch, size))
    # Already channels last in memory.
    images = images.permute(0, 3, 1, 2)

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        loss.item()

    return train


if __name__ == "__main__":
    contender, name, batch, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    answer({"pcls": train_pcls, "timm": train_timm}[contender](name, batch, size), warm_up=2)
