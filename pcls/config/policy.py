"""Names of augmentation policies, in timm's spelling: `rand-m9-mstd0.5-inc1`, `augmix-m5-w4-d2`, `trivial`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

# timm's word for "uniform from 0 to the magnitude" is a deviation beyond this.
UNIFORM_BEYOND = 100

EXAMPLES = "rand-m9-mstd0.5-inc1, augmix-m5-w4-d2 or trivial"


@dataclass(frozen=True)
class RandAugment:
    """Some operations an image, drawn from one list. Source: Cubuk et al. 2020, with timm's strengths.

    Attributes:
      magnitude: mean strength; 10 is the full range of an operation (m).
      layers: operations one after the other (n).
      probability: of each of them to be applied (p).
      deviation: of the normal distribution of strengths; infinite: uniform from 0 to `magnitude` (mstd).
      limit: largest strength (mmax).
      increasing: a higher strength changes an image more, of every operation; else less, of some (inc1).
      weighted: geometric operations are drawn more often than others, and none twice (tweights).
    """

    magnitude: int = 10
    layers: int = 2
    probability: float = 0.5
    deviation: float = 0.0
    limit: int = 10
    increasing: bool = False
    weighted: bool = False


@dataclass(frozen=True)
class AugMix:
    """A mixture of chains of operations. Source: Hendrycks et al. 2020, with timm's operations and strengths.

    Attributes:
      magnitude: mean strength, or the largest if they are uniform; 10 is the full range of an operation (m).
      width: chains (w).
      depth: operations in a chain; 0: 1 to 3, drawn (d).
      alpha: of the Dirichlet distribution of the chains' shares, and of the mixture's own (a).
      deviation: as in `RandAugment` (mstd).
    """

    magnitude: int = 3
    width: int = 3
    depth: int = 0
    alpha: float = 1.0
    deviation: float = math.inf


@dataclass(frozen=True)
class TrivialAugment:
    """One operation an image, its strength uniform over a wide range. Source: Müller & Hutter 2021."""


Policy = RandAugment | AugMix | TrivialAugment


@dataclass(frozen=True)
class _Number:
    """A part such as `m9`: the field that it fills, and what it may be."""

    field: str
    low: float
    high: float
    whole: bool = True

    def read(self, text: str) -> float | None:
        """The value, or None where it is no number within the bounds."""
        if not re.fullmatch(r"[0-9]{1,6}" if self.whole else r"[0-9]{1,6}(\.[0-9]{1,6})?", text):
            return None
        value = int(text) if self.whole else float(text)
        return value if self.low <= value <= self.high else None

    def __str__(self) -> str:
        return f"{'a whole number' if self.whole else 'a number'} from {self.low:g} to {self.high:g}"


_NUMBERS: dict[type[Any], dict[str, _Number]] = {
    RandAugment: {
        "m": _Number("magnitude", 0, 100),
        "n": _Number("layers", 1, 10),
        "p": _Number("probability", 0.01, 1, whole=False),
        "mstd": _Number("deviation", 0, 999, whole=False),
        "mmax": _Number("limit", 1, 100),
    },
    AugMix: {
        "m": _Number("magnitude", 1, 10),
        "w": _Number("width", 1, 10),
        "d": _Number("depth", 1, 10),
        "a": _Number("alpha", 0.01, 100, whole=False),
        "mstd": _Number("deviation", 0, UNIFORM_BEYOND, whole=False),
    },
    TrivialAugment: {},
}
_WORDS: dict[type[Any], dict[str, str]] = {
    RandAugment: {"inc1": "increasing", "tweights": "weighted"},
    AugMix: {},
    TrivialAugment: {},
}
_FAMILIES: dict[str, type[Any]] = {"rand": RandAugment, "augmix": AugMix, "trivial": TrivialAugment}


def parse_policy(text: str) -> Policy:
    """Reads a policy's name.

    Raises:
      ValueError: what is wrong and what is allowed, without the name itself.
    """
    family, *parts = text.split("-")
    if family not in _FAMILIES:
        raise ValueError(f"a policy such as {EXAMPLES} is needed")
    kind = _FAMILIES[family]
    fields: dict[str, Any] = {}
    for part in parts:
        field, value = _read_part(family, part)
        if field in fields:
            raise ValueError(f"{part} says again what an earlier part said; keep one of them")
        fields[field] = value
    if math.inf > fields.get("deviation", 0) > UNIFORM_BEYOND:
        fields["deviation"] = math.inf
    return kind(**fields)


def _read_part(family: str, part: str) -> tuple[str, Any]:
    numbers, words = _NUMBERS[_FAMILIES[family]], _WORDS[_FAMILIES[family]]
    if part in words:
        return words[part], True
    letters = part.rstrip("0123456789.")
    if letters not in numbers:
        known = ", ".join([*numbers, *words])
        allowed = f"{family} has the parts {known}" if known else f"{family} has no parts"
        raise ValueError(f"{part[:20]!a} is unknown; {allowed}")
    number = numbers[letters]
    value = number.read(part.removeprefix(letters))
    if value is None:
        raise ValueError(f"{part[:20]!a} is wrong; {letters} is followed by {number}")
    return number.field, value
