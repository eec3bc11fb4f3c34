"""The notice that a cloud gives before it takes a machine away.

Source: Google Compute Engine's metadata server, `instance/preempted` and `instance/maintenance-event`.
"""

from __future__ import annotations

import http.client
import os
import threading
from collections.abc import Callable
from pathlib import Path

SERVER = "metadata.google.internal"
PRODUCT = Path("/sys/class/dmi/id/product_name")
POLL_SECONDS, TIMEOUT_SECONDS = 5.0, 2.0
# Path of a value to what it is when the machine will be taken away. A live migration, which also is announced, is none:
# it stops the machine for less than a second, and those with accelerators are not migrated.
ENDS = {
    "/computeMetadata/v1/instance/preempted": "TRUE",
    "/computeMetadata/v1/instance/maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
}


def metadata_server() -> str:
    """The host to ask, `GCE_METADATA_HOST` where it is set; empty where this is no machine of that cloud."""
    if named := os.environ.get("GCE_METADATA_HOST", ""):
        return named
    try:
        return SERVER if "Google Compute Engine" in PRODUCT.read_text() else ""
    except OSError:
        return ""


def watch_notices(notify: Callable[[str], None], ended: threading.Event, poll: float = POLL_SECONDS) -> None:
    """Asks the metadata server now and then, in a thread of its own, until it announces the end or `ended` is set.

    Args:
      notify: hears of it, once.
      ended: nobody wants to know any more.
      poll: seconds between questions.
    """
    host = metadata_server()
    if host:
        threading.Thread(target=_ask, args=(host, notify, ended, poll), name="notices", daemon=True).start()


def _ask(host: str, notify: Callable[[str], None], ended: threading.Event, poll: float) -> None:
    while not ended.is_set():
        for path, value in ENDS.items():
            if _value(host, path) == value:
                notify(f"the cloud takes this machine away ({path.rpartition('/')[2]} is {value})")
                return
        ended.wait(poll)


def _value(host: str, path: str) -> str:
    """Of the server; empty where it does not answer, which it may do in its own maintenance: the next time it may."""
    connection = http.client.HTTPConnection(host, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", path, headers={"Metadata-Flavor": "Google"})
        answer = connection.getresponse()
        return answer.read(1024).decode(errors="replace").strip() if answer.status == 200 else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()
