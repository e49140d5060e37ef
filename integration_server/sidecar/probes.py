"""Liveness and readiness probes."""

from http import HTTPStatus

import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from integration_server.sidecar.grpc_client import ServerClient

# Seconds. The server responds from memory, and a prober has a deadline of its own and retries soon.
DEADLINE = 1.0


class Probes:
    """Responds to the probes of an orchestrator or a load balancer."""

    def __init__(self, server: ServerClient) -> None:
        self._server = server

    async def live(self, _request: Request) -> Response:
        """200. Depends on this process only, because a restart would repair nothing else."""
        return PlainTextResponse("ok")

    async def ready(self, _request: Request) -> Response:
        """200 if the gRPC server serves, else 503."""
        try:
            health = await self._server.check_health(HealthCheckRequest(service=""), timeout=DEADLINE)
        except grpc.aio.AioRpcError:
            health = HealthCheckResponse()
        if health.status == HealthCheckResponse.SERVING:
            return PlainTextResponse("ok")
        return PlainTextResponse("not ready", HTTPStatus.SERVICE_UNAVAILABLE)
