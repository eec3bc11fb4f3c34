"""`pcls models list` and `pcls models info`."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Look at the models.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_models() -> None:
    """Print every model with its parameter count at its customary image size and class count.

    Example: pcls models list
    """
    from pcls.models.registry import MODELS, customary_model

    width = max(map(len, MODELS))
    for name, entry in MODELS.items():
        count = customary_model(name).parameter_count
        typer.echo(f"{name:<{width}} {count:>12,} parameters  {entry.description}")


@app.command()
def info(name: Annotated[str, typer.Argument(help="A name of `pcls models list`.")]) -> None:
    """Print a model's facts.

    Example: pcls models info resnet50
    """
    from pcls.models.registry import customary_model, model_entry
    from pcls.nn.recurrent.linear import fastest_form

    entry = model_entry(name)
    model = customary_model(name)
    statistics = sum(leaf.size for leaf in model.stats.values())
    size = f"{entry.image_size} x {entry.image_size} x {entry.channels}"
    for label, value in (
        ("name", name),
        ("description", entry.description),
        ("parameters", f"{model.parameter_count:,}"),
        ("statistics", f"{statistics:,}"),
        ("counted at", f"{size}, {entry.classes:,} classes"),
        ("smallest image", f"{entry.min_size} x {entry.min_size}"),
        ("image size", "fixed when trained" if entry.fixed_size else "any"),
        ("sequences", "of any length" if entry.lengths else "padded to one length, as images"),
        ("options", ", ".join(f"model.{option}" for option in sorted(entry.options)) or "none"),
    ):
        typer.echo(f"{label:<15} {value}")
    if entry.forms:
        form = fastest_form() if "parallel" in entry.forms else "sequential"
        others = " or ".join(other for other in entry.forms if other != form)
        typer.echo(f"{'recurrence':<15} {form} on this machine's devices; model.form may say {others}")
