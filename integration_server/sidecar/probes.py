"""Whether this process lives, and whether it can do its work."""

from collections.abc import Awaitable
from http import HTTPStatus
from typing import Protocol

import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

# Seconds. The server answers with what it knows already; whoever probes has a deadline too, and asks again soon.
DEADLINE = 1.0


class CheckHealth(Protocol):
    """`grpc.health.v1.Health.Check`, as the generated stub has it."""

    def __call__(self, request: HealthCheckRequest, *, timeout: float) -> Awaitable[HealthCheckResponse]:
        """Raises `AioRpcError`. `timeout` is in seconds."""


async def live(_request: Request) -> Response:
    """Needs nothing but this process: a restart of it would not mend anything else."""
    return PlainTextResponse("ok")


class ReadinessProbe:
    """Ready while the gRPC server is: without it there is nothing to answer with."""

    def __init__(self, check_health: CheckHealth) -> None:
        self._check_health = check_health

    async def ready(self, _request: Request) -> Response:
        """200 or 503."""
        if await self._is_serving():
            return PlainTextResponse("ok")
        return PlainTextResponse("not ready", HTTPStatus.SERVICE_UNAVAILABLE)

    async def _is_serving(self) -> bool:
        try:
            health = await self._check_health(HealthCheckRequest(service=""), timeout=DEADLINE)
        except grpc.aio.AioRpcError:
            return False
        return bool(health.status == HealthCheckResponse.SERVING)
