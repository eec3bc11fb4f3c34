"""`pcls bench`."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from pcls.errors import UserError

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def bench(
    models: Annotated[list[str] | None, typer.Argument(help="Names of `pcls models list`; none: resnet50.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, rocm or tpu; empty: the best that is here.")] = "",
    batch_size: Annotated[int, typer.Option(help="Images a step; 0: doubled until memory is full.", min=0)] = 0,
    precision: Annotated[str, typer.Option(help="bfloat16 or float32; empty: float32 on cpu only.")] = "",
    seconds: Annotated[float, typer.Option(help="Length of each measurement.", min=0.1)] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how fast models train and predict here, with made-up images.

    Example: pcls bench resnet50 convnext_tiny
    """
    if device:
        if device not in PLATFORMS:
            raise UserError(f"--device {device!r}: one of {', '.join(PLATFORMS)} is needed")
        os.environ["JAX_PLATFORMS"] = device
    if precision not in ("", "bfloat16", "float32"):
        raise UserError(f"--precision {precision!r}: bfloat16 or float32 is needed")

    import jax

    from pcls.observe.environment import environment
    from pcls.parallel.tuning import tune_process
    from pcls.planning.bench import bench_models

    tune_process()
    try:
        platform = jax.default_backend()
    except RuntimeError as error:
        raise UserError(f"--device {device}: jax has no such device here ({str(error).splitlines()[0]})") from error
    chosen = precision or ("float32" if platform == "cpu" else "bfloat16")
    rates = bench_models(
        models or ["resnet50"],
        precision=chosen,
        batch_size=batch_size,
        seconds=seconds,
        say=lambda text: typer.echo(text, err=True),
    )
    if as_json:
        rows = [vars(rate) for rate in rates]
        typer.echo(json.dumps({"environment": environment(), "precision": chosen, "rates": rows}, indent=2))
        return
    typer.echo(f"{environment()['devices']}, {chosen}")
    typer.echo("model           task       batch    images/s   (range)              MFU  compiled     memory  compile")
    for rate in rates:
        typer.echo(
            f"{rate.model:<15} {rate.task:<9} {rate.batch_size:>6,} {rate.images_per_second:>11,.1f}   "
            f"{f'({rate.slowest:,.1f} to {rate.fastest:,.1f})':<18} {_share(rate.mfu)}  {_share(rate.compiled_mfu)} "
            f"{rate.memory_bytes / 1e6:>8,.0f} MB  {rate.compile_seconds:>5.1f} s"
        )


def _share(value: float | None) -> str:
    return "     -" if value is None else f"{value:>6.1%}"
