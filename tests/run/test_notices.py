"""The notice of a cloud, from a real server that speaks as its metadata server does."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pcls.run import notices
from pcls.run.notices import ENDS, metadata_server, watch_notices
from pcls.run.signals import stop_requests

PREEMPTED, MAINTENANCE = ENDS


@pytest.fixture
def server(monkeypatch):
    """A function that starts the server with answers by path, and returns the list of requests."""
    started = []

    def start(answers):
        asked = []

        class Metadata(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append((self.path, self.headers["Metadata-Flavor"]))
                value = answers.get(self.path)
                self.send_response(503 if value is None else 200)
                self.end_headers()
                self.wfile.write((value or "").encode())

            def log_message(self, *arguments):
                pass

        started.append(ThreadingHTTPServer(("127.0.0.1", 0), Metadata))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{started[-1].server_port}")
        return asked

    yield start
    for one in started:
        one.shutdown()
        one.server_close()


def told(answers, server, wait=10.0):
    server(answers)
    heard, ended = [], threading.Event()
    came = threading.Event()
    watch_notices(lambda text: (heard.append(text), came.set()), ended, poll=0.05)
    came.wait(wait)
    ended.set()
    return heard


def test_a_machine_that_is_preempted_or_will_be_terminated_hears_of_it_once(server):
    said = "the cloud takes this machine away"
    assert told({PREEMPTED: "TRUE"}, server) == [f"{said} (preempted is TRUE)"]
    event = {PREEMPTED: "FALSE", MAINTENANCE: "TERMINATE_ON_HOST_MAINTENANCE"}
    assert told(event, server) == [f"{said} (maintenance-event is TERMINATE_ON_HOST_MAINTENANCE)"]


def test_a_live_migration_and_a_server_in_maintenance_are_no_reason(server):
    assert told({PREEMPTED: "FALSE", MAINTENANCE: "MIGRATE_ON_HOST_MAINTENANCE"}, server, wait=0.5) == []
    assert told({}, server, wait=0.5) == []


def test_the_server_is_asked_as_it_wants_to_be(server):
    asked = server({PREEMPTED: "TRUE"})
    with stop_requests(lambda text: None) as stop:
        for _ in range(200):
            if stop(1):
                break
            threading.Event().wait(0.05)
        assert stop(1)
    assert asked == [(PREEMPTED, "Google")]


def test_elsewhere_nobody_is_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setattr(notices, "PRODUCT", tmp_path / "none")
    assert metadata_server() == ""
    (tmp_path / "product").write_text("Google Compute Engine\n")
    monkeypatch.setattr(notices, "PRODUCT", tmp_path / "product")
    assert metadata_server() == "metadata.google.internal"
