"""Partial loading: which array of some weights becomes which of a model, by rules over paths, told as a table."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcls.config.model import RenameRule
from pcls.errors import UserError
from pcls.nn.module import Arrays

# Lines of the table on the screen.
MAX_LINES = 12


@dataclass(frozen=True)
class Row:
    """What became of one array.

    Attributes:
      sign: `=` taken over, `+` drawn anew, `-` of the weights alone.
      path: in the model; of what is not in it, in the weights.
      shape: of the array.
      note: why, or where it came from.
    """

    sign: str
    path: str
    shape: tuple[int, ...]
    note: str


@dataclass(frozen=True)
class Loaded:
    """Arrays for a model, and what became of each.

    Attributes:
      arrays: by the model's paths.
      rows: first of the model, in its order, then those of the weights alone.
    """

    arrays: Arrays
    rows: tuple[Row, ...]


def load(
    weights: Mapping[str, Any],
    fresh: Mapping[str, Any],
    *,
    rename: Sequence[RenameRule] = (),
    skip: Mapping[str, str],
    source: str,
    options: str = "",
) -> Loaded:
    """Takes over what the rules leave.

    Args:
      weights: path to array.
      fresh: the model's own, drawn from the seed.
      rename: of the paths of the weights; the first that matches holds.
      skip: regular expression to reason: of paths of the model that are drawn anew, and of weights that are not used.
      source, options: what the weights are called, and what of the model they were trained with, for messages.

    Raises:
      UserError: a rule that matches nothing or everything; arrays that are missing, left over or of other shapes.
    """
    origins = _renamed(weights, rename)
    reasons = {path: _reason(path, skip) for path in (*fresh, *origins)}
    _check_skip(skip, fresh, origins)
    _check_complete(
        f"{source}, trained with {options}," if options else source,
        missing=[path for path in fresh if path not in origins and not reasons[path]],
        unknown=[path for path in origins if path not in fresh and not reasons[path]],
        misshaped=[
            f"{path} has {_size(weights[origins[path]].shape)} for {_size(leaf.shape)}"
            for path, leaf in fresh.items()
            if path in origins and not reasons[path] and weights[origins[path]].shape != leaf.shape
        ],
    )
    arrays, rows = {}, []
    for path, leaf in fresh.items():
        taken = not reasons[path]
        arrays[path] = weights[origins[path]] if taken else leaf
        moved = f"from {origins[path]}" if taken and origins[path] != path else ""
        rows.append(Row("=" if taken else "+", path, tuple(leaf.shape), moved or reasons[path]))
    unused = [origin for path, origin in origins.items() if reasons[path] and path not in fresh]
    rows += [Row("-", origin, tuple(weights[origin].shape), "of the weights alone, not used") for origin in unused]
    return Loaded(arrays, tuple(rows))


def _renamed(paths: Iterable[str], rules: Sequence[RenameRule]) -> dict[str, str]:
    """New path to the path in the weights."""
    origins: dict[str, str] = {}
    unused = list(rules)
    for path in paths:
        rule = next((rule for rule in rules if re.search(rule.match, path)), None)
        new = path if rule is None else _substituted(rule, path)
        if rule in unused:
            unused.remove(rule)
        if new in origins:
            raise UserError(f"transfer.rename: {origins[new]} and {path} would both be called {new}; narrow the rules")
        origins[new] = path
    if unused:
        raise UserError(
            f"transfer.rename: {unused[0].match!r} matches no path of the weights that no earlier rule matches; they "
            f"look like {', '.join(list(origins.values())[:4])}"
        )
    return origins


def _substituted(rule: RenameRule, path: str) -> str:
    try:
        return re.sub(rule.match, rule.to, path)
    except (re.error, IndexError) as error:
        raise UserError(f"transfer.rename: `to: {rule.to}` cannot follow {rule.match!r} ({error})") from error


def _reason(path: str, skip: Mapping[str, str]) -> str:
    """Why a path is skipped; empty: it is not."""
    return next((reason for match, reason in skip.items() if re.search(match, path)), "")


def _check_skip(skip: Mapping[str, str], fresh: Iterable[str], origins: Iterable[str]) -> None:
    paths, model = {*fresh, *origins}, list(fresh)
    for match in skip:
        if not any(re.search(match, path) for path in paths):
            raise UserError(f"transfer.skip: {match!r} matches no path; they look like {', '.join(model[:4])}")
    if all(_reason(path, skip) for path in model):
        raise UserError("transfer.skip matches every array of the model; leave model.init out to train from scratch")


def _check_complete(source: str, missing: list[str], unknown: list[str], misshaped: list[str]) -> None:
    faults = {"missing in them": missing, "not of the model": unknown, "of another shape": misshaped}
    told = [f"{len(paths)} {what} ({_few(paths)})" for what, paths in faults.items() if paths]
    if told:
        raise UserError(
            f"the weights in {source} do not fit the model: {'; '.join(told)}; choose the same model.*, or say what "
            "shall be drawn anew by transfer.skip and what is called otherwise by transfer.rename"
        )


def _few(paths: Sequence[str]) -> str:
    return ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "1"


def loaded_text(rows: Sequence[Row]) -> str:
    """A summary, and a line for each array that was not simply taken over, as far as they fit on a screen."""
    of_model = [row for row in rows if row.sign != "-"]
    taken = [row for row in of_model if row.sign == "="]
    numbers, whole = (sum(math.prod(row.shape) for row in some) for some in (taken, of_model))
    told = [row for row in rows if row.note]
    width = max((len(row.path) for row in told), default=0)
    shape = max((len(_size(row.shape)) for row in told), default=0)
    lines = [f"  {row.sign} {row.path:<{width}}  {_size(row.shape):<{shape}}  {row.note}" for row in told[:MAX_LINES]]
    more = [f"    and {len(told) - MAX_LINES:,} more"] if len(told) > MAX_LINES else []
    summary = f"weights: {len(taken):,} of {len(of_model):,} arrays taken over, {numbers:,} of {whole:,} numbers"
    return "\n".join([summary, *lines, *more])


def write_loaded(rows: Sequence[Row], path: Path) -> None:
    """Writes the whole table as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("sign", "path", "shape", "note"))
        table.writerows((row.sign, row.path, _size(row.shape), row.note) for row in rows)
