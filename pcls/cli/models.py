"""`pcls models`: the networks, and public weights for them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcls.errors import UserError
from pcls.observe.table import aligned

if TYPE_CHECKING:
    from pcls.data.preprocessing import Preprocessing
    from pcls.pretrained.catalogue import Weight

app = typer.Typer(
    help="Look at the models, and at public weights for them.", no_args_is_help=True, rich_markup_mode=None
)

NOT_STATED = "not stated"
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}


class Task(StrEnum):
    """What weights were trained for."""

    any = "any"
    classification = "classification"
    features = "features"


class Form(StrEnum):
    """Whose weights' form."""

    timm = "timm"


class Sort(StrEnum):
    """The order of a list of weights."""

    name = "name"
    top1 = "top1"
    params = "params"


@app.command("list")
def list_models() -> None:
    """Print every model with its parameter count at its customary image size and class count.

    Example: pcls models list
    """
    from pcls.models.registry import MODELS, customary_model
    from pcls.pretrained.catalogue import weights_of

    width = max(map(len, MODELS))
    for name, entry in MODELS.items():
        # Counted once for the catalogue: to trace all of them takes half a minute.
        counted = [weight.parameters for weight in weights_of(name) if weight.classes == entry.classes]
        count = counted[0] if counted else customary_model(name).parameter_count
        typer.echo(f"{name:<{width}} {count:>12,} parameters  {entry.description}")


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="What the name holds.")] = "",
    max_params: Annotated[str, typer.Option(help="Parameters at most, as in 10M.")] = "",
    max_gflops: Annotated[
        float, typer.Option(help="For one image at the weights' test size, two FLOPs for each multiply-add.", min=0)
    ] = float("inf"),
    min_top1: Annotated[float, typer.Option(help="Published top-1 on ImageNet-1k, in %.", min=0, max=100)] = 0.0,
    licence: Annotated[str, typer.Option("--license", help="What the licence holds, as in apache.")] = "",
    task: Annotated[Task, typer.Option(help="What they were trained for.")] = Task.any,
    sort: Annotated[Sort, typer.Option(help="The order.")] = Sort.name,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Print the public weights that fit, of the models that pcls has.

    Example: pcls models search resnet --max-params 30M --min-top1 80 --sort top1
    """
    most = _count(max_params)

    from pcls.pretrained.catalogue import search_weights

    found = search_weights(
        text,
        max_parameters=most,
        max_flops=max_gflops * 1e9,
        min_top1=min_top1,
        licence=licence,
        task="" if task is Task.any else task,
        sort=sort.value,
    )
    if as_json:
        typer.echo(json.dumps([weight.to_json() for weight in found]))
        return
    if not found:
        raise UserError("no public weight fits all of this; ask for less, or see all with: pcls models search")
    for line in _table(found):
        typer.echo(line)


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="A name of `pcls models list` or `pcls models search`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the facts of a model, or of a public weight.

    Example: pcls models info resnet50.a1_in1k
    """
    if "." in name:
        from pcls.pretrained.catalogue import find_weight

        weight = find_weight(name)
        facts, values = weight_facts(weight), weight.to_json()
    else:
        facts, values = model_facts(name), model_values(name)
    if as_json:
        typer.echo(json.dumps(values))
        return
    for label, value in facts.items():
        typer.echo(f"{label:<15} {value}")


@app.command("import")
def import_weights(
    source: Annotated[
        str,
        typer.Argument(
            help="A name of `pcls models search`, hf-hub:OWNER/NAME, a .safetensors or Keras file, or a folder as "
            "timm writes it."
        ),
    ],
    model: Annotated[str, typer.Option(help="Of `pcls models list`, where the source does not tell.")] = "",
    out: Annotated[Path | None, typer.Option(help="The bundle's folder; a new one named as the source.")] = None,
    channels: Annotated[int | None, typer.Option(help="Fit it to images of so many: 1 grey, 3 RGB.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="The outputs' names, one a line or a JSON list, in their order.")
    ] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit on the hub.")] = "",
    offline: Annotated[bool, typer.Option("--offline", help="Take what the hub's cache has.")] = False,
) -> None:
    """Write public weights as a bundle, which every verb takes.

    Example: pcls models import resnet50.a1_in1k
    """
    from pcls.pretrained.sources import check_source

    check_source(source, channels)

    from pcls.pretrained.bundle import save_bundle
    from pcls.pretrained.importing import check_out, import_bundle

    folder = out or Path(_plain_name(source))
    check_out(folder)
    bundle = import_bundle(
        source, model=model, channels=channels, classes=classes, revision=revision, offline=offline, say=_to_stderr
    )
    save_bundle(bundle, folder)
    count = sum(array.size for array in bundle.params.values())
    for label, value in {
        "bundle": str(folder),
        "model": bundle.model,
        "parameters": f"{count:,}",
        "classes": f"{len(bundle.class_names):,}, the first: {', '.join(bundle.class_names[:3])}",
        **preprocessing_facts(bundle.preprocessing),
        "revision": bundle.origin.get("revision", "none"),
        "licence": bundle.origin.get("licence", NOT_STATED),
    }.items():
        typer.echo(f"{label:<15} {value}")


@app.command("export")
def export_weights(
    source: Annotated[str, typer.Argument(help="The folder of a finished run, or of a bundle.")],
    form: Annotated[Form, typer.Option("--format", help="Whose names and files.")] = Form.timm,
    out: Annotated[
        Path | None, typer.Option(help="A new folder, or a .safetensors file for the weights alone.")
    ] = None,
) -> None:
    """Write a bundle's weights as timm reads them.

    Example: pcls models export runs/photos --format timm --out photos-timm
    """
    from pcls.pretrained.exporting import export_timm
    from pcls.run.bundles import open_bundle

    bundle = open_bundle(source)
    folder = out or Path(f"{_plain_name(source)}-{form.value}")
    export_timm(bundle, folder)
    typer.echo(str(folder))


def _plain_name(source: str) -> str:
    """What a source is called, without its place and its kind."""
    name = Path(source.removeprefix("hf-hub:")).name
    return re.sub(r"\.(safetensors|keras|weights\.h5|h5|hdf5)$", "", name)


def _to_stderr(text: str) -> None:
    typer.echo(text, err=True)


def model_facts(name: str) -> dict[str, str]:
    """What `info` prints of a model of the registry."""
    from pcls.models.registry import customary_model, model_entry
    from pcls.nn.recurrent.linear import fastest_form
    from pcls.pretrained.catalogue import weights_of

    entry = model_entry(name)
    model = customary_model(name)
    size = f"{entry.image_size} x {entry.image_size} x {entry.channels}"
    facts = {
        "name": name,
        "description": entry.description,
        "parameters": f"{model.parameter_count:,}",
        "statistics": f"{sum(leaf.size for leaf in model.stats.values()):,}",
        "counted at": f"{size}, {entry.classes:,} classes",
        "smallest image": f"{entry.min_size} x {entry.min_size}",
        "image size": "fixed when trained" if entry.fixed_size else "any",
        "sequences": "of any length" if entry.lengths else "padded to one length, as images",
        "options": ", ".join(f"model.{option}" for option in sorted(entry.options)) or "none",
    }
    if entry.forms:
        form = fastest_form() if "parallel" in entry.forms else "sequential"
        others = " or ".join(other for other in entry.forms if other != form)
        facts["recurrence"] = f"{form} on this machine's devices; model.form may say {others}"
    if weights := weights_of(name):
        facts["public weights"] = f"{len(weights)}; pcls models search {name}. lists them"
    return facts


def model_values(name: str) -> dict[str, Any]:
    """The same for programs."""
    from pcls.models.registry import customary_model, model_entry
    from pcls.pretrained.catalogue import weights_of

    entry = model_entry(name)
    return {
        "name": name,
        "description": entry.description,
        "parameters": customary_model(name).parameter_count,
        "image_size": entry.image_size,
        "min_size": entry.min_size,
        "channels": entry.channels,
        "classes": entry.classes,
        "options": sorted(entry.options),
        "weights": [weight.name for weight in weights_of(name)],
    }


def weight_facts(weight: Weight) -> dict[str, str]:
    """What `info` prints of a public weight."""
    from pcls.pretrained.catalogue import REAL, RESULTS, made_from

    published = f"at {weight.published_size} x {weight.published_size}, crop {weight.published_crop_pct}"
    facts = {
        "name": weight.name,
        "model": weight.architecture,
        "task": weight.task,
        "outputs": f"{weight.classes:,}" if weight.classes else "none: it has no head",
        "parameters": f"{weight.parameters:,}",
        "GFLOPs": f"{weight.flops / 1e9:.2f} an image of the test size, two for each multiply-add",
        "activations": f"{weight.activations:,}, out of convolutions and matrix products",
        **preprocessing_facts(weight.preprocessing),
        "ImageNet-1k": _accuracy(weight.top1, weight.top5, f"{published} ({RESULTS})"),
        "ImageNet ReaL": _accuracy(weight.real_top1, weight.real_top5, REAL),
        "licence": weight.licence or NOT_STATED,
        "hub": f"https://huggingface.co/{weight.hub}",
        "source": made_from(),
    }
    return facts


def preprocessing_facts(preprocessing: Preprocessing) -> dict[str, str]:
    """What weights expect of an image."""
    training = preprocessing.training
    return {
        "test size": _size(preprocessing),
        "training size": _size(training),
        "interpolation": preprocessing.interpolation,
        "mean": ", ".join(f"{value:g}" for value in preprocessing.mean),
        "deviation": ", ".join(f"{value:g}" for value in preprocessing.std),
    }


def _size(preprocessing: Preprocessing) -> str:
    shape = " x ".join(map(str, preprocessing.shape))
    return f"{shape}, crop {preprocessing.crop_pct:g} ({preprocessing.crop_mode})"


def _accuracy(top1: float | None, top5: float | None, where: str) -> str:
    return "not published" if top1 is None else f"top-1 {top1:.2f} %, top-5 {top5:.2f} %, {where}"


def _count(text: str) -> float:
    """`10M`, `1.5B` or `25000000`; empty: any number."""
    if not text:
        return float("inf")
    parts = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([KMGB]?)", text.upper().replace("_", ""))
    if parts is None:
        raise UserError(f"--max-params is {text!r}; a number is needed, such as 10M or 25000000")
    return float(parts[1]) * _UNITS[parts[2]]


COLUMNS = ("name", "parameters", "GFLOPs", "activations", "top-1 %", "size", "licence")


def _table(weights: Sequence[Weight]) -> list[str]:
    # Names and licences are words, the rest are numbers.
    return aligned([COLUMNS, *map(_row, weights)], left=(0, len(COLUMNS) - 1))


def _row(weight: Weight) -> tuple[str, ...]:
    return (
        weight.name,
        f"{weight.parameters / 1e6:.1f} M",
        f"{weight.flops / 1e9:.2f}",
        f"{weight.activations / 1e6:.1f} M",
        "-" if weight.top1 is None else f"{weight.top1:.2f}",
        str(weight.preprocessing.height),
        weight.licence or NOT_STATED,
    )
