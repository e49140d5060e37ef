"""Request ids and traces from the browser over the sidecar to the RPC, each over real connections."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
import structlog

from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.server import run_sidecar
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import add_IntegrationServiceServicer_to_server
from tests.fakes.integration_servicer import FakeServicer
from tests.fakes.limits import LIMITS

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
CALLBACK = "/api/v1/integrations/callback/fake?code=c&state=s"


class Service(FakeServicer):
    """Keeps the metadata of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.metadata: list[dict[str, str]] = []

    async def HandleCallback(  # type: ignore[override]  # asynchronous
        self, request: pb.HandleCallbackRequest, context: Any
    ) -> pb.HandleCallbackResponse:
        self.metadata.append(dict(context.invocation_metadata()))
        return pb.HandleCallbackResponse(success=True)


@asynccontextmanager
async def sidecar_of(service: Service, *, has_access_log: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    server = grpc.aio.server()
    add_IntegrationServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sidecar = run_sidecar(
        server=ServerClient(f"127.0.0.1:{port}", token="t"),
        host="127.0.0.1",
        port=0,
        limits=LIMITS,
        public_url="",
        has_access_log=has_access_log,
    )
    try:
        async with sidecar as url, httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
            yield client
    finally:
        await server.stop(0)


def new_service() -> Service:
    return Service()  # type: ignore[abstract]  # the other RPCs are not called


@pytest.fixture
def log() -> Any:
    structlog.reset_defaults()
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        yield lines


async def test_the_sidecar_passes_the_ids_of_a_request_on_and_returns_its_id(log: list[Any]) -> None:
    service = new_service()
    async with sidecar_of(service) as client:
        given = await client.get(CALLBACK, headers={"x-request-id": "from-envoy", "traceparent": TRACEPARENT})
        without = await client.get(CALLBACK)
        harmful = await client.get(CALLBACK, headers={"x-request-id": "Bearer 0123456789abcdef", "traceparent": "x"})
    assert given.headers.get_list("x-request-id") == ["from-envoy"]
    assert (service.metadata[0]["x-request-id"], service.metadata[0]["traceparent"]) == ("from-envoy", TRACEPARENT)
    for response, metadata in ((without, service.metadata[1]), (harmful, service.metadata[2])):
        assert len(response.headers["x-request-id"]) == 32
        assert metadata["x-request-id"] == response.headers["x-request-id"]
        assert "traceparent" not in metadata
    assert [line["event"] for line in log] == 3 * ["http_request"]


async def test_a_refused_request_and_a_probe_have_an_id_too(log: list[Any]) -> None:
    async with sidecar_of(new_service()) as client:
        for path in ("/nowhere", "/healthz", "/readyz"):
            response = await client.get(path, headers={"x-request-id": "mine"})
            assert response.headers["x-request-id"] == "mine"


async def test_without_the_access_log_a_request_has_no_line(log: list[Any]) -> None:
    """The other setting of the first test."""
    async with sidecar_of(new_service(), has_access_log=False) as client:
        await client.get(CALLBACK)
    assert log == []


@pytest.mark.slow
async def test_a_probe_has_a_line_only_if_it_fails(log: list[Any]) -> None:
    async with sidecar_of(new_service()) as client:  # which has no health service
        await client.get("/healthz")
        assert log == []
        assert (await client.get("/readyz")).status_code == 503
    assert [(line["path"], line["status"]) for line in log] == [("/readyz", 503)]
