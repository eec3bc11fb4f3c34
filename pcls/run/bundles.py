"""A classifier by whatever names it: a bundle, a finished run, public weights."""

from __future__ import annotations

import sys
from pathlib import Path

from pcls.errors import UserError
from pcls.pretrained.bundle import FACTS, Bundle, load_bundle
from pcls.pretrained.catalogue import catalogue
from pcls.pretrained.importing import cached_bundle
from pcls.run.folder import RunFolder


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
        raise UserError(f"{path}: the run has no bundle, which is written when it is finished: pcls resume {path}")
    if not run.exists():
        raise UserError(
            f"{path}: is neither a run's folder (recipe.yaml) nor a bundle ({FACTS}), nor a name of pcls models search"
        )
    return load_bundle(run.bundle)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
