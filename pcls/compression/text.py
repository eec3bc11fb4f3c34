"""What compression did, as text."""

from __future__ import annotations

from collections.abc import Sequence

from pcls.compression.latency import Latency
from pcls.compression.measured import Compressed, Variant, points_lost
from pcls.compression.sensitivity import Sensitivity
from pcls.observe.table import aligned

# The file has all of them.
MOST_LAYERS = 20


def variants_text(variants: Sequence[Variant]) -> str:
    """Before and after, a line each; times beside those of the first."""
    first = variants[0]
    sizes = [latency.batch for latency in first.latencies]
    header = [
        "",
        "records",
        "right",
        "top-1 %",
        "points",
        "parameters",
        "MFLOPs",
        "of it",
        "file",
        "of it",
        *(f"ms, batch {size}" for size in sizes),
    ]
    rows = []
    for variant in variants:
        found, times = variant.evaluation, zip(variant.latencies, first.latencies, strict=True)
        rows.append(
            [
                variant.name,
                f"{found.n:,}",
                f"{round(found.top1 * found.n):,}",
                f"{100 * found.top1:.2f}",
                "" if variant is first else f"{100 * (found.top1 - first.evaluation.top1):+.2f}",
                f"{variant.parameters:,}",
                f"{variant.flops / 1e6:,.4g}",
                "" if variant is first else f"{variant.flops / first.flops:.1%}",
                _bytes(variant.file_bytes),
                "" if variant is first else f"{variant.file_bytes / first.file_bytes:.1%}",
                *(_time(own, other, beside=variant is not first) for own, other in times),
            ]
        )
    return "\n".join(aligned([header, *rows]))


def slower_text(found: Compressed) -> str:
    """Where what was written is slower than what it was made of, though something else was hoped for; else empty.

    Integers for inputs are worth their time where they are more accurate than those for weights alone.
    """
    first, last = found.variants[0], found.variants[-1]
    slower = [
        (own.median / other.median, own.batch)
        for own, other in zip(last.latencies, first.latencies, strict=True)
        # Beyond what times differ by themselves.
        if own.low > other.high
    ]
    if not slower:
        return ""
    ratio, batch = max(slower)
    told = f"slower than {first.name} on this machine: x {ratio:.2f} in batches of {batch}"
    if last.flops < first.flops:
        return f"fewer FLOPs, and {told}; small networks take their time for other things"
    weights_lost, lost = (points_lost(first.evaluation, one.evaluation) for one in (found.variants[1], last))
    if any(row.inputs for row in found.sensitivities) and weights_lost <= lost:
        return f"int8 inputs are {told}; integers for weights alone are as accurate: --weights-only"
    return ""


def _time(own: Latency, first: Latency, *, beside: bool) -> str:
    ratio = f", x {own.median / first.median:.2f}" if beside else ""
    return f"{own.median:.3g} ({own.low:.3g} to {own.high:.3g}){ratio}"


def _bytes(number: int) -> str:
    return f"{number / 1e6:.2f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"


def sensitivities_text(rows: Sequence[Sensitivity]) -> str:
    """The layers that suffer most, a line each."""
    header = ["only this kernel quantized", "inputs", "error of logits", "changed", "lost", "records"]
    lines = [
        [
            row.path,
            "int8" if row.inputs else "as is",
            f"{row.error:.2%}",
            f"{row.changed:,}",
            f"{row.lost:+,}",
            f"{row.records:,}",
        ]
        for row in rows[:MOST_LAYERS]
    ]
    left = len(rows) - len(lines)
    return "\n".join([*aligned([header, *lines]), *([f"... {left} more"] if left else [])])
