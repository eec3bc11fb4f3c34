"""A batch shared out to devices, by numbers alone: what starts processes elsewhere asks before jax is imported."""

from __future__ import annotations

from pcls.errors import UserError


def check_batch_size(key: str, batch_size: int, shards: int) -> None:
    """UserError unless every part of the batch has the same number of images.

    Args:
      key: of the recipe.
      batch_size: images of a global batch.
      shards: devices that it is split over.
    """
    if batch_size % shards:
        lower = batch_size // shards * shards
        choices = f"{lower} or {lower + shards}" if lower else str(shards)
        raise UserError(f"{key} is {batch_size} and does not divide by the {shards} devices; write {choices}")
