"""Writes pcls/pretrained/weights.csv: `python benchmarks/catalogue.py --results results-imagenet.csv`.

What is published comes from timm's registry and its table of results, both Apache-2.0. What a model costs is counted on
ours: run it again when the registry has grown. Needs timm, and so PyTorch.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp

from pcls.models.registry import MODELS, define_model
from pcls.nn.flops import analytic_activations, analytic_flops
from pcls.nn.platform import compiling_for
from pcls.pretrained.catalogue import FIELDS, TABLE
from pcls.pretrained.names import TIMM

# Architectures that pcls has or is about to have.
ARCHITECTURES = re.compile(
    r"resnet(18|34|50|101|152)d?|resnext50_32x4d|wide_resnet50_2|convnext_(atto|femto|pico|nano|tiny|small|base)"
    r"|(tf_)?efficientnet_b0|tf_efficientnetv2_s|efficientnetv2_rw_s|(tf_)?mobilenetv3_(large|small)_100"
    r"|sequencer2d_[sml]"
)
# Outputs of these are an embedding beside a text's, no classes.
EMBEDDINGS = re.compile(r"clip_(laion2b|laiona)(_augreg)?(_\d+)?")


def weights() -> dict[str, Any]:
    """timm's configuration of every published weight of these architectures."""
    import _timm  # noqa: F401
    import timm
    from timm.models import get_pretrained_cfg

    names = [name for name in timm.list_models(pretrained=True) if ARCHITECTURES.fullmatch(name.partition(".")[0])]
    return {name: get_pretrained_cfg(name) for name in sorted(names)}


def results(path: Path) -> dict[tuple[str, int], dict[str, str]]:
    """Name and image size -> row of one of timm's tables of results."""
    with path.open(encoding="utf-8", newline="") as file:
        return {(row["model"], int(row["img_size"])): row for row in csv.DictReader(file)}


def accuracies(name: str, size: int, table: dict[tuple[str, int], dict[str, str]]) -> dict[str, str]:
    """At the size of tests; empty where nobody published it."""
    return table.get((name, size), {})


@cache
def costs(architecture: str, size: int, classes: int) -> dict[str, int]:
    """Of one image; empty where pcls lacks the architecture, or cannot import its weights."""
    if architecture not in MODELS or architecture not in TIMM:
        return {}
    model = define_model(architecture, height=size, width=size, channels=3, classes=classes or 1)
    head = sum(leaf.size for path, leaf in model.params.items() if path.startswith("head/") and not classes)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    # On a CPU a layer may be written as sums that no product shows.
    with compiling_for("tpu"):
        return {
            "parameters": model.parameter_count - head,
            "flops": analytic_flops(model.apply, model.params, model.stats, image),
            "activations": analytic_activations(model.apply, model.params, model.stats, image),
        }


def row(name: str, config: Any, in1k: dict[Any, dict[str, str]], real: dict[Any, dict[str, str]]) -> dict[str, Any]:
    """A line of the table."""
    train = config.input_size[1]
    test = (config.test_input_size or config.input_size)[1]
    published, relabelled = accuracies(name, test, in1k), accuracies(name, test, real)
    architecture, _, tag = name.partition(".")
    embeds = config.num_classes == 0 or EMBEDDINGS.fullmatch(tag)
    return {
        "name": name,
        "hub": config.hf_hub_id,
        "task": "features" if embeds else "classification",
        "classes": config.num_classes,
        "train_size": train,
        "test_size": test,
        "crop_pct": config.crop_pct,
        "test_crop_pct": config.test_crop_pct or config.crop_pct,
        "crop_mode": config.crop_mode,
        "interpolation": config.interpolation,
        "mean": " ".join(map(str, config.mean)),
        "std": " ".join(map(str, config.std)),
        "licence": config.license or "",
        "top1": published.get("top1", ""),
        "top5": published.get("top5", ""),
        "published_size": published.get("img_size", ""),
        "published_crop_pct": published.get("crop_pct", ""),
        "real_top1": relabelled.get("top1", ""),
        "real_top5": relabelled.get("top5", ""),
        **costs(architecture, test, config.num_classes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="timm's results-imagenet.csv")
    parser.add_argument("--real", type=Path, help="timm's results-imagenet-real.csv")
    arguments = parser.parse_args()
    found = weights()
    in1k, real = results(arguments.results), results(arguments.real) if arguments.real else {}
    rows = [row(name, config, in1k, real) for name, config in found.items()]
    from timm import __version__

    with TABLE.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# timm {__version__} (Apache-2.0), {datetime.date.today()}\n")
        table = csv.DictWriter(file, FIELDS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    counted = sum("parameters" in line for line in rows)
    print(f"{TABLE}: {len(rows)} weights, {counted} of architectures that pcls has")


if __name__ == "__main__":
    main()
