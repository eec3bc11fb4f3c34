"""What a run says before its first step."""

from __future__ import annotations

import jax

from pcls.data.dataset import Dataset
from pcls.data.order import BucketedOrder, Order
from pcls.observe.environment import describe_devices
from pcls.run.folder import RunFolder
from pcls.run.setup import Setup


def headline(setup: Setup, folder: RunFolder, first: int) -> str:
    """One line before the first step: model, data, devices, length."""
    dataset = setup.dataset
    start = f"from step {first:,} to" if first else "for"
    return (
        f"{folder.path}: {setup.recipe.model.name} ({setup.model.parameter_count:,} parameters) on "
        f"{records_text(dataset)}, {len(dataset.class_names)} classes, "
        f"{len(dataset.evaluation):,} held out{_evaluated_at(dataset)}; {describe_devices(jax.devices())}; "
        f"{start} {setup.plan.steps:,} steps of {setup.plan.batch_size}{_tail(setup.order)}"
    )


def records_text(dataset: Dataset) -> str:
    """`1,438 images 8 x 8 x 1`, or `270 sequences of up to 29 steps x 12, padded to 15, 29`."""
    image, count = dataset.preprocessing.training, len(dataset.train)
    if not dataset.padded:
        return f"{count:,} images {image.height} x {image.width} x {image.channels}"
    several = f", padded to {', '.join(map(str, dataset.padded))}" if len(dataset.padded) > 1 else ""
    return f"{count:,} sequences of up to {image.height:,} steps x {image.width}{several}"


def _evaluated_at(dataset: Dataset) -> str:
    """The size of evaluation, where it is not that of training."""
    image = dataset.preprocessing
    return f" and evaluated at {image.height} x {image.width}" if image.train else ""


def _tail(order: Order | BucketedOrder) -> str:
    """What becomes of records that fill no step, where it is not just carried over."""
    if order.dropped:
        return f", dropping {order.dropped:,} records of each pass"
    return ", filling up the last step of each pass" if order.tail == "pad" else ""
