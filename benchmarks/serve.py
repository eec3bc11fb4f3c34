"""`pcls serve` under load, cnn28 on loopback: `python benchmarks/serve.py [--seconds N] [--requests N] [--dry]`.

Rates with and without batches, latency at 80 % of the rate, memory over many requests, and the end by SIGTERM under
load. Clients run in one process of their own, on the same cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import _ledger

import pcls

# A form is a whole batch.
CLIENTS, LOAD, FORM = 32, 0.8, 32
# Milliseconds that a batch is waited for, where it is.
WAIT = 4
TAIL, GAIN, GROWTH = 3.0, 4.0, 5.0
# Requests before memory is first read: threads, caches and pools are as large as they get by then.
WARM = 5_000


class Server:
    """`pcls serve` of a bundle."""

    def __init__(self, bundle: Path, log: Path, batch: int, wait: float):
        # Room for a form from each client.
        options = ["--port", "0", "--max-batch", str(batch), "--queue", str(CLIENTS * FORM), "--max-wait", str(wait)]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pcls", "serve", str(bundle), *options],
                stderr=file,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )
        self.log = log
        while not (found := re.search(r":(\d+): ready", self.said())):
            if self.process.poll() is not None:
                raise SystemExit(self.said())
            time.sleep(0.1)
        self.port = int(found[1])

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


@contextmanager
def serving(bundle: Path, scratch: Path, batch: int, wait: float = 0) -> Iterator[Server]:
    server = Server(bundle, scratch / "log", batch, wait)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait()


def start_clients(
    port: int, seconds: float, rate: float = 0, images: int = 1, gaps: str = "even"
) -> subprocess.Popen[str]:
    program = Path(__file__).with_name("_serve_clients.py")
    arguments = [str(port), str(CLIENTS), str(seconds), str(rate), str(images), gaps]
    clients = subprocess.Popen([sys.executable, str(program), *arguments], stdout=subprocess.PIPE, text=True)
    clients.stdout.readline()
    return clients


def load(port: int, *arguments: float, gaps: str = "even") -> dict[str, float]:
    return json.loads(start_clients(port, *arguments, gaps=gaps).communicate()[0])


def row(name: str, found: dict[str, float], more: str = "") -> list[str]:
    times = [f"{1000 * found[key]:.1f}" for key in ("p50", "p99")]
    counts = [f"{found['answers']:,}", f"{found['failed'] + found['lost']:,}"]
    return [name, *counts, f"{found['images_per_second']:,.0f}", *times, more]


def measure(bundle: Path, scratch: Path, seconds: float, requests: int) -> list[list[str]]:
    rows = []
    with serving(bundle, scratch, 1) as server:
        load(server.port, min(5, seconds))
        single = load(server.port, seconds)
        rows.append(row("--max-batch 1, an image a request", single))
    with serving(bundle, scratch, 32) as server:
        load(server.port, min(5, seconds))
        free = load(server.port, seconds)
        mean = server.metric("pcls_batch_images_sum") / server.metric("pcls_batch_images_count")
        gain = free["images_per_second"] / single["images_per_second"]
        rows.append(row("--max-batch 32, an image a request", free, f"{gain:.2f}x; {mean:.1f} images a batch"))
        forms = load(server.port, seconds, 0, FORM)
        gain = forms["images_per_second"] / single["images_per_second"]
        rows.append(row(f"--max-batch 32, {FORM} images a request", forms, f"{gain:.2f}x"))
        rate = LOAD * free["images_per_second"]
        rows.append(paced(server, f"an image a request, {LOAD:.0%} of that rate", rate, seconds, "even"))
        rows.append(paced(server, "the same", rate, seconds, "random"))
        rows.append(memory(server, requests))
        rows.append(end(server))
    with serving(bundle, scratch, 32, WAIT) as server:
        load(server.port, min(5, seconds))
        rows.append(paced(server, f"the same with --max-wait {WAIT:g}", rate, seconds, "even"))
    return rows


def paced(server: Server, name: str, rate: float, seconds: float, gaps: str) -> list[str]:
    """Latencies at so many requests a second."""
    found = load(server.port, seconds, rate, gaps=gaps)
    return row(f"{name}, {gaps} gaps", found, f"p99 is {found['p99'] / found['p50']:.1f} x p50")


def memory(server: Server, requests: int) -> list[str]:
    """Resident bytes before and after so many requests."""

    def run(count: int) -> int:
        done = 0
        while done < count:
            done += int(load(server.port, 5)["answers"])
        return done

    run(min(WARM, requests))
    before = server.metric("process_resident_memory_bytes")
    done = run(requests)
    growth = 100 * (server.metric("process_resident_memory_bytes") / before - 1)
    return ["memory", f"{done:,}", "", "", "", "", f"{before / 2**20:.0f} MiB, {growth:+.1f} %"]


def end(server: Server) -> list[str]:
    """SIGTERM in the middle of the load; what was accepted and not answered is counted as lost."""
    clients = start_clients(server.port, 0)
    time.sleep(2)
    server.process.send_signal(signal.SIGTERM)
    found = json.loads(clients.communicate()[0])
    code = server.process.wait()
    return row("SIGTERM under load", found, f"{found['lost']} accepted and not answered; exit code {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--dry", action="store_true", help="print the table and leave the ledger alone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        run = pcls.train("digits_cnn", {"run.dir": str(scratch / "run"), "train.duration": "20 steps"})
        rows = measure(Path(run.path), scratch, arguments.seconds, arguments.requests)
    columns = ["load", "answers", "failed or lost", "images/s", "p50 ms", "p99 ms", ""]
    _ledger.append(
        f"pcls serve: cnn28, {CLIENTS} clients on loopback, {arguments.seconds:g} s each",
        columns,
        rows,
        packages=["jax", "starlette", "uvicorn", "httptools", "uvloop"],
        note=f"PNG files of 28 x 28, grey. The clients' process shares the cores with the server. At {LOAD:.0%} of the "
        "rate each client has times of its own at which its requests are due, and a latency counts from then, whatever "
        "the client still waited for. "
        f"Gates: nothing failed or lost; p99 <= {TAIL:g} x p50 at {LOAD:.0%}; {GAIN:g} times the images/s of batch "
        f"size one; memory grows by less than {GROWTH:g} %; after SIGTERM every accepted request is answered.",
        dry=arguments.dry,
    )


if __name__ == "__main__":
    main()
