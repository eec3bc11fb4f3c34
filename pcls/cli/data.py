"""`pcls data info`."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Look at data.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def group() -> None:
    """Look at data."""


@app.command()
def info(
    data: Annotated[
        str, typer.Argument(help="A folder with one folder of images a class, idx:FOLDER, tfds:NAME[:split] or digits.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as in data.validation=0.1")] = None,
) -> None:
    """Print what a run would train on: images, classes, split, size.

    Example: pcls data info digits
    """
    from pcls.config import Recipe, with_overrides
    from pcls.data.dataset import data_settings, open_dataset
    from pcls.data.sources.source import class_counts

    recipe = with_overrides(with_overrides(Recipe(), data_settings(data)), overrides or [])
    dataset = open_dataset(recipe.data)
    preprocessing = dataset.preprocessing
    typer.echo(f"images      {len(dataset.train):,} to train on, {len(dataset.evaluation):,} held out")
    typer.echo(f"size        {preprocessing.height} x {preprocessing.width} x {preprocessing.channels}")
    typer.echo(f"mean        {', '.join(f'{value:.4f}' for value in preprocessing.mean)}")
    typer.echo(f"deviation   {', '.join(f'{value:.4f}' for value in preprocessing.std)}")
    held_out = class_counts(dataset.evaluation)
    typer.echo(f"classes     {len(dataset.class_names):,}")
    width = max(map(len, dataset.class_names))
    for name, count in class_counts(dataset.train).items():
        typer.echo(f"  {name:<{width}}  {count:>8,} to train on  {held_out[name]:>8,} held out")
