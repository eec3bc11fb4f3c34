"""Whether the devices can be trusted: what they hold is compared, and a step is taken twice."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcls.checkpoint.store import named_leaves
from pcls.errors import RestartRequested
from pcls.parallel.replicas import differing_devices, make_digests, on_host
from pcls.run.setup import Setup
from pcls.training.loop import Step
from pcls.training.state import TrainState
from pcls.training.step import Metrics


class Verification:
    """Looks for what no loss tells: a bit that flipped in memory, a product that came out otherwise.

    Source of the idea: Hochschild et al. 2021 (Cores that don't count).

    Args:
      setup: of the run.
    """

    def __init__(self, setup: Setup):
        self._mesh = setup.mesh
        self._shapes = named_leaves(setup.state_shapes)
        self._digests = make_digests(self._shapes, setup.mesh)
        self._copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=setup.state_shardings)

    def compare_copies(self, state: TrainState, step: int) -> None:
        """Raises RestartRequested where devices that should hold the same arrays do not."""
        self._compared(self._digests(named_leaves(state)), step)

    def step_twice(self, train: Step, state: TrainState, batch: Any, step: int) -> tuple[TrainState, Metrics]:
        """Takes a step up to the number `step`, and once more from the same state.

        Raises:
          RestartRequested: the results are not the same bits, or not the same on all devices.
        """
        again, _ = train(self._copy(state), batch)
        expected = on_host(self._digests(named_leaves(again)))
        del again
        state, metrics = train(state, batch)
        digests = self._digests(named_leaves(state))
        found = on_host(digests)
        if (found != expected).any():
            row, column = np.argwhere(found != expected)[0]
            raise _not_to_be_trusted(
                step,
                f"{list(self._shapes)[column]} came out otherwise when the step was taken again",
                [row],
                self._mesh,
            )
        self._compared(digests, step)
        return state, metrics

    def _compared(self, digests: jax.Array, step: int) -> None:
        found = differing_devices(digests, self._shapes, self._mesh)
        if found:
            name, devices = found
            rows = [row for row, device in enumerate(self._mesh.devices.flat) if device in devices]
            raise _not_to_be_trusted(step, f"{name} is not the same on all devices", rows, self._mesh)


def _not_to_be_trusted(step: int, what: str, rows: list[int], mesh: jax.sharding.Mesh) -> RestartRequested:
    devices = [list(mesh.devices.flat)[row] for row in rows]
    named = ", ".join(f"{device} of process {device.process_index}" for device in devices)
    return RestartRequested(
        f"step {step:,}: {what} (guard.verify): {named}; the last checkpoint is of before; resume, and if the same "
        "device is named again, leave it out"
    )
