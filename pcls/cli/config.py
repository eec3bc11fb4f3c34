"""`pcls config show`, `pcls config diff` and `pcls config keys`."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

app = typer.Typer(help="Look at recipes.", no_args_is_help=True, rich_markup_mode=None)

Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, as in optimizer.lr=1e-3")]


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="A YAML file or the name of a recipe.")],
    overrides: Overrides = None,
) -> None:
    """Print a recipe with every key, as a run would use it.

    Example: pcls config show digits_cnn train.batch_size=64
    """
    from pcls.config import dump_recipe, load_recipe

    typer.echo(dump_recipe(load_recipe(recipe, overrides or [])), nl=False)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(help="A YAML file or the name of a recipe.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
) -> None:
    """Print the keys in which two recipes differ.

    Example: pcls config diff digits_cnn digits_rnn
    """
    from pcls.config import flat_recipe, load_recipe

    before, after = flat_recipe(load_recipe(first)), flat_recipe(load_recipe(second))
    for key, value in before.items():
        if value != after[key]:
            typer.echo(f"{key}: {value} -> {after[key]}")


@app.command()
def keys(
    start: Annotated[str, typer.Argument(help="Only keys that start like this, as in optimizer or train.b")] = "",
) -> None:
    """Print every key of a recipe: its default, what is allowed, what it means.

    Example: pcls config keys batch_norm
    """
    from pcls.config.reference import recipe_keys
    from pcls.errors import UserError

    chosen = [key for key in recipe_keys() if key.name.startswith(start)]
    if not chosen:
        sections = sorted({key.name.partition(".")[0] for key in recipe_keys()})
        raise UserError(f"no key starts with {start!r}; sections: {', '.join(sections)}")
    for key in chosen:
        typer.echo(f"{key.name}  (default {key.default}; {key.allowed})")
        typer.echo(textwrap.fill(key.meaning, 100, initial_indent="    ", subsequent_indent="    "))
