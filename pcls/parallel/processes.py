"""Several processes as one run: start, agreement, and values that every process can read."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from pcls.errors import UserError

HOST_BYTES = 64
_COLLECTIVES: deque[tuple[float, str]] = deque(maxlen=8)


def collectives() -> list[tuple[float, str]]:
    """What this process last waited for all others in, outside of compiled steps: since when, and its name."""
    return list(_COLLECTIVES)


def _noted(name: str) -> None:
    _COLLECTIVES.append((time.time(), name))


def join(coordinator: str, processes: int, index: int, *, timeout: int, heartbeat: int = 100) -> None:
    """Joins this process to the others; call it before anything touches a device.

    Args:
      coordinator: host:port of process 0, or `auto` on a cluster that jax detects (TPU VM, Slurm, Open MPI, GKE).
      processes, index: how many there are and which this is; with `auto` they are detected.
      timeout: seconds to wait for the others.
      heartbeat: seconds without a sign of life after which a process is given up, and with it all others end.

    Raises:
      UserError: no cluster was detected, or the address is of no use. Where they do not meet in time the process ends
        with the same exit code and one line.
    """
    detected = coordinator == "auto"
    if not detected:
        _check_meeting(coordinator, processes, index)
    address, count, own = (None, None, None) if detected else (coordinator, processes, index)
    # jax would end the process at its own timeout by an abort with a stack trace, which no caller can catch.
    watchdog = threading.Timer(
        timeout,
        _give_up,
        (
            f"not all processes met at {coordinator} within {timeout} s; check that each was started, with "
            "this address and its own --process, or give them longer: --join-timeout SECONDS",
        ),
    )
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(
            address, count, own, initialization_timeout=timeout + 60, heartbeat_timeout_seconds=heartbeat
        )
    except (RuntimeError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"cannot join the other processes at {coordinator}: {first_line}") from error
    finally:
        watchdog.cancel()


def _check_meeting(coordinator: str, processes: int, index: int) -> None:
    """UserError for what jax dies of."""
    port = re.fullmatch(r"[^\s/]+:(\d{1,5})", coordinator)
    if port is None or not 1 <= int(port[1]) <= 65535:
        raise UserError(
            f"--coordinator {coordinator!r}: host:port of process 0 is needed, as in 10.0.0.1:4242, or auto"
        )
    if index == 0:
        _check_port_is_free(int(port[1]))
    if index >= processes:
        raise UserError(f"--process is {index}; of --processes={processes} they are 0 to {processes - 1}")


def _check_port_is_free(port: int) -> None:
    with socket.socket() as tried:
        # As the server itself does: a port that was closed a moment ago is free.
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", port))
        except OSError as error:
            raise UserError(
                f"--coordinator: port {port} of this machine is not free ({error.strerror}); name another"
            ) from error


def _give_up(message: str) -> None:
    print(f"pcls: {message}", file=sys.stderr, flush=True)
    os._exit(UserError.exit_code)


def is_main() -> bool:
    """Process 0 writes files and speaks."""
    return jax.process_index() == 0


def place(arrays: Any, sharding: NamedSharding, batch_size: int) -> Any:
    """Makes what a compiled step takes out of this process's rows.

    Args:
      arrays: a pytree of arrays [rows, ...], or [steps, rows, ...] where the sharding has it so.
      sharding: of the batch axis, the last that it speaks of.
      batch_size: rows of all processes together.
    """
    if jax.process_count() == 1:
        # A compiled step places host arrays by its own shardings, in 0.1 ms less than device_put.
        return arrays
    axis = len(sharding.spec) - 1

    def whole(rows: np.ndarray) -> jax.Array:
        shape = (*rows.shape[:axis], batch_size, *rows.shape[axis + 1 :])
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return jax.tree.map(whole, arrays)


def everywhere(arrays: Any, sharding: NamedSharding) -> Any:
    """Puts host arrays that are the same in every process whole on every device; `sharding` is the replicated one."""
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array, array.shape), arrays)


def agreed(value: int) -> int:
    """Process 0's value, on every process."""
    if jax.process_count() == 1:
        return value
    _noted("a number of process 0's")
    return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def differing(values: Mapping[str, Any]) -> list[str]:
    """The names whose value is not the same in every process; none with one process.

    Args:
      values: the same names in the same order everywhere.
    """
    if jax.process_count() == 1:
        return []
    digests = [hashlib.sha256(repr(value).encode()).digest() for value in values.values()]
    mine = np.frombuffer(b"".join(digests), np.uint32).reshape(len(digests), -1)
    everyone = everyones(mine, f"whether {', '.join(values)} are the same")
    same = (everyone == everyone[0]).all((0, 2))
    return [name for name, is_same in zip(values, same, strict=True) if not is_same]


def everyones(mine: np.ndarray, name: str) -> np.ndarray:
    """[processes, ...]: an array of every process, in each of them; `name` says what for."""
    if jax.process_count() == 1:
        return mine[None]
    _noted(name)
    return np.asarray(multihost_utils.process_allgather(mine))


def host_names() -> list[str]:
    """The host of every process, cut to 64 bytes."""
    own = socket.gethostname().encode()[:HOST_BYTES].ljust(HOST_BYTES, b"\0")
    return [
        bytes(row).rstrip(b"\0").decode(errors="replace") for row in everyones(np.frombuffer(own, np.uint8), "hosts")
    ]


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        _noted(name)
        multihost_utils.sync_global_devices(name)


def preempted(asked: int) -> bool:
    """Whether the cluster's notice or a SIGTERM has made the processes agree to stop now.

    Args:
      asked: counts the calls, from 1 and without a gap: jax agrees on the number after the highest so far, and stops
        nobody who passes over it.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(asked)
