"""What a program does with each parameter, and where its state lies, as tables for people."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from pcls.training.freezing import NEVER
from pcls.training.optimizers import parameter_table
from pcls.training.program import Program


@dataclass(frozen=True)
class StatePart:
    """One part of the state.

    Attributes:
      name: `parameters`, `statistics`, `optimizer` or `averages`.
      arrays, split: how many there are, and how many of them are split over devices.
      bytes, bytes_per_device: of all, and of what one device holds.
      split_bytes: of the arrays that are split.
    """

    name: str
    arrays: int
    split: int
    bytes: int
    bytes_per_device: int
    split_bytes: int


def state_parts(program: Program) -> list[StatePart]:
    """The parts of a program's state that hold any array."""
    state = program.state_shapes
    parts = {
        "parameters": state.params,
        "statistics": state.stats,
        "optimizer": state.opt_state,
        "averages": state.ema,
    }
    return [_part(name, jax.tree.leaves(tree)) for name, tree in parts.items() if jax.tree.leaves(tree)]


def _part(name: str, leaves: Sequence[Any]) -> StatePart:
    split = [leaf for leaf in leaves if not leaf.sharding.is_fully_replicated]
    return StatePart(
        name=name,
        arrays=len(leaves),
        split=len(split),
        bytes=sum(map(_bytes, leaves)),
        bytes_per_device=sum(_bytes_per_device(leaf) for leaf in leaves),
        split_bytes=sum(map(_bytes, split)),
    )


def _bytes(leaf: Any) -> int:
    return leaf.size * leaf.dtype.itemsize


def _bytes_per_device(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def state_text(program: Program) -> str:
    """The parts as lines of a table: arrays, bytes, bytes a device, and the share that is really split."""
    lines = ["state          arrays        bytes     a device    split"]
    for part in state_parts(program):
        share = part.split_bytes / max(part.bytes, 1)
        lines.append(
            f"  {part.name:<12} {part.arrays:>6}  {_megabytes(part.bytes)}  {_megabytes(part.bytes_per_device)}  "
            f"{share:>7.2%} ({part.split} of {part.arrays})"
        )
    return "\n".join(lines)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:>8,.2f} MB"


def write_parameter_table(program: Program, path: Path) -> None:
    """Writes a row for every parameter: its shape, update rule, weight decay, rate, and what it is split over."""
    updates = program.update_shardings()
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        columns = ("path", "shape", "count", "rule", "decay", "lr_scale", "learns_from", "split", "optimizer_split")
        table.writerow(columns)
        for row in parameter_table(program.recipe.optimizer, program.model.params, program.freezing.starts):
            shape, start = " x ".join(map(str, row.shape)), "never" if row.start == NEVER else int(row.start)
            split = (_axes(program.state_shardings.params[row.path].spec), _axes(updates[row.path].spec))
            table.writerow((row.path, shape, row.count, row.rule, row.decay, row.lr_scale, start, *split))


def _axes(spec: Any) -> str:
    """`- - - fsdp` for a kernel whose last dimension is split; nothing for one that is whole."""
    if all(part is None for part in spec):
        return ""
    return " ".join("-" if part is None else part if isinstance(part, str) else "*".join(part) for part in spec)
