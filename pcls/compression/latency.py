"""How long predictions take, several models in turns: what else the machine does falls on all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from pcls.nn.module import Arrays, ModelDef

ROUNDS = 30
# A call of less than this is repeated: the clock and the call itself would be what is measured.
PART_SECONDS = 0.002


@dataclass(frozen=True)
class Latency:
    """Of one batch through the compiled model, without reading and decoding.

    Attributes:
      batch: images in it.
      median, low, high: milliseconds; the quartiles are the spread.
    """

    batch: int
    median: float
    low: float
    high: float


# Definition, params and stats.
Runnable = tuple[ModelDef, Arrays, Arrays]


def latencies(
    models: Sequence[Runnable],
    shape: tuple[int, ...],
    precision: str,
    *,
    batches: Sequence[int] = (1, 32),
    rounds: int | None = None,
) -> list[list[Latency]]:
    """Of each model one for each batch size, on one device.

    Args:
      models: definition, params and stats of each.
      shape: [height, width, channels] of an image.
      precision: type of activations.
      batches: sizes.
      rounds: measurements of each; None: `ROUNDS`.
    """
    found: list[list[Latency]] = [[] for _ in models]
    for batch in batches:
        images = jax.random.normal(jax.random.key(0), (batch, *shape), jnp.dtype(precision))
        calls = [_Call(model, images) for model in models]
        times = np.array([[call.seconds() for call in calls] for _ in range(rounds or ROUNDS)])
        for own, column in zip(found, 1e3 * times.T, strict=True):
            low, median, high = np.quantile(column, (0.25, 0.5, 0.75)).tolist()
            own.append(Latency(batch, median, low, high))
    return found


class _Call:
    """A compiled model with its arrays."""

    def __init__(self, model: Runnable, images: jax.Array):
        definition, params, stats = model
        self._arguments = (*jax.device_put((params, stats)), images)
        self._predict = jax.jit(lambda params, stats, images: definition.apply(params, stats, images)[0])
        self._repeats = 1
        self._repeats = max(1, round(PART_SECONDS / self.seconds()))

    def seconds(self) -> float:
        # The others' weights lie in the caches. Where it runs by itself, its own would.
        self._wait()
        start = time.perf_counter()
        for _ in range(self._repeats):
            self._wait()
        return (time.perf_counter() - start) / self._repeats

    def _wait(self) -> None:
        self._predict(*self._arguments).block_until_ready()
