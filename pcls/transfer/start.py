"""Where a fine-tuning run starts: a bundle's weights, with a head for the new classes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from pcls.config.schema import ModelSection
from pcls.errors import UserError
from pcls.models.reading import CUSTOMARY_ORDER
from pcls.nn.module import Arrays, ModelDef
from pcls.pretrained.bundle import FACTS, Bundle, load_bundle
from pcls.pretrained.catalogue import catalogue
from pcls.pretrained.importing import cached_bundle
from pcls.run.folder import RunFolder
from pcls.run.train import Start

HEAD = "head/"


def open_bundle(path: str | Path) -> Bundle:
    """Loads a bundle, given as its folder, as that of a finished run, or as a name of the catalogue.

    Weights that are named are imported from the Hugging Face hub into the node's cache, once.

    Raises:
      UserError: none of these, the run is not finished, or the hub cannot be reached.
    """
    folder = Path(path)
    if str(path) in catalogue() and not folder.exists():
        return load_bundle(cached_bundle(str(path), _to_stderr))
    if (folder / FACTS).is_file():
        return load_bundle(folder)
    run = RunFolder(folder)
    if run.exists() and not run.bundle.is_dir():
        raise UserError(f"{path}: the run is not finished and has no bundle yet; go on with: pcls resume {path}")
    if not run.exists():
        raise UserError(
            f"{path}: is neither a run's folder (recipe.yaml) nor a bundle ({FACTS}), nor a name of pcls models search"
        )
    return load_bundle(run.bundle)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def start_from(path: str | Path, model: ModelSection, *, keep_head: bool = False) -> Start:
    """The start of a run from a bundle.

    Args:
      path: as `open_bundle` takes it.
      model: of the recipe; its name and its order of reading must be the bundle's.
      keep_head: refuse classes that are not those of the weights.

    Raises:
      UserError: no bundle, or one of another model.
    """
    bundle = open_bundle(path)
    if bundle.model != model.name:
        raise UserError(
            f"model.name is {model.name!r}, and the weights in {path} are of {bundle.model}; make them the same"
        )
    # Weights of another order may have the same shapes.
    read, trained = (options.get("read") or CUSTOMARY_ORDER for options in (model.architecture, bundle.options))
    if read != trained:
        raise UserError(
            f"model.read is {read!r}, and the weights in {path} were trained with {trained!r}; write the same"
        )
    return Start(
        bundle.preprocessing,
        bundle.class_names,
        lambda definition, class_names, seed: adapted_weights(bundle, definition, class_names, seed, keep_head),
        bundle.origin,
    )


def adapted_weights(
    bundle: Bundle, definition: ModelDef, class_names: tuple[str, ...], seed: int, must_keep_head: bool = False
) -> tuple[Arrays, Arrays]:
    """The bundle's arrays for a model with these classes; the head is drawn anew unless the classes are the same.

    Args:
      bundle: pretrained.
      definition: the new run's model: the same architecture, any number of classes.
      class_names: of the new run, in order. As many but other classes get a new head too.
      seed: of the new head.
      must_keep_head: refuse other classes instead.

    Returns:
      Parameters and statistics by path.

    Raises:
      UserError: the model is not that of the bundle, or its head cannot be kept.
    """
    keep_head = class_names == bundle.class_names
    if must_keep_head and not keep_head:
        raise UserError(_other_classes(bundle.class_names, class_names))
    _check_same_architecture(bundle, definition)
    if keep_head and _head(definition.params) != _head(bundle.params):
        trained = bundle.options.get("head", "linear")
        raise UserError(f"the classes are those of the weights, and their head is model.head={trained}; write the same")
    fresh, _ = jax.jit(definition.init)(jax.random.key(seed))
    params = {
        name: fresh[name] if name.startswith(HEAD) and not keep_head else bundle.params[name]
        for name in definition.params
    }
    return params, dict(bundle.stats)


def _head(params: Mapping[str, Any]) -> set[str]:
    return {name for name in params if name.startswith(HEAD)}


def _other_classes(trained: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    if len(trained) != len(wanted):
        difference = f"{len(trained):,} classes, and the data has {len(wanted):,}"
    else:
        place = next(place for place, names in enumerate(zip(trained, wanted, strict=True)) if names[0] != names[1])
        difference = f"{trained[place]!r} as class {place}, and the data has {wanted[place]!r}"
    return f"--keep-head: the weights have {difference}; leave it out for a new head"


def _check_same_architecture(bundle: Bundle, definition: ModelDef) -> None:
    bundled = {name: array.shape for name, array in bundle.params.items() if not name.startswith(HEAD)}
    needed = {name: leaf.shape for name, leaf in definition.params.items() if not name.startswith(HEAD)}
    if bundled != needed:
        options = ", ".join(f"model.{key}={value}" for key, value in bundle.options.items()) or "the customary ones"
        raise UserError(
            f"the weights in {bundle.path} do not fit model.*, or the data; they were trained with {options}: "
            "write the same"
        )
