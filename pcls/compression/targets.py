"""What `pcls compress --target` may say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pcls.errors import UserError

ALLOWED = "int8, flops=0.5, size=1MB, latency=2ms"
_BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Target:
    """What the model becomes.

    Attributes:
      kind: `int8`, or what it is measured by.
      value: the share of FLOPs that is kept, bytes of the weight file, or milliseconds of a prediction of one image.
      text: as it was written.
    """

    kind: Literal["int8", "flops", "size", "latency"]
    value: float
    text: str

    @property
    def folder_name(self) -> str:
        """As a part of a path."""
        return self.text.replace("=", "")


def parse_target(text: str) -> Target:
    """Reads `int8`, `flops=0.5`, `size=1MB` or `latency=2ms`.

    Raises:
      UserError: anything else.
    """
    if text == "int8":
        return Target("int8", 8.0, text)
    parts = re.fullmatch(r"(flops|size|latency)=(\d{1,15}(?:\.\d{1,9})?)([A-Za-z]{0,2})", text)
    if parts is None:
        raise UserError(f"--target {text}: allowed: {ALLOWED}")
    kind, number, unit = parts[1], float(parts[2]), parts[3]
    if kind == "flops":
        if unit or not 0 < number < 1:
            raise UserError(f"--target {text}: a share to keep is needed, above 0 and below 1, as in flops=0.5")
        return Target("flops", number, text)
    units = _BYTES if kind == "size" else _MILLISECONDS
    if unit not in units or not number:
        example = "size=1MB" if kind == "size" else "latency=2ms"
        raise UserError(f"--target {text}: a number above 0 with {', '.join(units)} is needed, as in {example}")
    return Target("size" if kind == "size" else "latency", number * units[unit], text)
