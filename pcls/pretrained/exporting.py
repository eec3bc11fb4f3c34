"""A bundle as timm reads it: model.safetensors by its names, and config.json."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import save

from pcls.atomic import atomic_path
from pcls.errors import UserError
from pcls.pretrained.bundle import Bundle
from pcls.pretrained.exchange import export_weights
from pcls.pretrained.hub import CONFIG, WEIGHTS
from pcls.pretrained.names import timm_names
from pcls.pretrained.timm_config import config_of

# What PyTorch's readers look for.
METADATA = {"format": "pt"}


def export_timm(bundle: Bundle, out: Path) -> None:
    """Writes a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` takes, or its weights alone.

    Args:
      bundle: of a model that timm has.
      out: a folder that is not there yet, or a .safetensors file.

    Raises:
      UserError: timm has no such model, head or widths, or `out` cannot be written.
    """
    names = timm_names(bundle.model)
    if "head" in bundle.options:
        raise UserError(f"model.head is {bundle.options['head']}, and timm has no such head; train one that is linear")
    if "widths" in bundle.options:
        raise UserError(
            f"model.widths is set, and timm's {bundle.model} has its own; pcls export --to onnx, stablehlo or litert "
            "writes a network of any width"
        )
    alone = out.suffix == ".safetensors"
    if out.is_dir() or (out.exists() and not alone):
        raise UserError(f"{out}: is there already; name another by --out")
    # `save_file` lets nobody else read what it writes.
    weights = save(export_weights(dict(bundle.params), dict(bundle.stats), names), METADATA)
    try:
        with atomic_path(out) as part:
            if alone:
                part.write_bytes(weights)
            else:
                part.mkdir()
                (part / WEIGHTS).write_bytes(weights)
                text = json.dumps(config_of(bundle), indent=2, ensure_ascii=False)
                (part / CONFIG).write_text(text + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out}: could not be written ({error})") from error
