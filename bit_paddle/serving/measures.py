"""What a server counts, as text for Prometheus.

Several processes write into files of one folder, whose name is in the environment variable of
prometheus-client; then any of them can answer for all.
"""

from __future__ import annotations

import os

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # environment variable

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)

_SIZES = tuple(2**power for power in range(9))


class Measures:
    """The counters of one server."""

    def __init__(self) -> None:
        self._own = CollectorRegistry()
        shared = {"namespace": "bit_paddle", "registry": self._own}
        self._requests = Counter(
            "requests", "Requests by path and status", ("path", "status"), **shared
        )
        self._seconds = Histogram(
            "request_seconds", "Time of a request", ("path",), buckets=_SECONDS, **shared
        )
        self._images = Counter("images", "Images that the network has computed", **shared)
        self._sizes = Histogram("batch_images", "Images per batch", buckets=_SIZES, **shared)
        self._network = Histogram(
            "network_seconds", "Time of the network per batch", buckets=_SECONDS, **shared
        )
        self._queue = Gauge(
            "queue_images",
            "Images that wait or are computed",
            multiprocess_mode="livesum",
            **shared,
        )

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def computed(self, images: int, seconds: float) -> None:
        """Count a batch."""
        self._images.inc(images)
        self._sizes.observe(images)
        self._network.observe(seconds)

    def queued(self, images: int) -> None:
        """Note how many images wait or are computed."""
        self._queue.set(images)

    def text(self) -> bytes:
        """Return all counters, those of all processes."""
        if FOLDER not in os.environ:
            return generate_latest(self._own)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        return generate_latest(registry)
