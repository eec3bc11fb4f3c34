"""A server in a process of its own, and what speaks to it byte by byte."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

READY_WITHIN = 120


class Server:
    """`pcls serve` on some free port."""

    def __init__(self, *arguments, log: Path):
        self.log = log
        # One device and few threads: a test's server shares two cores with other tests.
        environment = os.environ | {"XLA_FLAGS": "", "PYTHONWARNINGS": "error"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pcls", "serve", "--port", "0", *map(str, arguments)],
                stderr=file,
                stdout=file,
                env=environment,
            )
        until = time.monotonic() + READY_WITHIN
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+): ready", self.said())):
            assert self.process.poll() is None and time.monotonic() < until, self.said()
            time.sleep(0.05)
        self.port = int(found[1])

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def ask(self, request: bytes, timeout: float = 30) -> tuple[int, dict[str, str], object]:
        """The answer to a request on a connection of its own."""
        with self.connect(timeout) as connection:
            # The server may answer and close while there is more to send.
            with contextlib.suppress(OSError):
                connection.sendall(request)
            return self.parsed(self.read(connection))

    def connect(self, timeout: float = 30) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def stop(self) -> int:
        """The exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    @staticmethod
    def read(connection: socket.socket) -> bytes:
        """One answer by its content-length; what there is where the server closes before."""
        data = b""
        while not (length := Server.whole(data)):
            try:
                chunk = connection.recv(65536)
            except ConnectionResetError:
                break
            if not chunk:
                break
            data += chunk
        return data[:length] if length else data

    @staticmethod
    def whole(data: bytes) -> int:
        """The length of the first whole answer; 0: there is none yet."""
        head, separator, _ = data.partition(b"\r\n\r\n")
        if not separator or head.startswith(b"HTTP/1.1 100"):
            return 0
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        size = len(head) + 4 + (int(length[1]) if length else 0)
        return size if len(data) >= size else 0

    @staticmethod
    def parsed(answer: bytes) -> tuple[int, dict[str, str], object]:
        """Status, headers, and the JSON or bytes of a body."""
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        is_json = headers.get("content-type") == "application/json"
        return int(status.split()[1]), headers, json.loads(body) if is_json else body


@pytest.fixture(scope="session")
def start_server(tmp_path_factory):
    """A function from arguments to a server, which is stopped at the end at the latest."""
    started = []

    def start(*arguments):
        server = Server(*arguments, log=tmp_path_factory.mktemp("server") / "log")
        started.append(server)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
