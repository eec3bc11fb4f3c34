"""`pcls data`: its verbs, and `pcls data info`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from pcls.cli.data_bench import bench
from pcls.cli.data_convert import convert
from pcls.cli.data_doctor import doctor
from pcls.cli.data_imbalance import imbalance
from pcls.cli.data_show import show

# Means and deviations.
MOST_SHOWN = 6

app = typer.Typer(help="Look at data, and convert it.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def group() -> None:
    """Look at data, and convert it."""


@app.command()
def info(
    data: Annotated[
        str,
        typer.Argument(
            help="A folder of images, a file or folder of another source, SOURCE:PATH, tfds:NAME[:split] or digits."
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in data.validation=0.1")] = None,
) -> None:
    """Print what a run would train on: images, classes, split, size.

    Example: pcls data info digits
    """
    from pcls.cli.data_recipe import data_recipe
    from pcls.data.dataset import open_dataset
    from pcls.data.sources.source import class_counts
    from pcls.data.steps import lengths_text

    recipe = data_recipe(data, overrides or [])
    dataset = open_dataset(recipe.data)
    preprocessing, sequences = dataset.preprocessing, bool(dataset.padded)
    typer.echo(f"{preprocessing.records:<12}{len(dataset.train):,} to train on, {len(dataset.evaluation):,} held out")
    if sequences:
        typer.echo(lengths_text(dataset.train, dataset.padded))
    else:
        typer.echo(f"size        {preprocessing.height} x {preprocessing.width} x {preprocessing.channels}")
    measured = "measured" if sequences or dataset.in_memory else "ImageNet's; image files are not measured"
    typer.echo(f"mean        {statistics_text(preprocessing.mean)}  ({measured})")
    typer.echo(f"deviation   {statistics_text(preprocessing.std)}")
    for notice in dataset.notices:
        typer.echo(notice)
    held_out = class_counts(dataset.evaluation)
    typer.echo(f"classes     {len(dataset.class_names):,}")
    width = max(map(len, dataset.class_names))
    for name, count in class_counts(dataset.train).items():
        typer.echo(f"  {name:<{width}}  {count:>8,} to train on  {held_out[name]:>8,} held out")


def statistics_text(values: Sequence[float]) -> str:
    """Those of each channel, or the range of those of many features."""
    if len(values) <= MOST_SHOWN:
        return ", ".join(f"{value:.4f}" for value in values)
    return f"{min(values):.4f} to {max(values):.4f}, of {len(values):,} features"


app.command()(show)
app.command()(bench)
app.command()(doctor)
app.command()(imbalance)
app.command()(convert)
