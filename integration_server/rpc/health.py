"""The standard health protocol (`grpc.health.v1`) on one event loop.

grpcio's own aio servicer has no `List`, holds a lock while it writes to a slow watcher, and keeps `Watch` streams open
while the server stops. The liveness entry reports that the process runs; the other entries report whether it can serve.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc as pb_grpc

from integration_server.rpc.methods import Context

LIVENESS = "liveness"


class ServerHealthServicer(pb_grpc.HealthServicer):
    """Reports readiness, the same for `""` and for each service and NOT_SERVING at first, and liveness."""

    def __init__(self, services: Iterable[str]) -> None:
        self._readiness = ("", *services)
        self._ready = False
        self._draining = self._stopped = False
        self._changed = asyncio.Event()

    def set_ready(self, ready: bool) -> None:
        """Set whether the server can serve calls."""
        if ready != self._ready and not self._draining:
            self._ready = ready
            self._notify()

    def drain(self) -> None:
        """Report NOT_SERVING from now on. Watches stay: a client would start one that ends again at once."""
        self._ready = False
        self._draining = True
        self._notify()

    def stop(self) -> None:
        """Report NOT_SERVING, and end all watches."""
        self._stopped = True
        self.drain()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _statuses(self) -> dict[str, pb.HealthCheckResponse]:
        readiness = pb.HealthCheckResponse.SERVING if self._ready else pb.HealthCheckResponse.NOT_SERVING
        statuses = {service: pb.HealthCheckResponse(status=readiness) for service in self._readiness}
        return {**statuses, LIVENESS: pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVING)}

    async def Check(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        """Return the status of one service; NOT_FOUND for an unknown one."""
        status = self._statuses().get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return status

    async def List(self, request: pb.HealthListRequest, context: Context) -> pb.HealthListResponse:
        """Return all statuses by service."""
        return pb.HealthListResponse(statuses=self._statuses())

    async def Watch(self, request: pb.HealthCheckRequest, context: Context) -> AsyncIterator[pb.HealthCheckResponse]:
        """Stream the status of one service, now and at each change, until the server stops."""
        unknown = pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVICE_UNKNOWN)
        last_sent = None
        while True:
            # Read together: a change during a slow write is sent next.
            changed, stopped = self._changed, self._stopped
            status = self._statuses().get(request.service, unknown)
            if status != last_sent:
                yield status
                last_sent = status
            if stopped:
                return
            await changed.wait()
