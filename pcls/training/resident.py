"""Training on images that live on the devices: the host sends record numbers only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pcls.data.pipeline import Batch, Places
from pcls.training.state import TrainState
from pcls.training.step import Metrics, TrainStep


class Images(NamedTuple):
    """A whole set; numpy arrays on the host, jax arrays on the devices.

    Attributes:
      image: [records, height, width, channels] uint8, or [records, steps, features, 1] float32.
      label: [records] int32; where records carry several labels [records, classes] uint8.
      length: [records] int32, steps of sequences that count; None: pictures.
    """

    image: Any
    label: Any
    length: Any = None


# (state, places, images, what of a teacher is given).
ResidentStep = Callable[..., tuple[TrainState, Metrics]]


def resident_step(step: TrainStep) -> ResidentStep:
    """The same step, which looks its batch up."""

    def look_up_and_train(state: TrainState, places: Places, images: Images, *given: Any) -> tuple[TrainState, Metrics]:
        weight = (places.record >= 0).astype(jnp.float32)
        image, label, length = jax.tree.map(lambda whole: whole[places.record], images)
        return step(state, Batch(image, label, weight, places.record, places.epoch, length), *given)

    return look_up_and_train


def resident_steps(step: TrainStep) -> ResidentStep:
    """Several such steps in one program, each on a row of [steps, batch] places."""
    one = resident_step(step)

    def look_up_and_train(state: TrainState, places: Places, images: Images, *given: Any) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, places: one(state, places, images, *given), state, places)

    return look_up_and_train
