"""Convolutions on CPU by form, forward and back: what `pcls/nn/convolve.py` chooses from. `make bench`, or

    python benchmarks/convolutions.py [--rounds N] [--dry]

Forms take turns in one process; of each the sum of the output and both gradients, each compiled by itself.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _ledger
from _worker import median_and_range

from pcls.nn.convolve import FORMS, chosen_form
from pcls.parallel.tuning import tune_process

BATCH, ROUNDS = 16, 7
# Height and width, inputs, outputs, size, stride, groups; and the forms beside the native one.
SHAPES = [
    (24, 64, 256, 1, 1, 1, ("pointwise",)),
    (24, 256, 64, 1, 1, 1, ("pointwise",)),
    (24, 256, 512, 1, 2, 1, ("pointwise",)),
    (6, 1024, 256, 1, 1, 1, ("pointwise",)),
    (24, 40, 40, 7, 1, 40, ("depthwise",)),
    (6, 160, 160, 7, 1, 160, ("depthwise",)),
    (24, 144, 144, 3, 1, 144, ("depthwise",)),
    (24, 144, 144, 5, 2, 144, ("depthwise",)),
    (24, 128, 128, 3, 1, 32, ("grouped",)),
    (6, 512, 512, 3, 1, 32, ("grouped",)),
    (12, 128, 128, 3, 1, 1, ("patches",)),
    (8, 256, 256, 3, 1, 1, ("patches",)),
    (6, 256, 256, 3, 1, 1, ("patches",)),
    (4, 512, 512, 3, 1, 1, ("patches",)),
    (3, 512, 512, 3, 1, 1, ("patches",)),
    (2, 512, 512, 3, 1, 1, ("patches",)),
    (12, 128, 256, 3, 2, 1, ("patches",)),
    (6, 256, 512, 3, 2, 1, ("patches",)),
]


def passes(form: str, shape: tuple[Any, ...]) -> list[Callable[[], Any]]:
    """The output and both gradients of a form, compiled."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    side, inputs, outputs, size, stride, groups, _ = shape
    pads = ((size // 2, size // 2),) * 2
    draw = np.random.default_rng(0).standard_normal
    x = jnp.asarray(draw((BATCH, side, side, inputs)), jnp.float32)
    kernel = jnp.asarray(draw((size, size, inputs // groups, outputs)), jnp.float32)

    def run(x: Any, kernel: Any) -> Any:
        return FORMS[form](x, kernel, stride, pads, groups)

    forward = jax.jit(run)
    grads = jnp.ones_like(forward(x, kernel))
    of_x = jax.jit(lambda x, kernel, grads: jax.vjp(lambda x: run(x, kernel), x)[1](grads))
    of_kernel = jax.jit(lambda x, kernel, grads: jax.vjp(lambda kernel: run(x, kernel), kernel)[1](grads))
    return [lambda: forward(x, kernel), lambda: of_x(x, kernel, grads), lambda: of_kernel(x, kernel, grads)]


def seconds(work: list[Callable[[], Any]]) -> float:
    import jax

    start = time.perf_counter()
    for one in work:
        jax.block_until_ready(one())
    return time.perf_counter() - start


def row(shape: tuple[Any, ...], rounds: int) -> list[str]:
    side, inputs, outputs, size, stride, groups, forms = shape
    work = {form: passes(form, shape) for form in ("native", *forms)}
    times: dict[str, list[float]] = {form: [] for form in work}
    for _ in range(rounds + 1):
        for form, one in work.items():
            times[form].append(seconds(one))
    # The first one warms up.
    times = {form: values[1:] for form, values in times.items()}
    (other,) = forms
    ratio = [native / ours for native, ours in zip(times["native"], times[other], strict=True)]
    pads = ((size // 2, size // 2),) * 2
    chosen = chosen_form((BATCH, side, side, inputs), (size, size, inputs // groups, outputs), stride, pads, groups)
    return [
        f"{size} x {size}, {inputs} to {outputs}, {side} x {side}"
        + (f", stride {stride}" if stride > 1 else "")
        + (f", {groups} groups" if groups > 1 else ""),
        median_and_range([1000 * value for value in times["native"]], ",.3g"),
        f"{other}: {median_and_range([1000 * value for value in times[other]], ',.3g')}",
        median_and_range(ratio, ",.2f"),
        chosen,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    if arguments.dry:
        _ledger.LEDGER = Path(os.devnull)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    tune_process()
    _ledger.append(
        f"Convolutions on CPU by form, B{BATCH}, float32, forward and back",
        ["convolution", "native, ms", "other form, ms", "times as fast as native", "chosen"],
        [row(shape, arguments.rounds) for shape in SHAPES],
        packages=["jax"],
        note=f"Two cores, {arguments.rounds} rounds in turn in one process, medians (ranges); output and both "
        "gradients together.",
    )


if __name__ == "__main__":
    main()
