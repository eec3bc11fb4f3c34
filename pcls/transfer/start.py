"""Where a fine-tuning run starts: a bundle's weights, with a head for the new classes."""

from __future__ import annotations

from pathlib import Path

import jax

from pcls.config.schema import ModelSection
from pcls.errors import UserError
from pcls.models.reading import CUSTOMARY_ORDER
from pcls.nn.module import Arrays, ModelDef
from pcls.pretrained.bundle import FACTS, Bundle, load_bundle
from pcls.run.folder import RunFolder
from pcls.run.train import Start

HEAD = "head/"


def open_bundle(path: str | Path) -> Bundle:
    """Loads a bundle, given as its folder or as that of a finished run.

    Raises:
      UserError: neither of both, or the run is not finished.
    """
    folder = Path(path)
    if (folder / FACTS).is_file():
        return load_bundle(folder)
    run = RunFolder(folder)
    if run.exists() and not run.bundle.is_dir():
        raise UserError(f"{path}: the run is not finished and has no bundle yet; go on with: pcls resume {path}")
    if not run.exists():
        raise UserError(f"{path}: is neither a run's folder (recipe.yaml) nor a bundle ({FACTS})")
    return load_bundle(run.bundle)


def start_from(path: str | Path, model: ModelSection) -> Start:
    """The start of a run from a bundle.

    Args:
      path: a bundle or a finished run.
      model: of the recipe; its name and its order of reading must be the bundle's.

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
        lambda definition, class_names, seed: adapted_weights(bundle, definition, class_names, seed),
    )


def adapted_weights(
    bundle: Bundle, definition: ModelDef, class_names: tuple[str, ...], seed: int
) -> tuple[Arrays, Arrays]:
    """The bundle's arrays for a model with these classes; the head is drawn anew unless the classes are the same.

    Args:
      bundle: pretrained.
      definition: the new run's model: the same architecture, any number of classes.
      class_names: of the new run, in order. As many but other classes get a new head too.
      seed: of the new head.

    Returns:
      Parameters and statistics by path.
    """
    keep_head = class_names == bundle.class_names
    _check_same_architecture(bundle, definition)
    fresh, _ = jax.jit(definition.init)(jax.random.key(seed))
    params = {
        name: fresh[name] if name.startswith(HEAD) and not keep_head else bundle.params[name]
        for name in definition.params
    }
    return params, dict(bundle.stats)


def _check_same_architecture(bundle: Bundle, definition: ModelDef) -> None:
    bundled = {name: array.shape for name, array in bundle.params.items() if not name.startswith(HEAD)}
    needed = {name: leaf.shape for name, leaf in definition.params.items() if not name.startswith(HEAD)}
    if bundled != needed:
        options = ", ".join(f"model.{key}={value}" for key, value in bundle.options.items()) or "the customary ones"
        raise UserError(
            f"the weights in {bundle.path} do not fit model.*, or the data; they were trained with {options}: "
            "write the same"
        )
