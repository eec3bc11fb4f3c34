"""Frozen features: what enters a model's head, for every record of a set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from pcls.data.augment import normalise
from pcls.data.buckets import Bucket
from pcls.data.pipeline import Batch, evaluation_batches
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.source import Source
from pcls.data.workers import usable_cores
from pcls.errors import UserError
from pcls.nn.module import HEAD_KERNEL, Arrays, ModelDef
from pcls.parallel.mesh import batch_sharding, local_rows, make_mesh, replicated, shard_count
from pcls.parallel.processes import everywhere, place

BATCH_SIZE = 128
# Of the machine's, that features may take: who fits something to them holds two more copies for a while.
MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class Features:
    """What a frozen network says of the records of a set.

    Attributes:
      values: [n, features] float32, the input of the head.
      labels: [n] int64.
      records: [n] int64, ascending record numbers; those that could not be decoded are left out.
    """

    values: np.ndarray
    labels: np.ndarray
    records: np.ndarray

    def __len__(self) -> int:
        return len(self.records)

    def chosen(self, rows: np.ndarray) -> Features:
        """Some of the rows, by number or by a mask."""
        return Features(self.values[rows], self.labels[rows], self.records[rows])


def features_of(
    model: ModelDef,
    params: Arrays,
    stats: Arrays,
    source: Source,
    preprocessing: Preprocessing,
    *,
    precision: str = "float32",
    mesh: Mesh | None = None,
    batch_size: int = BATCH_SIZE,
    threads: int | None = None,
    buckets: Sequence[Bucket] = (),
) -> Features:
    """Runs every record once through a model without its head, as evaluation does: no augmentation, running statistics.

    Every process gets all features. They take 4 bytes each, which is checked before the first record is read.

    Args:
      model: of the registry.
      params, stats: by path; those of the head are not used.
      source: whose records are wanted.
      preprocessing: what the weights expect; of evaluation.
      precision: type of activations.
      mesh: over which batches are split; None: all devices.
      batch_size: of a global batch; rounded up to a multiple of the devices.
      threads: that read ahead; 0: none, for records in memory; None: as many as there are cores.
      buckets: of sequences, as `evaluation_batches` takes them.

    Raises:
      UserError: a model without a head, or more features than fit the memory.
    """
    if source.targets is not None:
        raise UserError("features are fitted to one label a record, and data.labels is several; see docs/multilabel.md")
    mesh = make_mesh(-1) if mesh is None else mesh
    width = _width(model)
    check_memory(4 * len(source) * width, f"the features of {len(source):,} {preprocessing.records}, {width:,} each,")
    sharding, shards = batch_sharding(mesh), shard_count(mesh)
    size = -(-min(batch_size, len(source)) // shards) * shards
    step = _make_step(model, preprocessing, precision, mesh)
    # Once: host arrays would travel with every batch.
    arrays = everywhere((dict(params), dict(stats)), replicated(mesh))
    values = np.empty((len(source), width), np.float32)
    labels, decoded = np.zeros(len(source), np.int64), np.zeros(len(source), bool)
    with evaluation_batches(
        source,
        preprocessing,
        batch_size=size,
        rows=local_rows(sharding, size),
        threads=usable_cores() if threads is None else threads,
        buckets=buckets,
    ) as batches:
        for batch in batches:
            found = jax.device_get(step(*arrays, place(batch, sharding, size)))
            counted = found["counted"] > 0
            records = found["record"][counted]
            values[records], labels[records] = found["features"][counted], found["label"][counted]
            decoded[records] = True
    kept = np.flatnonzero(decoded)
    return Features(values, labels, kept) if decoded.all() else Features(values[kept], labels[kept], kept)


def check_memory(needed: int, what: str) -> None:
    """UserError where something takes more than its share of this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > MEMORY_SHARE * memory:
        raise UserError(
            f"{what} take {needed / 1e9:,.1f} GB, more than {MEMORY_SHARE:.0%} of this machine's "
            f"{memory / 1e9:,.1f} GB; take fewer records, as by data.per_class=100"
        )


def _width(model: ModelDef) -> int:
    """Numbers that enter the head."""
    kernel = model.params.get(HEAD_KERNEL)
    if kernel is None:
        raise UserError(f"the model has no head ({HEAD_KERNEL}), and features are what enters it; choose another")
    return kernel.shape[0]


def _make_step(model: ModelDef, preprocessing: Preprocessing, precision: str, mesh: Mesh) -> Any:
    dtype = jnp.dtype(precision)

    def step(params: Arrays, stats: Arrays, batch: Batch) -> dict[str, Array]:
        images = normalise(batch.image, preprocessing, dtype, batch.length)
        features = model.embed(params, stats, images, batch.length).astype(jnp.float32)
        return {"features": features, "label": batch.label, "record": batch.record, "counted": batch.weight}

    whole = replicated(mesh)
    # Whole on every device, so that every process has all of them.
    return jax.jit(step, in_shardings=(whole, whole, batch_sharding(mesh)), out_shardings=whole)
