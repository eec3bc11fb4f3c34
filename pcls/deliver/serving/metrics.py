"""What the server tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from pcls.deliver.serving.limits import Limits

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counts of one server, in a registry of its own."""

    def __init__(self, limits: Limits):
        own = self._registry = CollectorRegistry()
        ProcessCollector(registry=own)
        self._requests = Counter("pcls_requests", "Answers by path and status.", ["path", "status"], registry=own)
        self._seconds = Histogram(
            "pcls_request_seconds", "From a request's headers to its answer.", ["path"], buckets=SECONDS, registry=own
        )
        self.images = Counter("pcls_images", "Images that were answered.", registry=own)
        self.waiting = Gauge("pcls_waiting_images", "Images that are accepted and not answered yet.", registry=own)
        self._batch = Histogram("pcls_batch_images", "Images in a batch.", buckets=limits.sizes, registry=own)
        self._device = Histogram("pcls_batch_seconds", "The model's time for a batch.", buckets=SECONDS, registry=own)
        self.ready = Gauge("pcls_ready", "1 where images are accepted.", registry=own)
        self.answered = 0

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answer."""
        self.answered += 1
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, images: int, seconds: float) -> None:
        """Counts a batch that the model answered."""
        self._batch.observe(images)
        self._device.observe(seconds)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)
