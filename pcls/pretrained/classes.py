"""Names for the outputs of public weights."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from pcls.errors import UserError

IMAGENET_CLASSES = 1000
# ImageNet-1k's synsets, in the order of timm's and torchvision's outputs; they come with TensorFlow Datasets.
IMAGENET_SYNSETS = "datasets/imagenet2012/labels.txt"
MAX_BYTES = 1 << 24


def read_class_names(path: Path) -> tuple[str, ...]:
    """Names from a text file, one a line, or from a JSON list, in the order of the outputs.

    Raises:
      UserError: it cannot be read, or holds no names.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: is no list of class names: larger than {MAX_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8").strip()
        names = json.loads(text) if text.startswith("[") else text.splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: is neither UTF-8 text with one class a line nor a JSON list of names") from error
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f"{path}: holds an empty name, or one that is no text; write one class a line")
    return tuple(name.strip() for name in names)


def names_of_outputs(outputs: int) -> tuple[str, ...]:
    """ImageNet-1k's synsets where there are as many outputs; else the numbers from 0."""
    return imagenet_synsets() if outputs == IMAGENET_CLASSES else tuple(map(str, range(outputs)))


def imagenet_synsets() -> tuple[str, ...]:
    """`n01440764` and so on: what the folders of ImageNet-1k are called."""
    spec = find_spec("tensorflow_datasets")
    assert spec is not None and spec.submodule_search_locations
    # Read as a file: importing the package would take a second.
    path = Path(spec.submodule_search_locations[0]) / IMAGENET_SYNSETS
    return tuple(path.read_text(encoding="utf-8").split())
