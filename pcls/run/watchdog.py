"""A process that waits without end is ended, so that it can be started again; first it says where it stood."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import jax

from pcls.errors import RestartRequested
from pcls.parallel.processes import collectives

# What may take longer than a step, in seconds: a program that is compiled, a checkpoint that is written.
COMPILING, SAVING = 3600.0, 1800.0
# For devices to answer: those that hang may not.
ASKING = 10.0


class Watchdog:
    """Ends this process with the code for a restart when what it waits for does not come.

    Args:
      seconds: that a step may take; 0: nobody watches.
      report: the file that says where all threads stood.
    """

    def __init__(self, seconds: float, report: Path):
        self._seconds = seconds
        self._report = report
        self._what, self._limit, self._deadline = "", 0.0, float("inf")
        self._closed = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def expect(self, what: str, at_least: float = 0.0) -> None:
        """The time for what was expected is over; now begins that of something else.

        Args:
          what: in words.
          at_least: seconds that it may take, where this is more than a step may.
        """
        limit = max(self._seconds, at_least)
        self._what, self._limit, self._deadline = what, limit, time.monotonic() + limit

    @contextmanager
    def expecting(self, what: str, at_least: float = 0.0) -> Iterator[None]:
        """Expects something inside; afterwards, what was expected before has all its time again."""
        before, limit = self._what, self._limit
        self.expect(what, at_least)
        yield
        if limit:
            self.expect(before, limit)
        else:
            self._what, self._limit, self._deadline = "", 0.0, float("inf")

    def close(self) -> None:
        """Watches no longer."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 10)):
            if time.monotonic() > self._deadline:
                self._end()

    def _end(self) -> None:
        line = (
            f"pcls: waited {self._limit:,.0f} s for {self._what} in vain (guard.hang); where all threads stand is in "
            f"{self._report}; ended, to be resumed"
        )
        print(line, file=sys.stderr, flush=True)
        # Whatever hangs may hold up this thread too.
        last = threading.Timer(2 * ASKING, os._exit, (RestartRequested.exit_code,))
        last.daemon = True
        last.start()
        try:
            self._report.parent.mkdir(parents=True, exist_ok=True)
            with self._report.open("w", encoding="utf-8") as file:
                self._describe(file)
        except OSError as error:
            print(f"pcls: {self._report}: cannot be written ({error.strerror})", file=sys.stderr, flush=True)
        os._exit(RestartRequested.exit_code)

    def _describe(self, file: TextIO) -> None:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  waited {self._limit:,.0f} s for {self._what}", file=file)
        print(f"process {jax.process_index()} of {jax.process_count()}, pid {os.getpid()}", file=file)
        print("last waited for other processes:", file=file)
        for when, name in collectives():
            print(f"  {time.strftime('%H:%M:%S', time.localtime(when))}  {name}", file=file)
        print("stacks:", file=file, flush=True)
        faulthandler.dump_traceback(file, all_threads=True)
        asked = threading.Thread(target=_describe_devices, args=(file,), daemon=True)
        asked.start()
        asked.join(ASKING)
        if asked.is_alive():
            print(f"the devices did not answer within {ASKING:.0f} s", file=file)


def _describe_devices(file: TextIO) -> None:
    for device in jax.local_devices():
        memory = device.memory_stats() or {}
        used = f", {memory['bytes_in_use'] / 1e9:.2f} GB in use" if "bytes_in_use" in memory else ""
        print(f"device {device.id}: {device.device_kind}{used}", file=file, flush=True)
