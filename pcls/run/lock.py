"""Lock files: one process at a time works in a folder, whatever machines see it.

The holder renews the file as long as it lives. One that died on this machine is known by its number; one of another
machine, or of another container, by a file that nobody has renewed for a while.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pcls.errors import RestartRequested

# How often a holder renews its file, and after which time without that it is gone, in seconds. Network file systems may
# show a change a minute late.
RENEW, LEASE = 15.0, 90.0
UNWRITTEN_SECONDS = 5.0

# Of a file: its inode and time of change.
_Identity = tuple[int, int]
# Lock to what it was when it was first seen so, and when that was, by this process's own clock.
Seen = dict[Path, tuple[_Identity, float]]


@dataclass(frozen=True)
class Holder:
    """The process that a lock file names.

    Attributes:
      host, pid: of it.
      started: in its kernel's ticks.
      space: of its process numbers: those of another container are others.
      certain: whether it is known to be alive.
    """

    host: str
    pid: int
    started: str
    space: str
    certain: bool = False


def take(lock: Path, seen: Seen) -> Holder | None:
    """Makes a lock file that names this process; that of a dead process is replaced.

    Args:
      lock: the file.
      seen: what this process knows of others' files, kept from call to call.

    Returns:
      None: this process holds the lock now, and is to `keep` it. Else the process that holds it, or may.
    """
    while not _create(lock):
        found, holder = _identity(lock), _holder(lock)
        if holder is None and _age(lock) < UNWRITTEN_SECONDS:
            # Made a moment ago and not written yet.
            time.sleep(0.1)
            continue
        if holder is not None and found is not None and (alive := _alive(lock, holder, found, seen)) is not False:
            return Holder(holder.host, holder.pid, holder.started, holder.space, certain=alive is True)
        _remove(lock, found)
    return None


@contextlib.contextmanager
def keep(lock: Path) -> Iterator[None]:
    """Renews a lock that this process has taken, and removes it in the end."""
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(lock, ended), name="lock", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        lock.unlink(missing_ok=True)


def since(lock: Path) -> str:
    """Since when a lock is held, by this machine's time of day."""
    try:
        return f" since {datetime.fromtimestamp(json.loads(lock.read_text())['taken']):%Y-%m-%d %H:%M}"
    except (OSError, ValueError, KeyError, TypeError):
        # Given back in this moment.
        return ""


def _renew(lock: Path, ended: threading.Event) -> None:
    while not ended.wait(RENEW):
        try:
            holder = _holder(lock)
            if holder is not None and holder != _me():
                print(
                    f"pcls: {lock}: process {holder.pid} on {holder.host} has taken this lock, as this one did not "
                    "renew it in time (it or its disk stood still); ended, so that not two write",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(RestartRequested.exit_code)
            os.utime(lock)
        except OSError:
            # A disk that does not answer now may do so the next time, well before the lock is taken for a dead one's.
            continue


def _me() -> Holder:
    try:
        # Of this process: a container's first processes have the same numbers as another's.
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return Holder(socket.gethostname(), os.getpid(), _started(os.getpid()), space)


def _create(lock: Path) -> bool:
    me = _me()
    facts = {"host": me.host, "pid": me.pid, "started": me.started, "space": me.space, "taken": time.time()}
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(facts))
    return True


def _identity(lock: Path) -> _Identity | None:
    try:
        # Opened, not just looked at: a network file system then asks its server.
        with lock.open("rb") as file:
            status = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _remove(lock: Path, found: _Identity | None) -> None:
    """Removes a stale lock, unless another process was faster: its new one must stay."""
    with contextlib.suppress(FileNotFoundError), lock.open() as file:
        # One at a time may compare and remove the same file.
        fcntl.flock(file, fcntl.LOCK_EX)
        if _identity(lock) == found:
            lock.unlink()


def _holder(lock: Path) -> Holder | None:
    try:
        facts = json.loads(lock.read_text(encoding="utf-8"))
        return Holder(str(facts["host"]), int(facts["pid"]), str(facts["started"]), str(facts.get("space", "")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _age(lock: Path) -> float:
    try:
        # A clock that was set back in between gives no negative age: nobody would wait for it to pass.
        return abs(time.time() - lock.stat().st_mtime)
    except FileNotFoundError:
        return 0.0


def _alive(lock: Path, holder: Holder, found: _Identity, seen: Seen) -> bool | None:
    """Whether a holder lives; None: it cannot be known yet."""
    me = _me()
    if (holder.host, holder.space) == (me.host, me.space):
        return _runs(holder)
    before, when = seen.setdefault(lock, (found, time.monotonic()))
    if before != found:
        seen[lock] = found, time.monotonic()
        return True
    return False if time.monotonic() - when > LEASE else None


def _runs(holder: Holder) -> bool:
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # The number may have been given to another process since.
    return _started(holder.pid) == holder.started


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return fields[19]
