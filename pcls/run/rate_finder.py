"""The range test of learning rates on a recipe's data, weights and devices; what it found as text and picture."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pcls.config import Recipe
from pcls.config.load import with_overrides
from pcls.data.pipeline import Workers
from pcls.data.workers import usable_cores
from pcls.errors import UserError
from pcls.evaluation.charts import Axis, short, value_axis
from pcls.parallel.processes import place
from pcls.parallel.tuning import tune_process
from pcls.run.setup import Setup, prepare
from pcls.run.teachers import with_teacher
from pcls.run.weights import Start, start_weights
from pcls.training.optimizers import make_optimizer
from pcls.training.rate_finder import RateCurve, curve, ramp, ramp_losses
from pcls.training.schedules import peak_rate

# Characters of the chart in a terminal, and pixels of the picture.
COLUMNS, ROWS = 64, 12
WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 620, 20, 310


def find_rate(
    recipe: Recipe, start: Start | None = None, *, steps: int = 100, lowest: float = 1e-7, highest: float = 10.0
) -> RateCurve:
    """Trains a copy of the weights while the rate rises from batch to batch, and reads good rates off the loss.

    Batches, augmentation, optimizer, precision and mesh are the recipe's; its schedule, warm-up and growing images
    (`data.progressive`) are left out, and what is frozen at the start stays so. Nothing is written, and a run that
    follows is the same to the bit.

    Args:
      recipe: resolved.
      start: pretrained weights; None: from scratch.
      steps: rates that are tried, 10 or more.
      lowest, highest: of them, as values of `optimizer.lr`.

    Raises:
      UserError: the range is none, recipe, data, model and devices do not fit, or no loss is finite.
    """
    if steps < 10:
        raise UserError(f"--steps is {steps}; 10 or more are needed, as many rates are tried")
    if not 0 < lowest < highest < math.inf:
        raise UserError(f"--from {lowest:g} --to {highest:g}: two rates are needed, 0 < from < to")
    tune_process()
    setup = prepare(with_overrides(recipe, _only_batches(recipe)), start.preprocessing if start else None)
    setup = with_teacher(_with_ramp(setup, lowest, highest, steps))
    weights = start_weights(start, setup, None)
    size, sharding = setup.plan.batch_size, setup.batch_sharding
    workers = Workers(0 if setup.dataset.in_memory else recipe.data.workers or usable_cores())
    with setup.batches(range(steps + 1), workers) as batches:
        on_devices = partial(place, sharding=sharding, batch_size=size)
        train = setup.train_step()
        losses = ramp_losses(
            lambda state, batch: train(state, batch, *setup.given), setup.initial_state(weights), batches, on_devices
        )
    found = curve(np.geomspace(lowest, highest, steps), losses)
    if not len(found.rates):
        raise UserError(f"--from {lowest:g}: the loss is not finite at the first rates already; start from a lower one")
    return found


def _only_batches(recipe: Recipe) -> dict[str, Any]:
    """Changes to the recipe that leave nothing of it but what happens at one step."""
    # Their defaults; a schedule's own arguments are errors beside another schedule.
    of_schedules = ("warmup_start", "end_lr", "step_every", "step_factor", "cooldown", "cooldown_shape")
    changes: dict[str, Any] = {f"optimizer.{key}": None for key in of_schedules}
    changes |= {"optimizer.schedule": "constant", "optimizer.warmup": "0 steps", "data.on_device": False}
    # What learns later does not do so here; a length of 0 exempts from the rules that follow.
    frozen = [
        {"match": rule.match, "until": "0 steps" if rule.until and not rule.until.value else None}
        for rule in recipe.optimizer.freeze
    ]
    return changes | {"optimizer.freeze": frozen, "data.progressive": []}


def _with_ramp(setup: Setup, lowest: float, highest: float, steps: int) -> Setup:
    """The setup, with the ramp for a schedule."""
    section = setup.recipe.optimizer
    # What the optimizer takes for a recipe's rate of 1.
    unit = peak_rate(section, setup.plan.batch_size) / section.lr
    schedule = ramp(lowest * unit, highest * unit, steps)
    optimizer = make_optimizer(section, schedule, setup.model.params, setup.freezing.starts, steps)
    return replace(setup, schedule=schedule, optimizer=optimizer)


def curve_json(found: RateCurve) -> dict[str, Any]:
    """All that was found, as JSON's own types."""
    arrays = {name: getattr(found, name).tolist() for name in ("rates", "losses", "smooth")}
    return {"steepest": found.steepest, "valley": found.valley, "diverged": found.diverged, **arrays}


def curve_text(found: RateCurve) -> str:
    """A chart of the running mean of the loss over the rates, and the suggestions."""
    ended = "the loss rose too far" if found.diverged else "the highest rate was reached"
    lines = [
        f"{len(found.rates)} rates from {short(found.rates[0])} to {short(found.rates[-1])}; then {ended}",
        "",
        *_chart_lines(found),
        "",
        f"{'suggestion':<11} {'optimizer.lr':<13} at",
    ]
    for name, where in (("valley", "the middle of the longest fall"), ("steepest", "the fastest fall")):
        rate = getattr(found, name)
        shown = f"{rate:.2e}" if rate is not None else "none"
        lines.append(f"{name:<11} {shown:<13} {where if rate is not None else 'the loss never fell'}")
    return "\n".join(lines)


def _chart_lines(found: RateCurve) -> list[str]:
    """The running mean in characters; `v` and `s` are at the suggestions."""
    x_axis, y_axis = _axes(found)
    columns = (x_axis.place(found.rates) * (COLUMNS - 1)).round().astype(int)
    rows = ((1 - y_axis.place(_shown(found)).clip(0, 1)) * (ROWS - 1)).round().astype(int)
    grid = np.full((ROWS, COLUMNS), " ")
    grid[rows, columns] = "·"
    for letter, rate in (("s", found.steepest), ("v", found.valley)):
        if rate is not None:
            nearest = int(np.abs(np.log(found.rates / rate)).argmin())
            grid[rows[nearest], columns[nearest]] = letter
    labels = {0: short(y_axis.high), ROWS - 1: short(y_axis.low)}
    lines = [f"{labels.get(row, ''):>8} |{''.join(line)}".rstrip() for row, line in enumerate(grid)]
    first, last = short(found.rates[0]), short(found.rates[-1])
    return [*lines, f"{'':>8} +{'-' * COLUMNS}", f"{'loss':>8}  {first}{last:>{COLUMNS - len(first)}}"]


def _axes(found: RateCurve) -> tuple[Axis, Axis]:
    """Of the rates, logarithmic, and of the running mean; what diverges runs out of the picture."""
    low, high = float(found.rates[0]), float(found.rates[-1])
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    shown = _shown(found)
    y_axis = value_axis(float(shown.min()), float(shown.max()), from_zero=False, may_log=False)
    return Axis(low, high, tuple(10.0**power for power in powers), log=True), y_axis


def _shown(found: RateCurve) -> np.ndarray:
    """The running mean, cut where it is far above where it began: the fall is what one wants to see."""
    lowest = float(found.smooth.min())
    return np.minimum(found.smooth, found.smooth[0] + 0.5 * (found.smooth[0] - lowest) + 1e-3 * abs(lowest))


def write_picture(found: RateCurve, path: Path) -> None:
    """Draws the curve as .png, .svg or .html, by the file's ending.

    Raises:
      UserError: another ending, or the file cannot be written.
    """
    drawn = PICTURES[checked_ending(path)](found)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror})") from error


def checked_ending(path: Path) -> str:
    """The ending of a picture's file, one that can be drawn; UserError otherwise."""
    if path.suffix not in PICTURES:
        raise UserError(f"--out {path}: the name must end in {', '.join(PICTURES)}")
    return path.suffix


def _points(found: RateCurve) -> list[tuple[float, float]]:
    x_axis, y_axis = _axes(found)
    xs = LEFT + (RIGHT - LEFT) * x_axis.place(found.rates)
    ys = BOTTOM - (BOTTOM - TOP) * y_axis.place(_shown(found))
    return [(round(float(x), 1), round(float(y), 1)) for x, y in zip(xs, ys, strict=True)]


def _ticks(found: RateCurve) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
    """Places and words along both axes."""
    x_axis, y_axis = _axes(found)
    xs = LEFT + (RIGHT - LEFT) * x_axis.place(np.array(x_axis.ticks))
    ys = BOTTOM - (BOTTOM - TOP) * y_axis.place(np.array(y_axis.ticks))
    named = [(xs, x_axis.ticks), (ys, y_axis.ticks)]
    along = [[(round(float(at), 1), short(tick)) for at, tick in zip(*axis, strict=True)] for axis in named]
    return along[0], along[1]


def _marks(found: RateCurve) -> list[tuple[float, str]]:
    """Where the suggestions are, and what is written there."""
    x_axis, _ = _axes(found)
    named = [
        (name, rate) for name, rate in (("steepest", found.steepest), ("valley", found.valley)) if rate is not None
    ]
    places = x_axis.place(np.array([rate for _, rate in named]))
    return [
        (round(float(LEFT + (RIGHT - LEFT) * at), 1), f"{name} {rate:.2e}")
        for at, (name, rate) in zip(places, named, strict=True)
    ]


def _svg(found: RateCurve) -> bytes:
    """Only numbers and words of this file enter it: nothing has to be escaped."""
    path = "L".join(f"{x:g},{y:g}" for x, y in _points(found))
    x_ticks, y_ticks = _ticks(found)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        f'<title>Loss over learning rate</title><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for y, text in y_ticks:
        parts.append(f'<path d="M{LEFT},{y}H{RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{text}</text>')
    for x, text in x_ticks:
        parts.append(f'<path d="M{x},{BOTTOM}v5" stroke="#666"/>')
        parts.append(f'<text x="{x}" y="{BOTTOM + 20}" text-anchor="middle">{text}</text>')
    for row, (x, text) in enumerate(_marks(found)):
        parts.append(f'<path d="M{x},{TOP}V{BOTTOM}" stroke="#c40" stroke-dasharray="4 3"/>')
        parts.append(f'<text x="{x + 4}" y="{TOP + 12 + 14 * row}" fill="#c40">{text}</text>')
    parts += [
        f'<path d="M{LEFT},{BOTTOM}H{RIGHT}" stroke="#666"/>',
        f'<path d="M{path}" fill="none" stroke="#06c" stroke-width="1.8"/>',
        f'<text x="{(LEFT + RIGHT) // 2}" y="{HEIGHT - 8}" text-anchor="middle">optimizer.lr</text></svg>',
    ]
    return ("\n".join(parts) + "\n").encode()


def _html(found: RateCurve) -> bytes:
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Loss over learning rate</title>'
    style = "<style>body { max-width: 60rem; margin: 2rem auto; } pre { overflow: auto; }</style>"
    return "\n".join([head, style, _svg(found).decode(), f"<pre>{curve_text(found)}</pre></html>", ""]).encode()


def _png(found: RateCurve) -> bytes:
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    x_ticks, y_ticks = _ticks(found)
    for y, text in y_ticks:
        draw.line([(LEFT, y), (RIGHT, y)], "#dddddd")
        draw.text((LEFT - 8, y), text, "black", anchor="rm")
    for x, text in x_ticks:
        draw.line([(x, BOTTOM), (x, BOTTOM + 5)], "#666666")
        draw.text((x, BOTTOM + 8), text, "black", anchor="ma")
    for row, (x, text) in enumerate(_marks(found)):
        draw.line([(x, TOP), (x, BOTTOM)], "#cc4400")
        draw.text((x + 4, TOP + 2 + 14 * row), text, "#cc4400")
    draw.line([(LEFT, BOTTOM), (RIGHT, BOTTOM)], "#666666")
    draw.line(_points(found), "#0066cc", width=2)
    draw.text(((LEFT + RIGHT) // 2, HEIGHT - 20), "optimizer.lr", "black", anchor="ma")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PICTURES: dict[str, Callable[[RateCurve], bytes]] = {".png": _png, ".svg": _svg, ".html": _html}
