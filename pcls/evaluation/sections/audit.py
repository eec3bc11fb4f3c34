"""The data audit on the report: how many records each class has, and what is odd about the set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pcls.evaluation.charts import Chart, rank_chart
from pcls.evaluation.metrics import FEW_SHOT_BELOW, MANY_SHOT_ABOVE

MAX_BARS = 30  # Classes up to which each has a bar of its own.
NAMED = 5


@dataclass(frozen=True)
class Audit:
    """What is known of the data.

    Attributes:
      class_names: in label order.
      train: training records of each class; empty: not known.
      held_out: held-out records of each class that were counted.
      undecodable: held-out records that could not be decoded.
      quarantined: names on the list of what is left out; None: there is no list.
      notices: what the user should be told, a line each.
    """

    class_names: tuple[str, ...]
    train: tuple[int, ...]
    held_out: tuple[int, ...]
    undecodable: int = 0
    quarantined: int | None = None
    notices: tuple[str, ...] = ()


def audit_view(audit: Audit | None) -> dict[str, Any] | None:
    """The section as the page prints it."""
    if audit is None:
        return None
    train, held = np.array(audit.train, np.int64), np.array(audit.held_out, np.int64)
    many = len(audit.class_names) > MAX_BARS
    return {
        "facts": _facts(audit, train, held),
        "notices": audit.notices,
        "bars": [] if many else _bars(audit, train, held),
        "trained": len(train) > 0,
        "chart": _chart(train, held) if many else None,
        "extremes": _extremes(audit, train) if many and len(train) else [],
    }


def _facts(audit: Audit, train: np.ndarray, held: np.ndarray) -> list[tuple[str, str]]:
    facts = []
    if len(train):
        present = train[train > 0]
        few, many = int((train < FEW_SHOT_BELOW).sum()), int((train > MANY_SHOT_ABOVE).sum())
        ratio = f"{present.max() / present.min():,.1f}" if len(present) else "–"
        facts = [
            ("training records", f"{train.sum():,}"),
            ("largest class / smallest", ratio),
            (
                "classes",
                f"{len(train):,}: {many:,} with more than {MANY_SHOT_ABOVE} records, {len(train) - many - few:,} with "
                f"{FEW_SHOT_BELOW} to {MANY_SHOT_ABOVE}, {few:,} with fewer",
            ),
        ]
    facts.append(("held-out records", f"{held.sum():,}"))
    facts.append(("held out, not decodable", f"{audit.undecodable:,}"))
    if audit.quarantined is not None:
        facts.append(("names in quarantine", f"{audit.quarantined:,}"))
    return facts


def _bars(audit: Audit, train: np.ndarray, held: np.ndarray) -> list[tuple[str, str, float, str, float]]:
    """Name, training records and their bar, held-out records and theirs."""
    most_trained, most_held = max(1, train.max(initial=0)), max(1, held.max(initial=0))
    return [
        (
            name,
            f"{train[i]:,}" if len(train) else "",
            round(float(train[i] / most_trained), 3) if len(train) else 0.0,
            f"{held[i]:,}",
            round(float(held[i] / most_held), 3),
        )
        for i, name in enumerate(audit.class_names)
    ]


def _chart(train: np.ndarray, held: np.ndarray) -> Chart:
    parts = {"train": train, "eval": held} if len(train) else {"eval": held}
    order = np.argsort(-next(iter(parts.values())), kind="stable")
    return rank_chart("Records of each class", {name: counts[order] for name, counts in parts.items()})


def _extremes(audit: Audit, train: np.ndarray) -> list[tuple[str, str]]:
    order = np.argsort(-train, kind="stable")
    return [
        (what, ", ".join(f"{audit.class_names[i]} ({train[i]:,})" for i in some))
        for what, some in (("Largest", order[:NAMED]), ("Smallest", order[::-1][:NAMED]))
    ]
