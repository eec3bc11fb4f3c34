"""Public weights to a bundle: by name from the Hugging Face hub, or from files of timm, torchvision and Keras."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pcls.data.preprocessing import RGB, Preprocessing, imagenet_statistics
from pcls.data.sources.cache import cache_folder, kept
from pcls.errors import UserError
from pcls.models.registry import model_entry
from pcls.nn.module import HEAD_KERNEL, ModelDef
from pcls.pretrained.bundle import FACTS, Bundle, save_bundle
from pcls.pretrained.catalogue import Weight, catalogue, find_weight
from pcls.pretrained.channels import with_image_channels
from pcls.pretrained.classes import IMAGENET_CLASSES, names_of_outputs, read_class_names
from pcls.pretrained.exchange import HEAD_PATHS, foreign_shape, import_weights
from pcls.pretrained.hub import CONFIG, PREFIX, WEIGHTS, fetch_repository
from pcls.pretrained.names import TIMM, TORCHVISION, names_of
from pcls.pretrained.names.rules import Names
from pcls.pretrained.sources import KERAS, check_source
from pcls.pretrained.tensors import StoredTensor, StoredTensors, open_tensors
from pcls.pretrained.timm_config import read_config

# What a file may say in its own metadata of the network.
ARCHITECTURE = "architecture"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Stated:
    """What is known of weights before they are read.

    Attributes:
      file: that holds them.
      model: of the registry; empty: nobody has said.
      says_so: who says that the weights are of that model.
      outputs: 0: they have no head; None: nobody has said.
      preprocessing: None: nobody has said.
      label_names: of the outputs; empty: nobody has said.
      options: of `define_model`.
      origin: of the bundle.
    """

    file: Path
    model: str = ""
    says_so: str = ""
    outputs: int | None = None
    preprocessing: Preprocessing | None = None
    label_names: tuple[str, ...] = ()
    options: Mapping[str, Any] | None = None
    origin: Mapping[str, str] | None = None


def import_bundle(
    source: str,
    *,
    model: str = "",
    channels: int | None = None,
    classes: Path | None = None,
    revision: str = "",
    offline: bool = False,
    say: Say = lambda text: None,
) -> Bundle:
    """Public weights as a bundle; one tensor after the other, so that they lie in memory once.

    Args:
      source: a name of the catalogue, `hf-hub:owner/name`, a .safetensors or Keras file, or a folder with config.json
        and model.safetensors as timm writes them.
      model: of the registry, where the source does not tell.
      channels: the first kernel is changed for pictures of so many; None: as the weights are.
      classes: a file with the names of the outputs; None: as the source tells, or as `names_of_outputs` says.
      revision: of the hub's repository; empty: its main branch.
      offline: take what the hub's cache has.
      say: hears what was assumed.

    Raises:
      UserError: there is nothing of that name, it is damaged, or it does not fit the model.
    """
    check_source(source, channels)
    names = read_class_names(classes) if classes else ()
    path = Path(source).expanduser()
    if path.suffix.lower() in KERAS and path.is_file():
        bundle = _from_keras(path, model, names, say)
    else:
        stated = _stated(source, path, model, revision=revision, offline=offline, say=say)
        bundle = _from_tensors(stated, names, say)
    return bundle if channels is None else with_image_channels(bundle, channels)


def cached_bundle(name: str, say: Say) -> Path:
    """The folder of a bundle in the node's cache, imported from the hub if it is not there.

    Args:
      name: of the catalogue.
      say: hears of the import.
    """

    def fill(folder: Path) -> None:
        say(f"importing {name} into {folder.parent}")
        save_bundle(import_bundle(name, say=say), folder)

    return kept(cache_place(name), fill)


def cache_place(name: str) -> Path:
    """Where `cached_bundle` keeps a bundle; it may not be there yet."""
    return cache_folder() / "weights" / find_weight(name).name


def check_out(folder: Path) -> None:
    """UserError where a folder is there already that is no bundle, and so is not ours to replace."""
    if folder.exists() and not (folder / FACTS).is_file():
        raise UserError(f"{folder}: is there already, and is no bundle; name another folder by --out")


def _stated(source: str, path: Path, model: str, *, revision: str, offline: bool, say: Say) -> Stated:
    """What the source tells; fetched first where it is a name."""
    if path.is_dir():
        return _of_folder(path, model)
    if path.is_file():
        return _of_file(path, model)
    if source.startswith(PREFIX):
        return _of_hub(source.removeprefix(PREFIX), None, model, revision=revision, offline=offline, say=say)
    weight = find_weight(source)
    return _of_hub(weight.hub, weight, model, revision=revision, offline=offline, say=say)


def _of_hub(repository: str, weight: Weight | None, model: str, *, revision: str, offline: bool, say: Say) -> Stated:
    say(f"fetching {repository} from the Hugging Face hub, where its cache does not have it")
    folder, commit = fetch_repository(repository, revision=revision, offline=offline)
    stated = _of_folder(folder, model)
    if weight is not None and stated.model != weight.architecture:
        raise UserError(f"{repository}: holds weights of {stated.model}, not of {weight.architecture}")
    origin = {**(stated.origin or {}), "source": f"https://huggingface.co/{repository}", "revision": commit}
    if weight is not None:
        origin |= {"name": weight.name, "licence": origin.get("licence") or weight.licence}
    return replace(stated, origin=_known(origin))


def _of_folder(folder: Path, model: str) -> Stated:
    if (folder / FACTS).is_file():
        raise UserError(f"{folder}: is a bundle already; use it as it is, as in: pcls predict {folder} IMAGE")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: has no {name}; a folder needs {CONFIG} and {WEIGHTS}, as timm writes them")
    config = read_config(folder / CONFIG)
    stated = Stated(
        file=folder / WEIGHTS,
        model=config.architecture,
        says_so=CONFIG,
        outputs=config.num_classes,
        preprocessing=config.pretrained_cfg.preprocessing(),
        label_names=config.label_names or (),
        options=config.options,
        origin=_known({"name": config.name, "source": str(folder), "licence": config.pretrained_cfg.license or ""}),
    )
    if len(stated.label_names) not in (0, config.num_classes):
        raise UserError(
            f"{folder / CONFIG}: names {len(stated.label_names):,} labels for {config.num_classes:,} classes"
        )
    return _of_model(stated, model)


def _of_file(path: Path, model: str) -> Stated:
    known = catalogue().get(path.stem)
    with open_tensors(path) as stored:
        told = stored.metadata.get(ARCHITECTURE, "").partition(".")[0]
    stated = Stated(
        file=path,
        model=told or _architecture_in(path.stem),
        says_so="its metadata" if told else "its name",
        outputs=known.classes if known else None,
        preprocessing=known.preprocessing if known else None,
        origin=_known({"name": path.stem, "source": str(path), "licence": known.licence if known else ""}),
    )
    if not told and model:
        # A name is a hint only.
        stated = replace(stated, model="")
    if not (stated.model or model):
        raise UserError(f"{path}: tells by neither its name nor its metadata of which model it is; write --model NAME")
    return _of_model(stated, model)


def _of_model(stated: Stated, model: str) -> Stated:
    """With the model that the user names, which must not be another than the source does."""
    if model:
        # A mistyped name is told as such.
        model_entry(model)
    if model and stated.model and model != stated.model:
        raise UserError(f"{stated.file}: is of {stated.model} by {stated.says_so}, not of {model}; leave out --model")
    return replace(stated, model=stated.model or model)


def _architecture_in(stem: str) -> str:
    """The model that a file's name begins with, as in `resnet50-0676ba61` or `resnet50_a1_0`; empty: none."""
    found = [name for name in {**TIMM, **TORCHVISION} if re.match(rf"{re.escape(name)}(?![a-z0-9])", stem)]
    return max(found, key=len, default="")


def _from_tensors(stated: Stated, names: tuple[str, ...], say: Say) -> Bundle:
    if stated.preprocessing is None:
        say(f"{stated.file} says nothing of images: taken are 224 pixels, crop 0.875, ImageNet's mean and deviation")
    preprocessing = stated.preprocessing or Preprocessing(224, 224, RGB, *imagenet_statistics(RGB), crop_pct=0.875)
    empty = Bundle(
        model=stated.model,
        class_names=(),
        preprocessing=preprocessing,
        precision="float32",
        params={},
        stats={},
        metrics={},
        options=stated.options or {},
        origin=stated.origin or {},
    )
    with open_tensors(stated.file) as stored:
        library = _library(stated.model, empty.definition(classes=1), stored)
        outputs = _outputs(stated, library, stored.tensors)
        class_names = _class_names(stated, outputs, names, say)
        definition, tensors = empty.definition(classes=len(class_names)), dict[str, Any](stored.tensors)
        if outputs == 0:
            # Nothing is known of these classes: until it is trained, each is as probable as the others.
            tensors |= {
                key: np.zeros(foreign_shape(leaf.shape, library.is_pointwise(key)), np.float32)
                for key, leaf in ((library.key(path), definition.params[path]) for path in HEAD_PATHS)
            }
        try:
            params, stats = import_weights(definition, library, tensors)
        except UserError as error:
            raise UserError(f"{stated.file}: does not fit {stated.model}: {error}") from error
    return replace(empty, class_names=class_names, params=params, stats=stats)


def _library(model: str, definition: ModelDef, stored: StoredTensors) -> Names:
    """The names of the library whose keys a file has the most of."""
    paths = (*definition.params, *definition.stats)
    return max(names_of(model), key=lambda names: sum(names.key(path) in stored.tensors for path in paths))


def _outputs(stated: Stated, library: Names, tensors: Mapping[str, StoredTensor]) -> int:
    """Classes that the weights tell apart; 0: they have no head."""
    head = tensors.get(library.key(HEAD_KERNEL))
    if head is None or not head.shape:
        # What is not there is told later, as a difference.
        return IMAGENET_CLASSES if stated.outputs is None else stated.outputs
    if stated.outputs is not None and stated.outputs != head.shape[0]:
        raise UserError(
            f"{stated.file}: has {head.shape[0]:,} outputs ({head.key}), and {stated.outputs:,} are stated; "
            "it belongs to other weights"
        )
    return head.shape[0]


def _class_names(stated: Stated, outputs: int, names: tuple[str, ...], say: Say) -> tuple[str, ...]:
    if outputs == 0 and not names:
        raise UserError(
            f"{stated.file}: has no head; name the classes that it is to learn: pcls models import ... --classes FILE"
        )
    if names and outputs not in (0, len(names)):
        raise UserError(f"--classes names {len(names):,} classes, and {stated.file} has {outputs:,} outputs")
    if names or stated.label_names:
        return names or stated.label_names
    if outputs == IMAGENET_CLASSES:
        say("its 1,000 outputs are taken for ImageNet-1k's classes, and called by their synsets")
    return names_of_outputs(outputs)


def _from_keras(path: Path, model: str, names: tuple[str, ...], say: Say) -> Bundle:
    from pcls.pretrained.keras_files import read_keras

    bundle = read_keras(path, names or None, model=model, say=say)
    if model not in ("", bundle.model):
        raise UserError(f"{path}: is of {bundle.model}, not of {model}; leave out --model")
    return replace(bundle, origin={"name": path.stem, "source": str(path)})


def _known(origin: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in origin.items() if value}
