"""Liveness and readiness probes. They come before the app's middleware, so that they are cheap and never limited."""

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from http import HTTPStatus

import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.middleware import announces_body

LIVE_PATH, READY_PATH = "/healthz", "/readyz"

# Seconds. The server responds from memory, and a prober has a deadline of its own and retries soon.
DEADLINE = 1.0


class Readiness:
    """Whether the gRPC server serves. The result may be `max_age` old, and all who wait for one share it."""

    def __init__(
        self, server: ServerClient, max_age: timedelta, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._server = server
        self._max_age = max_age.total_seconds()
        self._monotonic = monotonic
        self._check: asyncio.Task[bool] | None = None
        self._check_time = 0.0

    async def is_ready(self) -> bool:
        """Whether it serves."""
        is_old = self._monotonic() - self._check_time >= self._max_age
        if self._check is None or (self._check.done() and is_old):
            self._check = asyncio.create_task(self._ask())
            self._check_time = self._monotonic()
        return await asyncio.shield(self._check)

    async def _ask(self) -> bool:
        try:
            health = await self._server.check_health(HealthCheckRequest(service=""), timeout=DEADLINE)
        except grpc.aio.AioRpcError:
            return False
        return bool(health.status == HealthCheckResponse.SERVING)


class Probes:
    """Responds to the probes of an orchestrator or a load balancer; other requests go to the app."""

    def __init__(self, app: ASGIApp, readiness: Readiness, headers: Mapping[str, str]) -> None:
        self._app = app
        self._readiness = readiness
        text = {"Content-Type": "text/plain; charset=utf-8"}
        self._headers = [(name.lower().encode(), value.encode()) for name, value in {**headers, **text}.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to GET and HEAD of a probe's path."""
        if scope["path"] not in (LIVE_PATH, READY_PATH) or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
        # Liveness depends on this process only, because a restart would repair nothing else.
        elif scope["path"] == LIVE_PATH or await self._readiness.is_ready():
            await self._respond(scope, send, HTTPStatus.OK, b"ok")
        else:
            await self._respond(scope, send, HTTPStatus.SERVICE_UNAVAILABLE, b"not ready")

    async def _respond(self, scope: Scope, send: Send, status: HTTPStatus, body: bytes) -> None:
        headers = [*self._headers, (b"content-length", str(len(body)).encode())]
        if announces_body(scope):
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
