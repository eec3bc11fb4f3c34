"""The trade-off as a picture: accuracy over what the target is measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from pcls.compression.measured import Variant
from pcls.evaluation.charts import Axis, short, value_axis

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 600, 24, 304

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
    for variant, x, y in zip(variants, xs, ys, strict=True):
        # Names to the left of the right half's points: they would run out of the picture.
        side, anchor = (-7, "end") if x > (LEFT + RIGHT) / 2 else (7, "start")
        parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="#06c"/>')
        parts.append(f'<text x="{x + side}" y="{y - 7}" text-anchor="{anchor}">{escape(variant.name)}</text>')
    parts += [
        f'<path d="M{LEFT},{BOTTOM}H{RIGHT}" stroke="#666"/>',
        f'<text x="{LEFT - 8}" y="{TOP - 10}" text-anchor="end">top-1 %</text>',
        f'<text x="{(LEFT + RIGHT) // 2}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text></svg>',
    ]
    return "\n".join(parts) + "\n"


def _places(axis: Axis, values: np.ndarray, low: int, high: int) -> list[float]:
    return [round(float(low + (high - low) * at), 1) for at in axis.place(values)]
