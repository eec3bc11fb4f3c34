"""What public weights are imported from, told apart by name alone: before anything is read, or jax is imported."""

from __future__ import annotations

from pathlib import Path

from pcls.data.preprocessing import MAX_CHANNELS
from pcls.errors import UserError
from pcls.pretrained.catalogue import find_weight
from pcls.pretrained.hub import PREFIX

SAFETENSORS, KERAS = ".safetensors", (".h5", ".hdf5", ".keras")
# Formats that can run code when they are read.
UNSAFE = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


def check_source(source: str, channels: int | None = None) -> None:
    """UserError where there is nothing of that name, or nothing that can be imported.

    Args:
      source, channels: as `pcls.pretrained.importing.import_bundle` takes them.
    """
    if channels is not None and not 1 <= channels <= MAX_CHANNELS:
        raise UserError(f"channels is {channels}; 1 (grey), 3 (RGB) or another number up to {MAX_CHANNELS} is needed")
    path = Path(source).expanduser()
    kind = path.suffix.lower()
    if kind in UNSAFE:
        raise UserError(_convert(path))
    if path.is_file() and kind not in (SAFETENSORS, *KERAS):
        raise UserError(f"{path}: is of no kind that can be imported: {SAFETENSORS}, {', '.join(KERAS)}")
    if path.exists() or source.startswith(PREFIX):
        return
    if len(path.parts) > 1 or kind in (SAFETENSORS, *KERAS):
        raise UserError(f"{source}: there is no such file or folder")
    find_weight(source)


def _convert(path: Path) -> str:
    """What to do with a file that can run code."""
    out = path.with_suffix(SAFETENSORS).name
    program = (
        f"import torch, safetensors.torch; weights = torch.load({path.name!r}, map_location='cpu', weights_only=True); "
        f"safetensors.torch.save_file({{key: value.contiguous() for key, value in weights.items()}}, {out!r})"
    )
    return f'{path}: can run code when it is read, so pcls does not; where PyTorch is: python -c "{program}"'
