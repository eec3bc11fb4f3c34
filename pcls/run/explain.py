"""What speaks for a run's answers, for some of its held-out records."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pcls.checkpoint.store import CheckpointStore
from pcls.config import Recipe
from pcls.config.model import ModelSection
from pcls.data.augment import normalise
from pcls.data.dataset import Dataset
from pcls.data.preprocessing import Preprocessing
from pcls.evaluation.count import Predictions
from pcls.evaluation.saliency import (
    coloured,
    grad_cam,
    gradient_times_input,
    integrated_gradients,
    patch_relevance,
    step_relevance,
)
from pcls.evaluation.sections.records import Evidence, Explained
from pcls.models.reading import CUSTOMARY_ORDER, CUSTOMARY_PATCH, Order
from pcls.models.registry import model_entry
from pcls.nn.module import Arrays, ModelDef
from pcls.parallel.processes import agreed
from pcls.pretrained.bundle import load_bundle
from pcls.run.folder import RunFolder
from pcls.run.setup import setup_of
from pcls.run.shown import mistake_of, read_shown, upright

# Of the records that are explained: the largest losses, and some right answers from all over the set.
WRONG, RIGHT = 4, 4
# Networks of one reading, which is no option of theirs.
ROW_READERS = ("rnn28", "irnn28")

BLUE = "Blue speaks for the class that is named below"
ORANGE = f"{BLUE}, orange against it"
CAM = "Grad-CAM on the last stage’s maps (Selvaraju et al. 2017)"
INTEGRATED = "Integrated gradients from the mean image (Sundararajan et al. 2017)"
RELEVANCE = "Gradient times input (Shrikumar et al. 2016)"


@dataclass(frozen=True)
class Network:
    """Weights that can be asked.

    Attributes:
      model: the definition.
      params, stats: by path.
      precision: type of activations.
    """

    model: ModelDef
    params: Arrays
    stats: Arrays
    precision: str


def network_of(folder: RunFolder, recipe: Recipe, dataset: Dataset) -> Network | None:
    """The weights that a run delivers, or those of its newest checkpoint; None where it has neither any more."""
    if folder.status().get("status") == "finished" and folder.bundle.is_dir():
        bundle = load_bundle(folder.bundle)
        return Network(bundle.definition(), dict(bundle.params), dict(bundle.stats), bundle.precision)
    setup = setup_of(recipe, dataset)
    store = CheckpointStore(folder.checkpoints, warn=lambda text: None, agree=agreed)
    try:
        restored = store.restore(setup.state_shapes, rename=False)
    finally:
        store.close()
    if restored is None:
        return None
    return Network(setup.model, *setup.deliverable(restored[0]), recipe.train.precision)


def explain(
    network: Network, section: ModelSection, dataset: Dataset, found: Predictions
) -> tuple[list[Explained], str]:
    """What speaks for the predicted class of some records, and where that is wrong for their label.

    Args:
      network: of the run.
      section: the recipe's `model`.
      dataset: whose held-out records were predicted.
      found: the predictions.

    Returns:
      The records, wrong answers first, and how it was found, in words. Nothing of nothing.
    """
    chosen = chosen_records(found)
    if not len(chosen):
        return [], ""
    preprocessing = dataset.preprocessing
    read, pictures = read_shown(dataset, found.records[chosen])
    order = reading(section)
    compiled = jax.jit(functools.partial(relevance, network.model, preprocessing, network.precision, section, order))
    by_class = {
        kind: jax.device_get(
            compiled(network.params, network.stats, read.images, read.lengths, classes[chosen].astype(np.int32))
        )
        for kind, classes in (("predicted", found.predicted), ("label", found.labels))
    }
    explained = []
    for row, (place, picture) in enumerate(zip(chosen.tolist(), pictures, strict=True)):
        length = None if read.lengths is None else int(read.lengths[row])
        kinds = {"predicted": int(found.predicted[place]), "label": int(found.labels[place])}
        evidence = tuple(
            _evidence(number, by_class[kind][row], picture, section, order, length)
            # One part where the answer is right.
            for number, kind in {number: kind for kind, number in reversed(kinds.items())}.items()
        )
        time = "" if order not in ("rows", "columns") else _direction(order, length)
        explained.append(Explained(mistake_of(dataset, found, place, picture), evidence[::-1], time))
    method = method_text(section, order, sequences=read.lengths is not None)
    # Grad-CAM tells of nothing that speaks against a class.
    return explained, f"{method}. {BLUE if method == CAM else ORANGE}."


def chosen_records(found: Predictions) -> np.ndarray:
    """Places among the predictions: the largest losses of wrong answers, then right ones from all over the set."""
    wrong = np.flatnonzero(found.predicted != found.labels)
    right = np.flatnonzero(found.predicted == found.labels)
    worst = wrong[np.argsort(-np.nan_to_num(found.nll[wrong], nan=np.inf), kind="stable")][:WRONG]
    spread = right[np.unique(np.linspace(0, len(right) - 1, RIGHT).astype(np.int64))] if len(right) else right
    return np.concatenate([worst, spread])


def reading(section: ModelSection) -> Order | None:
    """The order in which a recurrent model reads a picture; None: it is none."""
    if section.name in ROW_READERS:
        return "rows"
    return (section.read or CUSTOMARY_ORDER) if model_entry(section.name).reads else None


def method_text(section: ModelSection, order: Order | None, *, sequences: bool) -> str:
    """How the maps come about, in words."""
    if order is None:
        return CAM if model_entry(section.name).stages else INTEGRATED
    if sequences:
        return f"{RELEVANCE}, summed over the features of each step; time goes to the right"
    if order in ("rows", "columns"):
        return f"{RELEVANCE}, summed over each step, which is one of the {order} of the image"
    return f"{RELEVANCE}, of each step at its place in the image"


def relevance(
    model: ModelDef,
    preprocessing: Preprocessing,
    precision: str,
    section: ModelSection,
    order: Order | None,
    params: Arrays,
    stats: Arrays,
    images: Array,
    lengths: Array | None,
    classes: Array,
) -> Array:
    """How much each number of an input speaks for a class.

    Args:
      model: the definition.
      preprocessing, precision: of the weights.
      section: the recipe's `model`.
      order: as `reading` says.
      params, stats: of the model.
      images, lengths: as `normalise` takes them.
      classes: [batch] int32.

    Returns:
      [batch, height, width, channels]; of Grad-CAM [batch, height, width, 1].
    """
    inputs = normalise(images, preprocessing, jnp.dtype(precision), lengths)

    def predict(some: Array) -> Array:
        return model.apply(params, stats, some, lengths=lengths)[0]

    if order is not None:
        return gradient_times_input(predict, inputs, classes)
    if not model_entry(section.name).stages:
        return integrated_gradients(predict, inputs, classes)
    maps = model.features(params, stats, inputs)[-1]
    cam = grad_cam(lambda last: model.classify_features(params, stats, last), maps, classes)
    return jax.image.resize(cam, inputs.shape[:3], "linear")[..., None]


def _evidence(
    number: int, relevance: Any, picture: np.ndarray, section: ModelSection, order: Order | None, length: int | None
) -> Evidence:
    """Of one class in one record."""
    if order in ("rows", "columns"):
        steps: Literal["rows", "columns"] = "rows" if order == "rows" else "columns"
        return Evidence(number, steps=tuple(step_relevance(relevance[:length], steps).tolist()))
    if order == "patches":
        return Evidence(number, coloured(picture, patch_relevance(relevance, section.patch or CUSTOMARY_PATCH)))
    heat = relevance.sum(-1)
    return Evidence(number, coloured(picture, heat if length is None else upright(heat[:length])))


def _direction(order: Order, length: int | None) -> Literal["down", "right"]:
    """Sequences are drawn with time to the right."""
    return "down" if order == "rows" and length is None else "right"
