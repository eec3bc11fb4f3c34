"""The trade-off as a picture: accuracy over what the target is measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from pcls.compression.measured import Variant
from pcls.evaluation.charts import Axis, short, value_axis

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 600, 24, 304
# About what a letter takes across, and a line of text down.
LETTER, LINE = 6.4, 13
# Left, top, right, bottom.
Box = tuple[float, float, float, float]

# Of each kind of target: what stands below the picture, and the number of a variant.
_MEASURES: Mapping[str, tuple[str, Callable[[Variant], float]]] = {
    "int8": ("weight file, MB", lambda variant: variant.file_bytes / 1e6),
    "size": ("weight file, MB", lambda variant: variant.file_bytes / 1e6),
    "flops": ("MFLOPs of an image", lambda variant: variant.flops / 1e6),
    "latency": ("ms, one image", lambda variant: variant.latencies[0].median),
}


def tradeoff_svg(kind: str, variants: Sequence[Variant]) -> str:
    """Top-1 accuracy of each variant, as an SVG picture.

    Args:
      kind: of the target.
      variants: as measured, the model as it was first.
    """
    label, measure = _MEASURES[kind]
    across = np.array([measure(variant) for variant in variants])
    top1 = np.array([100 * variant.evaluation.top1 for variant in variants])
    x_axis = value_axis(0.0, float(across.max()), from_zero=True, may_log=False)
    y_axis = value_axis(float(top1.min()), float(top1.max()), from_zero=False, may_log=False)
    xs, ys = _places(x_axis, across, LEFT, RIGHT), _places(y_axis, top1, BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        f'<title>Top-1 accuracy over {label}</title><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for y, tick in zip(_places(y_axis, np.array(y_axis.ticks), BOTTOM, TOP), y_axis.ticks, strict=True):
        parts.append(f'<path d="M{LEFT},{y}H{RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{short(tick)}</text>')
    for x, tick in zip(_places(x_axis, np.array(x_axis.ticks), LEFT, RIGHT), x_axis.ticks, strict=True):
        parts.append(f'<path d="M{x},{BOTTOM}v5" stroke="#666"/>')
        parts.append(f'<text x="{x}" y="{BOTTOM + 20}" text-anchor="middle">{short(tick)}</text>')
    path = "L".join(f"{x},{y}" for x, y in zip(xs, ys, strict=True))
    parts.append(f'<path d="M{path}" fill="none" stroke="#06c" stroke-width="1.8"/>')
    parts += [f'<circle cx="{x}" cy="{y}" r="4" fill="#06c"/>' for x, y in zip(xs, ys, strict=True)]
    parts += _names([variant.name for variant in variants], xs, ys)
    parts += [
        f'<path d="M{LEFT},{BOTTOM}H{RIGHT}" stroke="#666"/>',
        f'<text x="{LEFT - 8}" y="{TOP - 10}" text-anchor="end">top-1 %</text>',
        f'<text x="{(LEFT + RIGHT) // 2}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text></svg>',
    ]
    return "\n".join(parts) + "\n"


def _names(names: Sequence[str], xs: Sequence[float], ys: Sequence[float]) -> list[str]:
    """A name beside each point, above it or below, where no other name and no point is."""
    taken, parts = [(x - 5, y - 5, x + 5, y + 5) for x, y in zip(xs, ys, strict=True)], []
    for name, x, y in zip(names, xs, ys, strict=True):
        wide = LETTER * len(name)
        # To the left of the right half's points: the name would run out of the picture.
        left, anchor, at = (x - 7 - wide, "end", x - 7) if x > (LEFT + RIGHT) / 2 else (x + 7, "start", x + 7)
        lines = [y + sign * (7 + LINE * more) for more in range(len(names) + 1) for sign in (-1, 1)]
        boxes = [(left, line - LINE / 2, left + wide, line + LINE / 2) for line in lines]
        inside = [box for box in boxes if box[1] > TOP - LINE and box[3] < BOTTOM]
        free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
        box = (free or inside or boxes)[0]
        taken.append(box)
        # White around the letters, where the line runs behind them.
        halo = 'paint-order="stroke" stroke="#fff" stroke-width="3"'
        parts.append(f'<text x="{at}" y="{round(box[3] - 3, 1)}" text-anchor="{anchor}" {halo}>{escape(name)}</text>')
    return parts


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _places(axis: Axis, values: np.ndarray, low: int, high: int) -> list[float]:
    return [round(float(low + (high - low) * at), 1) for at in axis.place(values)]
