"""Prometheus metrics of the service."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Metrics:
    """Counters and histograms in a registry of their own.

    Args:
        num_queued: Returns the number of images in the queue.

    Attributes:
        registry: The registry, for `generate_latest`.
        images: Counter of images, labelled "clean", "defective", "unknown" or "refused".
        batches: Histogram of batch sizes.
        drifts: Counter of drift warnings.
    """

    def __init__(self, num_queued: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("steel_requests", "Requests answered.", ["path", "status"], registry=registry)
        self._seconds = Histogram("steel_request_seconds", "Seconds per request.", ["path"], registry=registry)
        self.images = Counter("steel_images", "Images by decision.", ["decision"], registry=registry)
        for decision in ("clean", "defective", "unknown", "refused"):
            self.images.labels(decision)  # export zeros instead of omitting the series
        self.drifts = Counter("steel_drift_warnings", "Drift warnings of windows and charts.", registry=registry)
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batches = Histogram("steel_batch_images", "Images per batch.", buckets=sizes, registry=registry)
        queue = Gauge("steel_queue_images", "Images waiting or being inspected.", registry=registry)
        queue.set_function(num_queued)

    def watch(self, app: ASGIApp) -> ASGIApp:
        """Wrap an application to count and time its requests."""

        async def measured(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            start, status = time.perf_counter(), 500

            async def send_and_record(message: Message) -> None:
                nonlocal status
                status = message.get("status", status)
                await send(message)

            try:
                await app(scope, receive, send_and_record)
            finally:
                # The path of the route, not of the URL: clients must not be able to create any number of series.
                path = getattr(scope.get("route"), "path", "other")
                self._requests.labels(path, status).inc()
                self._seconds.labels(path).observe(time.perf_counter() - start)

        return measured
