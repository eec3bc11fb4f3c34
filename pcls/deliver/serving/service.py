"""What the server knows: the model, what is held, whether it takes requests on."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pcls.data.decode import DecodeError
from pcls.deliver.classifier import Classifier
from pcls.deliver.explanations import Explainer
from pcls.deliver.serving.batching import Batcher
from pcls.deliver.serving.body import check_picture, png_size
from pcls.deliver.serving.limits import DAMAGED, STARTING, Limits, Refused, Room
from pcls.deliver.serving.metrics import Metrics

# What is decoded in less time than it takes to hand it to another thread and back.
ICON_BYTES, ICON_PIXELS = 16_384, 16_384


@dataclass(frozen=True)
class Answered:
    """Probabilities, and what they took.

    Attributes:
      rows: [classes] of each file.
      read: seconds until the files were decoded.
      model: seconds in the queue and in the model.
    """

    rows: list[np.ndarray]
    read: float
    model: float


class Service:
    """A classifier with its threads: some decode, and one, the device's, asks the model.

    Attributes:
      classifier: the model.
      limits: what is taken on.
      room: what is held.
      metrics: what happened.
      is_ready: whether everything is compiled.
      is_draining: whether the end was asked for.
    """

    def __init__(self, classifier: Classifier, limits: Limits):
        self.classifier, self.limits = classifier, limits
        self.room, self.metrics = Room(limits), Metrics(limits)
        self.metrics.waiting.set_function(lambda: self.room.images)
        self.is_ready = self.is_draining = False
        preprocessing = classifier.preprocessing
        self._sees_icons = preprocessing.height * preprocessing.width <= ICON_PIXELS
        self._decoders = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "decode")
        self._device = ThreadPoolExecutor(1, "device")
        self._explainer = Explainer(classifier)
        self._batcher = Batcher(classifier.probabilities, limits, self._device, self.metrics.batch)

    async def run(self, ready: Callable[[], None]) -> None:
        """Compiles, calls `ready`, then answers, until it is cancelled."""
        await asyncio.get_running_loop().run_in_executor(self._device, self._compile)
        self.is_ready = True
        self.metrics.ready.set(1)
        ready()
        await self._batcher.run()

    def close(self) -> None:
        """Lets the threads go; whatever they are at, nobody waits for it."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._device.shutdown(wait=False, cancel_futures=True)

    async def answer(self, files: Sequence[bytes]) -> Answered:
        """Probabilities for some files.

        Raises:
          Refused: they cannot be read, or there is no room.
        """
        self.check_ready()
        with self.room.for_images(len(files)):
            start = time.perf_counter()
            inputs = await self._decoded(files)
            read = time.perf_counter()
            rows = await self._batcher.ask(inputs)
            self.metrics.images.inc(len(files))
            return Answered(rows, read - start, time.perf_counter() - read)

    async def explain(self, data: bytes, number: int | None) -> bytes:
        """A picture, as PNG, of what in a file speaks for a class; None: for the most probable one.

        Raises:
          Refused: it cannot be read, or there is no room.
        """
        self.check_ready()
        loop = asyncio.get_running_loop()
        with self.room.for_images(1):
            inputs = await self._decoded([data])
            if number is None:
                (row,) = await self._batcher.ask(inputs)
                number = int(row.argmax())
            pixels = await loop.run_in_executor(self._device, self._explainer.picture, inputs[0], number)
            return await loop.run_in_executor(self._decoders, _png, pixels)

    def check_ready(self) -> None:
        """Refused before everything is compiled."""
        if not self.is_ready:
            raise Refused(STARTING)

    async def _decoded(self, files: Sequence[bytes]) -> list[np.ndarray]:
        if self._sees_icons and sum(map(len, files)) <= ICON_BYTES and all(map(_is_icon, files)):
            return self._read(files)
        return await asyncio.get_running_loop().run_in_executor(self._decoders, self._read, files)

    def _read(self, files: Sequence[bytes]) -> list[np.ndarray]:
        if len(files) == 1:
            return [self._read_one(files[0])]
        found = []
        for number, data in enumerate(files, 1):
            try:
                found.append(self._read_one(data))
            except Refused as error:
                raise Refused(error.why, number) from error
        return found

    def _read_one(self, data: bytes) -> np.ndarray:
        check_picture(data, self.classifier.preprocessing)
        try:
            return self.classifier.read(data)
        except DecodeError as error:
            raise Refused(DAMAGED) from error

    def _compile(self) -> None:
        # All of Pillow's formats now: the first image of each kind would wait for its parser.
        Image.init()
        for size in self.limits.sizes:
            self.classifier.compile(size)
        self._explainer.picture(np.zeros(self.classifier.preprocessing.shape, np.uint8), 0)

    def facts(self) -> dict[str, Any]:
        """What the model is, as plain values."""
        bundle = self.classifier.bundle
        preprocessing = bundle.preprocessing
        return {
            "model": bundle.model,
            "classes": list(bundle.class_names),
            "several_labels": bool(bundle.thresholds),
            "input": {"height": preprocessing.height, "width": preprocessing.width, "channels": preprocessing.channels},
            "precision": bundle.precision,
            "calibration": None if bundle.calibration is None else str(bundle.calibration),
            "metrics": {name: value for name, value in bundle.metrics.items() if np.isfinite(value)},
            "origin": dict(bundle.origin),
            "explanation": self._explainer.method,
            "limits": {
                "body": self.limits.body,
                "images": self.limits.batch,
                "waiting": self.limits.queue,
                "seconds": self.limits.seconds,
            },
        }


def _is_icon(data: bytes) -> bool:
    size = png_size(data)
    return size is not None and size[0] * size[1] <= ICON_PIXELS


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
