"""Training records that cannot be decoded."""

from __future__ import annotations

from collections.abc import Callable

from pcls.data.dataset import Dataset
from pcls.data.pipeline import Batch
from pcls.errors import UserError


class Undecodable:
    """Training records that could not be decoded: named once each, and limited.

    Args:
      dataset: trained on.
      limit: share of records above which the run ends.
      say: tells a person.
    """

    def __init__(self, dataset: Dataset, limit: float, say: Callable[[str], None]):
        self._dataset = dataset
        self._limit = limit
        self._say = say
        self._seen: set[int] = set()

    def inspect(self, batch: Batch) -> None:
        """Looks at the weights of a host batch; raises UserError above the limit."""
        for record in batch.record[(batch.weight == 0) & (batch.record >= 0)]:
            if int(record) not in self._seen:
                self._seen.add(int(record))
                self._tell(int(record))

    def _tell(self, record: int) -> None:
        source, size = self._dataset.train, len(self._dataset.train)
        what = self._dataset.preprocessing.records
        text = (
            f"{source.name(record)} {source.failure(record, self._dataset.preprocessing)}; "
            f"{len(self._seen):,} of {size:,} {what} skipped, limit {self._limit:.2%}"
        )
        if len(self._seen) > self._limit * size:
            ways = "" if self._dataset.padded else "pcls data doctor finds all: "
            raise UserError(
                f"{text} (data.max_undecodable); {ways}mend them, list them in data.quarantine, or raise the limit"
            )
        self._say(text)
