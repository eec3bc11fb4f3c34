"""`pcls data bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pcls.data.bench import InputRates

# What helps where a stage is the limit.
ADVICE = {
    "read": "read from a local disk, or join the files by `pcls data convert`",
    "decode": "make the files smaller by `pcls data convert --reencode`, or add cores",
    "crop": "add cores",
    "batch": "add cores",
    "transfer": "send fewer bytes: a smaller data.image_size",
}


def bench(
    data: Annotated[str, typer.Argument(help="As in `pcls data info`, or a recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in data.image_size=160")] = None,
    need: Annotated[float, typer.Option(help="Images/s that the accelerators take; says how many hosts.", min=0)] = 0,
) -> None:
    """Measure the input by stages, and say which one limits it.

    Example: pcls data bench photos data.image_size=224 --need 20000
    """
    import jax
    import numpy as np

    from pcls.cli.data_recipe import check_pictures, data_recipe
    from pcls.data.bench import measure_input
    from pcls.data.dataset import open_dataset
    from pcls.data.workers import measure_threads, usable_cores

    recipe = data_recipe(data, overrides or [])
    check_pictures(recipe.data, "bench")
    dataset = open_dataset(recipe.data)
    threads = recipe.data.workers
    if not dataset.in_memory and not threads:
        measured = measure_threads(dataset.train, dataset.preprocessing, random_crop=True)
        typer.echo(str(measured), err=True)
        threads = measured.threads

    def transfer(images: np.ndarray) -> None:
        jax.device_put(images).block_until_ready()

    rates = measure_input(
        dataset.train, dataset.preprocessing, threads=threads, cores=usable_cores(), transfer=transfer
    )
    typer.echo(rates_text(rates, device=jax.devices()[0].platform, need=need))


def rates_text(rates: InputRates, *, device: str, need: float) -> str:
    """The table, and what follows from it."""
    lines = ["stage       images/s  share of the time on one core"]
    notes = {next(iter(rates.stages)): f"{rates.kilobytes:,.1f} kB an image", "transfer": f"to {device}"}
    for stage, rate in rates.stages.items():
        lines.append(f"{stage:<10}{rate:>10,.0f}  {rates.shares[stage]:>5.1%}  {notes.get(stage, '')}".rstrip())
    threads = f"{rates.threads} thread{'s' * (rates.threads != 1)}" if rates.threads else "no thread of its own"
    lines.append(f"{'together':<10}{rates.together:>10,.0f}  with {threads} on {rates.cores} cores")
    if rates.undecodable:
        lines.append(f"{rates.undecodable} of the images looked at cannot be decoded: pcls data doctor names them")
    lines.append(f"the limit is {rates.limit}: {ADVICE[rates.limit]}")
    if need:
        hosts = rates.hosts(need)
        lines.append(f"{need:,.0f} images/s need {hosts:,} host{'s' * (hosts != 1)} like this one")
    return "\n".join(lines)
