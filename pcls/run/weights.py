"""What a run starts from: pretrained weights, and a head fitted to their features where the recipe asks for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pcls.config import Recipe
from pcls.data.preprocessing import Preprocessing
from pcls.errors import UserError
from pcls.evaluation.probes import chosen_l2, fit_linear
from pcls.models.registry import model_entry
from pcls.nn.module import HEAD, HEAD_BIAS, HEAD_KERNEL, Arrays, ModelDef
from pcls.observe.console import Console
from pcls.run.features import features_of
from pcls.run.first_weights import weights_from_images
from pcls.run.setup import Setup

# Of a head that is one dense layer.
HEAD_PATHS = frozenset((HEAD_KERNEL, HEAD_BIAS))


@dataclass(frozen=True)
class StartWeights:
    """Weights for the model of a run.

    Attributes:
      params, stats: path to array, on the host.
      told: what of them is new, as a table for people.
    """

    params: Arrays
    stats: Arrays
    told: str


@dataclass(frozen=True)
class Start:
    """Pretrained weights that a run starts from.

    Attributes:
      preprocessing: what the weights expect; it holds for the run.
      weights: makes those for the run's model, given the classes in order.
      origin: of public weights, for the bundle that the run delivers.
    """

    preprocessing: Preprocessing
    weights: Callable[[ModelDef, tuple[str, ...]], StartWeights]
    origin: Mapping[str, str]


def start_weights(start: Start | None, setup: Setup, console: Console | None) -> tuple[Arrays, Arrays] | None:
    """Parameters and statistics that a run starts from, on the host; None: drawn from its seed, on the devices.

    Args:
      start: pretrained weights; None: none.
      setup: of the run.
      console: hears what is new; None: nobody does.

    Raises:
      UserError: the weights do not fit the model.
    """
    if start is None:
        return weights_from_images(setup.recipe, setup.model, setup.dataset)
    weights = start.weights(setup.model, setup.dataset.class_names)
    if console:
        console.say(weights.told)
    if setup.recipe.transfer.head == "probe":
        weights = _with_probed_head(setup, weights, console)
    return weights.params, weights.stats


def has_first_weights(recipe: Recipe) -> bool:
    """Whether a run starts from other weights than those drawn from its seed."""
    return bool(recipe.model.init) or model_entry(recipe.model.name).from_images is not None


def _with_probed_head(setup: Setup, weights: StartWeights, console: Console | None) -> StartWeights:
    """The weights with the best linear head on the features that they give of the training records.

    Training that starts from it moves the features less than one from a random head does. Source: Kumar et al. 2022.

    Raises:
      UserError: a model whose head is not one dense layer.
    """
    found = {path for path in weights.params if path.startswith(HEAD)}
    if found != HEAD_PATHS:
        raise UserError(
            f"transfer.head=probe needs a head that is one dense layer, and that of {setup.recipe.model.name} has "
            f"{', '.join(sorted(found)) or 'no parameters'}; write transfer.head=new"
        )
    dataset = setup.dataset
    features = features_of(
        setup.model,
        weights.params,
        weights.stats,
        dataset.train,
        dataset.preprocessing,
        precision=setup.recipe.train.precision,
        mesh=setup.mesh,
        batch_size=setup.recipe.evaluation_batch_size,
        threads=0 if dataset.in_memory else setup.recipe.data.workers or None,
        buckets=dataset.train_buckets if len(dataset.padded) > 1 else (),
    )
    told = features.values, features.labels, len(dataset.class_names)
    l2 = chosen_l2(*told, seed=setup.recipe.train.seed, mesh=setup.mesh)
    probe = fit_linear(*told, l2=l2, mesh=setup.mesh)
    if console:
        what = dataset.preprocessing.records
        console.say(f"head: fitted to the features of {len(features):,} {what}, with a penalty of {l2:g}")
    return replace(weights, params=weights.params | {HEAD_KERNEL: probe.kernel, HEAD_BIAS: probe.bias})
