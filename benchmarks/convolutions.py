"""Convolutions on CPU by form, forward and back: what `pcls/nn/convolve.py` chooses from. `make bench`, or

    python benchmarks/convolutions.py [--rounds N] [--dry] [--write [FILE]]

Forms take turns in one process; of each the sum of the output and both gradients, each compiled by itself. `--write`
makes the table by which pcls chooses of what was measured; without it the table stays as it is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from collections.abc import Callable, Iterable
from itertools import groupby, permutations
from math import log
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import _ledger
from _worker import median_and_range

from pcls.nn.convolve import FORMS, FORMS_OF, TABLE, Choice, Form, fastest, kind_of
from pcls.parallel.tuning import tune_process

BATCH, ROUNDS = 16, 15
MARGIN = 1.1


class Shape(NamedTuple):
    """A convolution: height and width of the image, channels, the kernel's height and width."""

    side: int
    inputs: int
    outputs: int
    size: int
    stride: int = 1
    groups: int = 1

    @property
    def pads(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return ((self.size // 2, self.size // 2),) * 2

    @property
    def image(self) -> tuple[int, ...]:
        return BATCH, self.side, self.side, self.inputs

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.size, self.size, self.inputs // self.groups, self.outputs

    @property
    def positions(self) -> float:
        """Of the output, by the input channels that an output sees."""
        return (-(-self.side // self.stride)) ** 2 / self.kernel[2]


SHAPES = [
    Shape(24, 64, 256, 1),
    Shape(24, 256, 64, 1),
    Shape(24, 256, 512, 1, 2),
    Shape(6, 1024, 256, 1),
    Shape(24, 40, 40, 7, 1, 40),
    Shape(6, 160, 160, 7, 1, 160),
    Shape(24, 144, 144, 3, 1, 144),
    Shape(24, 144, 144, 5, 2, 144),
    Shape(24, 128, 128, 3, 1, 32),
    Shape(6, 512, 512, 3, 1, 32),
    Shape(12, 128, 128, 3),
    # The last stages of small ResNets.
    Shape(8, 64, 64, 3),
    Shape(8, 128, 128, 3),
    Shape(6, 128, 128, 3),
    Shape(4, 64, 64, 3),
    Shape(4, 128, 128, 3),
    Shape(8, 256, 256, 3),
    Shape(8, 512, 512, 3),
    # The last stage of a ResNet at 224 px.
    Shape(7, 512, 512, 3),
    Shape(7, 256, 256, 3),
    Shape(6, 256, 256, 3),
    Shape(4, 512, 512, 3),
    Shape(3, 512, 512, 3),
    Shape(2, 512, 512, 3),
    # Without larger ones nothing would say where patches end.
    Shape(56, 64, 128, 3, 2),
    Shape(24, 64, 128, 3, 2),
    Shape(14, 512, 512, 3, 2),
    Shape(14, 256, 512, 3, 2),
    Shape(14, 128, 128, 3, 2),
    Shape(14, 64, 128, 3, 2),
    Shape(12, 128, 256, 3, 2),
    Shape(6, 256, 512, 3, 2),
]


def passes(form: Form, shape: Shape) -> list[Callable[[], Any]]:
    """The output and both gradients of a form, compiled."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    draw = np.random.default_rng(0).standard_normal
    x, kernel = (jnp.asarray(draw(size), jnp.float32) for size in (shape.image, shape.kernel))

    def run(x: Any, kernel: Any) -> Any:
        return FORMS[form](x, kernel, shape.stride, shape.pads, shape.groups)

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


def times_of(shape: Shape, rounds: int) -> dict[Form, list[float]]:
    """Seconds of each form in each round."""
    kind = kind_of(shape.kernel, shape.pads, shape.groups)
    work = {form: passes(form, shape) for form in ("native", *FORMS_OF[kind])}
    times: dict[Form, list[float]] = {form: [] for form in work}
    for _ in range(rounds + 1):
        for form, one in work.items():
            times[form].append(seconds(one))
    # The first one warms up.
    return {form: values[1:] for form, values in times.items()}


def rows(shape: Shape, times: dict[Form, list[float]], table: Iterable[Choice]) -> list[list[str]]:
    """Of the ledger: one for each form beside the native one."""
    chosen = fastest(table, *_key(shape), shape.positions)
    what = f"{shape.size} x {shape.size}, {shape.inputs} to {shape.outputs}, {shape.side} x {shape.side}"
    what += f", stride {shape.stride}" if shape.stride > 1 else ""
    what += f", {shape.groups} groups" if shape.groups > 1 else ""
    return [
        [
            what,
            median_and_range([1000 * value for value in times["native"]], ",.3g"),
            f"{form}: {median_and_range([1000 * value for value in own], ',.3g')}",
            median_and_range([native / ours for native, ours in zip(times["native"], own, strict=True)], ",.2f"),
            chosen,
        ]
        for form, own in times.items()
        if form != "native"
    ]


def choices(measured: Iterable[tuple[Shape, dict[Form, list[float]]]]) -> list[Choice]:
    """The table: for each kind, kernel and stride a form of small outputs and one of large ones.

    Of all pairs of forms, and of all numbers of output positions up to which the first holds, those with the least
    product of median times: a single shape that was measured wrong by a little does not count for much. Forms that
    are not the device's own must in the mean be faster by `MARGIN`, for another version may be better at its own.
    """
    found = []
    for key, group in groupby(sorted(measured, key=lambda one: _key(one[0])), key=lambda one: _key(one[0])):
        own = list(group)
        forms = list(own[0][1])
        limits = sorted({shape.positions for shape, _ in own})
        pairs = [(form, form, limits[-1]) for form in forms]
        pairs += [(*two, limit) for limit in limits[:-1] for two in permutations(forms, 2)]

        def cost(pair: tuple[Form, Form, float], own: list[Any] = own) -> float:
            small, large, limit = pair
            chosen = [(small if shape.positions <= limit else large, times) for shape, times in own]
            return sum(log(median(times[form]) * (1 if form == "native" else MARGIN)) for form, times in chosen)

        small, large, limit = min(pairs, key=cost)
        if small != large:
            found.append(Choice(*key, limit, small))
        found.append(Choice(*key, float("inf"), large))
    return found


def _key(shape: Shape) -> tuple[Any, ...]:
    return kind_of(shape.kernel, shape.pads, shape.groups), shape.size, shape.stride


def table_text(found: Iterable[Choice], measured: str) -> str:
    """convolve_forms.json."""
    lines = [json.dumps(row._asdict() | {"up_to": None if row.up_to == float("inf") else row.up_to}) for row in found]
    head = {"written_by": "python benchmarks/convolutions.py --write", "measured": measured}
    opened = json.dumps(head, indent=2).removesuffix("\n}")
    return opened + ',\n  "choices": [\n    ' + ",\n    ".join(lines) + "\n  ]\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--write", nargs="?", type=Path, const=TABLE, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.dry:
        _ledger.LEDGER = Path(os.devnull)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    tune_process()
    measured = [(shape, times_of(shape, arguments.rounds)) for shape in SHAPES]
    table = choices(measured)
    _ledger.append(
        f"Convolutions on CPU by form, B{BATCH}, float32, forward and back",
        ["convolution", "native, ms", "other form, ms", "times as fast as native", "chosen"],
        [row for one in measured for row in rows(*one, table)],
        packages=["jax"],
        note=f"Two cores, {arguments.rounds} rounds in turn in one process, medians (ranges); output and both "
        "gradients together; chosen: by this table.",
    )
    if arguments.write:
        when = f"{datetime.date.today()}; {_ledger.machine()}; {_ledger.versions(['jax'])}; {arguments.rounds} rounds"
        arguments.write.write_text(table_text(table, when), encoding="utf-8")


if __name__ == "__main__":
    main()
