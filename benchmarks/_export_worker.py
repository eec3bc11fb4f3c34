"""One way of classifying single images with ResNet-50, in a process of its own: started by export.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _worker import answer

Run = Callable[[np.ndarray], Any]


def loaded(folder: Path) -> Run:
    """`pcls.load`, asked for one image."""
    import pcls

    classifier = pcls.load(folder / "bundle")
    classifier.compile(1)
    return lambda image: classifier.probabilities([image[0]], 1)


def stablehlo(folder: Path) -> Run:
    """The exported program for CPU, BatchNorm folded, by JAX."""
    import jax

    from pcls.parallel.tuning import tune_process

    tune_process()
    program = jax.export.deserialize(bytearray((folder / "cpu.stablehlo").read_bytes()))
    call = jax.jit(program.call)
    return lambda image: np.asarray(call({"images": image}))


def onnx(folder: Path, name: str = "a.onnx") -> Run:
    """The exported graph, by onnxruntime with its own settings."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"images": image})[0]


def litert(folder: Path) -> Run:
    """The exported file, by LiteRT on all cores."""
    from ai_edge_litert.interpreter import Interpreter

    cores = len(os.sched_getaffinity(0))
    classify = Interpreter(str(folder / "a.tflite"), num_threads=cores).get_signature_runner()
    return lambda image: classify(images=image)["logits"]


CONTENDERS: dict[str, Callable[[Path], Run]] = {
    "pcls.load": loaded,
    "pcls export --to stablehlo --platforms cpu": stablehlo,
    "onnxruntime": onnx,
    "onnxruntime, int8": partial(onnx, name="int8.onnx"),
    "LiteRT": litert,
}


def classifying(name: str, folder: Path) -> Callable[[int], None]:
    run = CONTENDERS[name](folder)
    image = np.load(folder / "image.npy")

    def some(count: int) -> None:
        for _ in range(count):
            run(image)

    return some


if __name__ == "__main__":
    answer(classifying(sys.argv[1], Path(sys.argv[2])), warm_up=5)
