"""Whether data is like what weights were trained on: how far their frozen features go on a sample of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pcls.data.sources.source import Source, Subset
from pcls.parallel.mesh import make_mesh
from pcls.planning.limits import Limits
from pcls.pretrained.catalogue import catalogue
from pcls.pretrained.importing import cache_place
from pcls.run.bundles import open_bundle
from pcls.transfer.advise import Advice, Line
from pcls.transfer.probe import bundle_features, check_some, probe_data, probed

# Images that are looked at, to fit to and held out.
FITTED, HELD_OUT = 1500, 500
# Seconds that a probe nobody asked for may take, by FLOPs alone.
AFFORDABLE = 10.0
# Of the way from chance to certainty. Rules of thumb.
FIT, PARTLY = 0.8, 0.4


@dataclass(frozen=True)
class Similarity:
    """What frozen features give on a sample.

    Attributes:
      name: of the weights, as the user named them.
      linear, knn: accuracies on the held-out part, 0 to 1.
      chance: that of always naming the most frequent class.
      held_out: images in it.
    """

    name: str
    linear: float
    knn: float
    chance: float
    held_out: int


def similarity(source: str | Path, data: str) -> Similarity:
    """Probes a sample of some data.

    Args:
      source: a finished run, a bundle, or a name of the catalogue.
      data: as `pcls.data.dataset.data_settings` reads it.

    Raises:
      UserError: the weights or the data are at fault.
    """
    bundle, mesh = open_bundle(source), make_mesh(-1)
    dataset = probe_data(bundle, data)
    train, evaluation = (
        bundle_features(bundle, dataset, _sample(part, most), mesh=mesh)
        for part, most in ((dataset.train, FITTED), (dataset.evaluation, HELD_OUT))
    )
    check_some(data, train, evaluation)
    classes = len(dataset.class_names)
    linear, knn = (probed(kind, None, 1, train, evaluation, classes, mesh).mean for kind in ("linear", "knn"))
    chance = float(np.bincount(evaluation.labels).max() / len(evaluation))
    return Similarity(str(source), linear, knn, chance, len(evaluation))


def _sample(source: Source, most: int) -> Source:
    """At most so many of the records, drawn alike from all."""
    if len(source) <= most:
        return source
    return Subset(source, np.sort(np.random.default_rng(0).choice(len(source), most, replace=False)))


def similarity_line(found: Similarity) -> Line:
    """What is said of it."""
    share = (found.linear - found.chance) / (1 - found.chance) if found.chance < 1 else 0.0
    if share >= FIT:
        meaning = "its features fit, so few layers need to change"
    elif share >= PARTLY:
        meaning = "its features fit in part: fine-tune all layers"
    else:
        meaning = "its features hardly fit: fine-tune all layers, and compare with a run from scratch"
    return Line(
        "similarity",
        f"{found.linear:.0%} linear probe, {found.knn:.0%} nearest neighbours",
        f"frozen {found.name} on {found.held_out:,} images held out of a sample, chance {found.chance:.0%}; {meaning}",
    )


def with_similarity(advice: Advice, line: Line) -> Advice:
    """The advice, and what was seen of the images before what to start from."""
    place = next(place for place, one in enumerate(advice.lines) if one.what == "start")
    return replace(advice, lines=(*advice.lines[:place], line, *advice.lines[place:]))


def probed_unasked(advice: Advice, limits: Limits) -> str:
    """The proposed weights where they lie in the cache and a probe is quick, else empty: nothing is fetched unasked."""
    weight = catalogue().get(advice.source)
    if weight is None or not cache_place(weight.name).is_dir():
        return ""
    return weight.name if (FITTED + HELD_OUT) * weight.flops / limits.flops <= AFFORDABLE else ""
