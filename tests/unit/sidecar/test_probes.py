"""Liveness and readiness probes."""

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckResponse

from tests.unit.sidecar.fakes import FakeServer, rpc_error


async def test_liveness_does_not_depend_on_the_server(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.health_response = rpc_error(grpc.StatusCode.UNAVAILABLE)

    response = await client.get("/healthz")

    assert (response.status_code, response.text) == (200, "ok")


async def test_is_ready_if_the_server_serves(client: httpx.AsyncClient, server: FakeServer) -> None:
    response = await client.get("/readyz")

    assert (response.status_code, response.text) == (200, "ok")
    assert server.deadlines == [1]


@pytest.mark.parametrize(
    "rpc_response",
    [
        HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING),
        HealthCheckResponse(status=HealthCheckResponse.UNKNOWN),
        rpc_error(grpc.StatusCode.UNAVAILABLE),
        rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED),
        rpc_error(grpc.StatusCode.UNIMPLEMENTED),
    ],
    ids=["not-serving", "unknown", "away", "late", "has-no-health"],
)
async def test_is_not_ready_otherwise(
    client: httpx.AsyncClient, server: FakeServer, rpc_response: HealthCheckResponse | Exception
) -> None:
    server.health_response = rpc_response

    response = await client.get("/readyz")

    assert (response.status_code, response.text) == (503, "not ready")
