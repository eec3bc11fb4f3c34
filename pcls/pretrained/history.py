"""How a bundle's weights came about: what it was trained with, and on which records it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# With more classes, no number is kept of each: the run's folder has them.
MOST_CLASSES = 100


class ClassRates(NamedTuple):
    """How one class fares among the held-out records.

    Attributes:
      support: records that carry its label.
      precision, recall, f1: 0 to 1.
    """

    support: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Training:
    """What a run notes in its bundle. A bundle is handed on: nothing here names a place on the machine.

    Attributes:
      recipe: the resolved recipe, `{"train.batch_size": 128, ...}`.
      versions: of the packages that results depend on.
      records: trained on.
      held_out: records that the metrics are of; with those that could not be decoded.
      digest: of these, `sha256:...`; what it covers, `held_out_digest` says.
      classes: the rates of each class, in their order; empty where there are more than `MOST_CLASSES`.
      compressed: what was done to the weights afterwards, in words; empty: nothing.
    """

    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    records: int
    held_out: int
    digest: str
    classes: Sequence[ClassRates] = field(default=())
    compressed: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for model.json."""
        return vars(self) | {
            "recipe": dict(self.recipe),
            "versions": dict(self.versions),
            "classes": [list(rates) for rates in self.classes],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], classes: int) -> Training:
        """Reads `to_json` back, of so many classes; TypeError, ValueError or KeyError where it is not that."""
        rates = tuple(ClassRates(int(n), float(p), float(r), float(f)) for n, p, r, f in values["classes"])
        if len(rates) not in (0, classes):
            raise ValueError(f"rates of {len(rates)} classes, and there are {classes}")
        return cls(
            recipe={str(key): value for key, value in values["recipe"].items()},
            versions={str(key): str(value) for key, value in values["versions"].items()},
            records=int(values["records"]),
            held_out=int(values["held_out"]),
            digest=str(values["digest"]),
            classes=rates,
            # Older bundles do not say it.
            compressed=str(values.get("compressed", "")),
        )
