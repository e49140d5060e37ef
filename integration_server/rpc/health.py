"""The standard health protocol (`grpc.health.v1`) on one event loop.

grpcio's own aio servicer has no `List`, holds a lock while it writes to a slow watcher, and keeps `Watch` streams open
for as long as a stopping server lets it; hence this one. The liveness entry says that the process runs, and nothing of
what it needs; the others say whether it can serve.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc as pb_grpc

LIVENESS = "liveness"

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class ServerHealthServicer(pb_grpc.HealthServicer):
    """Readiness of `""` and of each service together, which begins as NOT_SERVING; and liveness."""

    def __init__(self, services: Iterable[str]) -> None:
        self._readiness = ("", *services)
        self._ready = False
        self._draining = False
        self._changed = asyncio.Event()

    def set_ready(self, ready: bool) -> None:
        """Say whether calls can be served now."""
        if ready != self._ready and not self._draining:
            self._ready = ready
            self._notify()

    def drain(self) -> None:
        """Say NOT_SERVING from now on, and end all watches: the server is about to stop."""
        self._ready = False
        self._draining = True
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _statuses(self) -> dict[str, pb.HealthCheckResponse]:
        readiness = pb.HealthCheckResponse.SERVING if self._ready else pb.HealthCheckResponse.NOT_SERVING
        statuses = {service: pb.HealthCheckResponse(status=readiness) for service in self._readiness}
        return {**statuses, LIVENESS: pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVING)}

    async def Check(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        """One service's status; NOT_FOUND for one that is not here."""
        status = self._statuses().get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return status

    async def List(self, request: pb.HealthListRequest, context: Context) -> pb.HealthListResponse:
        """All statuses by service."""
        return pb.HealthListResponse(statuses=self._statuses())

    async def Watch(self, request: pb.HealthCheckRequest, context: Context) -> AsyncIterator[pb.HealthCheckResponse]:
        """One service's status now and whenever it changes, until the server stops."""
        unknown = pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVICE_UNKNOWN)
        last_sent = None
        while True:
            # Taken together: what changes while a slow watcher is being told is told next.
            changed, draining = self._changed, self._draining
            status = self._statuses().get(request.service, unknown)
            if status != last_sent:
                yield status
                last_sent = status
            if draining:
                return
            await changed.wait()
