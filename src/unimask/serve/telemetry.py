"""Metrics of a server for Prometheus: requests, the length of the queue, and seconds by stage."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Stage = Literal["waiting", "model", "answer"]
"""Of a request: in the queue; in the model, with its batch; postprocessing and drawing."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ROUTES = ("/v1/segment", "/v1/models", "/healthz", "/metrics")
_PAGE = "/page/"


class Telemetry:
    """Counts what one server does; each server has its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=True)
        self._requests = Counter(
            "unimask_requests",
            "Requests that were answered, by route and status.",
            ("route", "status"),
            registry=self._registry,
        )
        self._stages = Histogram(
            "unimask_stage_seconds",
            "Seconds that an image spends in a stage: waiting, model, answer.",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._waiting = Gauge(
            "unimask_waiting", "Images in the queue and in work, at the moment.", registry=self._registry
        )

    def watch(self, waiting: Callable[[], int]) -> None:
        """Call `waiting` for the length of the queue whenever the metrics are read."""
        self._waiting.set_function(waiting)

    def spent(self, stage: Stage, seconds: float, images: int = 1) -> None:
        """Count the time that each of `images` images spent in a stage."""
        for _ in range(images):
            self._stages.labels(stage).observe(seconds)

    @contextmanager
    def stage(self, stage: Stage, images: int = 1) -> Iterator[None]:
        """Count the time that the block takes, also where it fails."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent(stage, time.perf_counter() - started, images)

    def answered(self, path: str, status: int) -> None:
        """Count an answer. Unknown paths are counted as one, so that no client can add rows."""
        route = next((one for one in _ROUTES if path == one), _PAGE if path.startswith(_PAGE) else "other")
        self._requests.labels(route, str(status)).inc()

    def response(self) -> Response:
        """Return the numbers in Prometheus' text format."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


class Counting:
    """ASGI middleware that counts the status of every answer."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._telemetry.answered(scope["path"], message["status"])
            await send(message)

        await self._app(scope, receive, noted)
