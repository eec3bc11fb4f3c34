"""Which process holds up the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pcls.parallel.processes import everyones, host_names

# A process is told of that takes so many times as long as half of them do, and this many seconds longer.
STRAGGLES, NOTICEABLE = 2.0, 0.02


class Stragglers:
    """Compares what the processes spend beside their devices; the first that takes much longer is told, once.

    Args:
      say: tells a person.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._told = False

    def compare(self, seconds: float) -> dict[str, Any]:
        """What a row of the log says of it; every process must ask. Of one process: nothing.

        Args:
          seconds: of a step, in which this process did not wait for its devices.
        """
        if jax.process_count() == 1:
            return {}
        everyone = everyones(np.array([seconds]), "seconds of a step").ravel()
        # Of two, the faster one.
        slowest, usual = int(everyone.argmax()), float(np.sort(everyone)[(len(everyone) - 1) // 2])
        if everyone[slowest] > max(STRAGGLES * usual, usual + NOTICEABLE) and not self._told:
            self._told = True
            self._say(
                f"process {slowest} on {host_names()[slowest]} takes {everyone[slowest]:.3f} s a step beside the "
                f"devices, half of the processes {usual:.3f} s or less: look at its data and at what else runs there"
            )
        return {"slowest_process": slowest, "slowest_host_seconds": float(everyone[slowest])}
