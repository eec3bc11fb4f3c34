"""Images of several requests, gathered into the batches that the model was compiled for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np

from pcls.deliver.serving.limits import Limits

Answer = Callable[[Sequence[np.ndarray], int], np.ndarray]


class Batcher:
    """Asks the model about what is waiting, as much as fits into a batch, whenever it is free.

    While the model works, images gather; so batches grow by themselves with the load, and a lone image waits for none
    unless `Limits.wait` says so.
    """

    def __init__(
        self, answer: Answer, limits: Limits, device: Executor, told: Callable[[int, float], None] = lambda n, s: None
    ):
        """Makes it; `run` must run beside whoever asks.

        Args:
          answer: inputs and the size that they are padded to -> [inputs, classes].
          limits: sizes and the time to wait.
          device: runs `answer`; of one thread.
          told: hears of each batch: images in it, seconds.
        """
        self._answer, self._limits, self._device, self._told = answer, limits, device, told
        self._waiting: deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = deque()
        self._arrived = asyncio.Event()
        self._enough = asyncio.Event()

    async def ask(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """A row of probabilities for each input; those of one call may come out of several batches.

        Raises:
          Exception: whatever the model raised.
        """
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in inputs]
        self._waiting.extend(zip(inputs, futures, strict=True))
        self._arrived.set()
        if len(self._waiting) >= self._limits.batch:
            self._enough.set()
        return [await future for future in futures] if len(futures) == 1 else await asyncio.gather(*futures)

    async def run(self) -> None:
        """Serves until it is cancelled."""
        while True:
            await self._arrived.wait()
            if self._limits.wait and len(self._waiting) < self._limits.batch:
                self._enough.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._enough.wait(), self._limits.wait)
            await self._one_batch()
            if not self._waiting:
                self._arrived.clear()

    async def _one_batch(self) -> None:
        taken: list[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = []
        while self._waiting and len(taken) < self._limits.batch:
            entry = self._waiting.popleft()
            # Whoever asked may have run out of time.
            if not entry[1].done():
                taken.append(entry)
        if not taken:
            return
        size = next(size for size in self._limits.sizes if size >= len(taken))
        start = time.perf_counter()
        try:
            rows = await asyncio.get_running_loop().run_in_executor(
                self._device, self._answer, [one for one, _ in taken], size
            )
        # Each who asked raises it.
        except Exception as error:
            for _, future in taken:
                if not future.done():
                    future.set_exception(error)
            return
        self._told(len(taken), time.perf_counter() - start)
        for (_, future), row in zip(taken, rows, strict=True):
            if not future.done():
                future.set_result(row)
