"""Liveness and readiness probes."""

import asyncio
from datetime import timedelta

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckResponse

from integration_server.sidecar.middleware import Readiness
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


async def test_a_readiness_result_is_shared_and_kept_for_its_age() -> None:
    server = FakeServer()
    now = 0.0
    readiness = Readiness(server, timedelta(seconds=0.5), lambda: now)

    assert await asyncio.gather(*(readiness.is_ready() for _ in range(10))) == 10 * [True]
    server.health_response = rpc_error(grpc.StatusCode.UNAVAILABLE)
    assert await readiness.is_ready()
    assert len(server.deadlines) == 1

    now = 0.5
    assert not await readiness.is_ready()
    assert len(server.deadlines) == 2


async def test_is_not_ready_at_once_when_it_drains() -> None:
    draining = asyncio.Event()
    readiness = Readiness(FakeServer(), timedelta(hours=1), lambda: 0.0, draining=draining)
    assert await readiness.is_ready()
    draining.set()
    assert not await readiness.is_ready()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_other_methods_are_refused(client: httpx.AsyncClient, path: str, method: str) -> None:
    response = await client.request(method, path)

    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
