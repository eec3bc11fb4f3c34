"""Where a fine-tuning run starts: a bundle's weights, with a head for the new classes."""

from __future__ import annotations

from pathlib import Path

import jax

from pcls.config import Recipe
from pcls.errors import UserError
from pcls.models.reading import CUSTOMARY_ORDER
from pcls.nn.module import HEAD, Arrays, ModelDef
from pcls.pretrained.bundle import Bundle
from pcls.run.bundles import open_bundle
from pcls.run.weights import Start, StartWeights
from pcls.transfer.loading import load, loaded_text


def start_from(path: str | Path, recipe: Recipe) -> Start:
    """The start of a run from a bundle.

    Args:
      path: as `open_bundle` takes it.
      recipe: of the run. Unless `transfer` says what to rename or skip, the model is the bundle's.

    Raises:
      UserError: no bundle, or one of another model.
    """
    bundle, model = open_bundle(path), recipe.model
    by_rules = recipe.transfer.rename or recipe.transfer.skip
    if bundle.model != model.name and not by_rules:
        raise UserError(
            f"model.name is {model.name!r}, and the weights in {path} are of {bundle.model}; make them the same, or "
            "name what they share by transfer.rename and transfer.skip"
        )
    # Weights of another order may have the same shapes.
    read, trained = (options.get("read") or CUSTOMARY_ORDER for options in (model.architecture, bundle.options))
    if read != trained:
        raise UserError(
            f"model.read is {read!r}, and the weights in {path} were trained with {trained!r}; write the same"
        )
    return Start(
        bundle.preprocessing,
        lambda definition, class_names: adapted_weights(bundle, definition, class_names, recipe),
        bundle.origin,
    )


def adapted_weights(bundle: Bundle, definition: ModelDef, class_names: tuple[str, ...], recipe: Recipe) -> StartWeights:
    """The bundle's arrays for a model with these classes.

    The head is kept where the classes have the same names, in whatever order; else it is drawn anew.

    Args:
      bundle: pretrained.
      definition: the new run's model, any number of classes.
      class_names: of the new run, in order. As many but other classes get a new head too.
      recipe: of the run: its seed, and what of the weights it takes over.

    Raises:
      UserError: the weights do not fit the model.
    """
    transfer, why_new = recipe.transfer, why_new_head(bundle, class_names, recipe)
    skip = dict.fromkeys(transfer.skip, "as transfer.skip says")
    weights = {**bundle.params, **bundle.stats}
    if not why_new:
        weights |= _head_in_order(bundle, class_names)
    else:
        skip = {f"^{HEAD}": why_new} | skip
    fresh = dict(zip(("params", "stats"), jax.jit(definition.init)(jax.random.key(recipe.train.seed)), strict=True))
    loaded = load(
        weights,
        fresh["params"] | fresh["stats"],
        rename=transfer.rename,
        skip=skip,
        source=str(bundle.path),
        options=", ".join(f"model.{key}={value}" for key, value in bundle.options.items()),
    )
    params, stats = ({name: loaded.arrays[name] for name in fresh[part]} for part in ("params", "stats"))
    return StartWeights(params, stats, loaded_text(loaded.rows))


def why_new_head(bundle: Bundle, class_names: tuple[str, ...], recipe: Recipe) -> str:
    """What keeps a run from going on with the head of the weights; empty: nothing.

    Args:
      bundle: the weights.
      class_names: of the run.
      recipe: of the run.
    """
    if set(class_names) != set(bundle.class_names):
        return _classes_differ(bundle.class_names, class_names)
    if recipe.data.holds_label_sets != bool(bundle.thresholds):
        # The same names, and yet other questions: which of them, or whether each.
        trained, wanted = ("several labels", "one") if bundle.thresholds else ("one label", "several")
        return f"the weights answer {trained} a record, and the data has {wanted}"
    return "" if recipe.transfer.head == "auto" else "as transfer.head says"


def _head_in_order(bundle: Bundle, class_names: tuple[str, ...]) -> Arrays:
    """The head's arrays, outputs in the order of these classes: folders are sorted otherwise here and there."""
    if class_names == bundle.class_names:
        return {}
    places = [bundle.class_names.index(name) for name in class_names]
    return {name: array[..., places] for name, array in bundle.params.items() if name.startswith(HEAD)}


def _classes_differ(trained: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """Why the head is drawn anew; capital letters alone are probably a slip."""
    trained_by_case = {name.casefold(): name for name in trained}
    if set(trained_by_case) == {name.casefold() for name in wanted}:
        name = next(name for name in wanted if name not in trained)
        return f"classes differ from those of the weights in capital letters only, as {name!r}: rename them to keep it"
    return f"the {len(wanted):,} classes are not the {len(trained):,} of the weights"


def check_head_fits(trained: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """UserError unless data of the wanted classes can keep the head of the trained ones, in whatever order."""
    if set(trained) == set(wanted):
        return
    missing, unknown = (sorted(set(a) - set(b)) for a, b in ((trained, wanted), (wanted, trained)))
    if unknown:
        difference = f"and the weights do not know {unknown[0]!r}"
    else:
        difference = f"and of the weights {missing[0]!r} is missing in it"
    raise UserError(
        f"--keep-head: the data has {len(wanted):,} classes, {difference} ({len(trained):,} classes); leave it out for "
        "a new head"
    )
