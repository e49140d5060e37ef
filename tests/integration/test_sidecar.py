"""The sidecar with real HTTP clients and a real gRPC server, over loopback."""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc.aio
import httpx
import pytest
import structlog
import uvloop
from google.protobuf.any_pb2 import Any as PackedMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1.health import aio as health_aio
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_status import rpc_status

from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.server import run_sidecar
from integrations.v1.integration_service_pb2 import HandleCallbackRequest, HandleCallbackResponse
from integrations.v1.integration_service_pb2_grpc import (
    IntegrationServiceServicer,
    add_IntegrationServiceServicer_to_server,
)
from tests.fakes.limits import LIMITS

PUBLIC_URL = "https://integrations.example"
CALLBACK = "/api/v1/integrations/callback/stripe"
QUERY = {"code": "the-code", "state": "the-state"}
BROWSER = {"Accept": "text/html,*/*;q=0.8"}

Context = grpc.aio.ServicerContext[Any, Any]


class FakeIntegrations(IntegrationServiceServicer):
    """Returns a redirect URL for every callback, unless `failure` is set; waits until `may_respond` is set."""

    def __init__(self) -> None:
        self.callbacks: list[HandleCallbackRequest] = []
        self.seconds_left: list[float] = []
        self.failure: status_pb2.Status | None = None
        self.called = asyncio.Event()
        self.may_respond = asyncio.Event()
        self.may_respond.set()

    async def HandleCallback(self, request: HandleCallbackRequest, context: Context) -> HandleCallbackResponse:
        self.callbacks.append(request)
        self.seconds_left.append(context.time_remaining() or 0)
        self.called.set()
        await self.may_respond.wait()
        if self.failure is not None:
            status = rpc_status.to_status(self.failure)
            await context.abort(status.code, status.details, status.trailing_metadata)
        return HandleCallbackResponse(success=True, integration_id=123, redirect_url="https://app.example/done")


class Backend:
    """A gRPC server with its servicers."""

    def __init__(self) -> None:
        self.integrations = FakeIntegrations()  # type: ignore[abstract]  # the sidecar calls one RPC only
        self.health = health_aio.HealthServicer()

    @asynccontextmanager
    async def serving(self, target: str = "127.0.0.1:0") -> AsyncIterator[str]:
        server = grpc.aio.server()
        add_IntegrationServiceServicer_to_server(self.integrations, server)
        add_HealthServicer_to_server(self.health, server)
        port = server.add_insecure_port(target)
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(grace=None)


def sidecar(target: str, host: str = "127.0.0.1", port: int = 0) -> AbstractAsyncContextManager[str]:
    return run_sidecar(server=ServerClient(target), host=host, port=port, limits=LIMITS, public_url=PUBLIC_URL)


@pytest.fixture
async def backend() -> Backend:
    return Backend()


@pytest.fixture
async def client(backend: Backend) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        backend.serving() as target,
        sidecar(target) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        yield client


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


async def test_a_browser_is_redirected_to_the_app(client: httpx.AsyncClient, backend: Backend) -> None:
    response = await client.get(CALLBACK, params=QUERY, headers=BROWSER)

    assert response.status_code == 303
    assert response.headers["location"] == "https://app.example/done"
    assert backend.integrations.callbacks == [
        HandleCallbackRequest(
            code="the-code", state="the-state", integration_type="stripe", query="code=the-code&state=the-state"
        )
    ]
    assert 20 < backend.integrations.seconds_left[0] < 30


async def test_a_program_gets_json(client: httpx.AsyncClient) -> None:
    response = await client.get(CALLBACK, params=QUERY)

    assert response.json()["integration_id"] == 123
    assert response.headers["cache-control"] == "no-store"
    assert "server" not in response.headers


async def test_an_error_of_the_server_keeps_its_reason_and_delay(client: httpx.AsyncClient, backend: Backend) -> None:
    info, retry = PackedMessage(), PackedMessage()
    info.Pack(error_details_pb2.ErrorInfo(reason="STORE_UNAVAILABLE", domain="integrations.v1"))
    delay = error_details_pb2.RetryInfo()
    delay.retry_delay.FromSeconds(7)
    retry.Pack(delay)
    backend.integrations.failure = status_pb2.Status(
        code=14, message="the store is unavailable · später", details=[info, retry]
    )

    response = await client.get(CALLBACK, params=QUERY)

    assert response.status_code == 503
    assert response.headers["retry-after"] == "7"
    assert response.json() == {
        "success": False,
        "reason": "STORE_UNAVAILABLE",
        "message": "the store is unavailable · später",
    }


async def test_readiness_follows_the_health_of_the_server(client: httpx.AsyncClient, backend: Backend) -> None:
    statuses = []
    for health in (HealthCheckResponse.NOT_SERVING, HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING):
        await backend.health.set("", health)
        statuses.append((await client.get("/readyz")).status_code)

    assert statuses == [503, 200, 503]


async def test_starts_before_its_server_and_connects_later(backend: Backend) -> None:
    target = f"127.0.0.1:{free_port()}"
    await backend.health.set("", HealthCheckResponse.SERVING)
    async with sidecar(target) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        live, ready = await client.get("/healthz"), await client.get("/readyz")
        callback = await client.get(CALLBACK, params=QUERY)

        assert (live.status_code, ready.status_code, callback.status_code) == (200, 503, 503)
        assert callback.json() == {"success": False, "reason": "UNAVAILABLE", "message": "Service Unavailable"}
        async with backend.serving(target), asyncio.timeout(60):
            await wait_until_ready(client)
            assert (await client.get(CALLBACK, params=QUERY)).status_code == 200


async def wait_until_ready(client: httpx.AsyncClient) -> None:
    while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110  # there is no event to wait for
        await asyncio.sleep(0.05)


async def test_ignores_proxies_of_the_environment(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with (
        backend.serving() as target,
        sidecar(target) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        assert (await client.get(CALLBACK, params=QUERY)).status_code == 200


async def test_a_taken_port_is_an_error_that_names_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(OSError, match=f"'127.0.0.1', {port}"):
            await sidecar("127.0.0.1:1", port=port).__aenter__()


async def test_the_port_is_free_after_the_stop() -> None:
    port = free_port()
    for _ in range(2):
        async with sidecar("127.0.0.1:1", port=port) as url:
            assert url == f"http://127.0.0.1:{port}"


async def test_stops_at_once() -> None:
    async with asyncio.timeout(60) as timeout, sidecar("127.0.0.1:1"):
        pass
    assert not timeout.expired()


async def test_serves_on_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with sidecar("127.0.0.1:1", host="::1") as url, httpx.AsyncClient(trust_env=False) as client:
        assert url.startswith("http://[::1]:")
        assert (await client.get(f"{url}/healthz")).status_code == 200


async def test_a_request_in_progress_is_completed_before_the_stop(backend: Backend) -> None:
    backend.integrations.may_respond.clear()
    async with backend.serving() as target, httpx.AsyncClient(trust_env=False) as client:
        running = sidecar(target)
        url = await running.__aenter__()
        under_way = asyncio.create_task(client.get(url + CALLBACK, params=QUERY, headers=BROWSER))
        await backend.integrations.called.wait()

        stopping = asyncio.create_task(running.__aexit__(None, None, None))
        await refuses_connections(url)
        assert not stopping.done()
        backend.integrations.may_respond.set()

        assert (await under_way).status_code == 303
        await stopping


async def refuses_connections(url: str) -> None:
    """Wait until connections are refused."""
    async with asyncio.timeout(60), httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                await client.get(f"{url}/healthz")
            except httpx.TransportError:
                return
            await asyncio.sleep(0.01)


async def test_installs_no_signal_handlers() -> None:
    def handlers() -> list[Any]:
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    before = handlers()
    async with sidecar("127.0.0.1:1") as url, httpx.AsyncClient(trust_env=False) as client:
        await client.get(f"{url}/healthz")
        assert handlers() == before


async def test_code_and_state_are_in_no_log_at_any_level(
    backend: Backend, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    structlog.reset_defaults()
    for client_log in ("httpx", "httpcore"):  # the client's own log contains the URL
        caplog.set_level(logging.WARNING, client_log)
    caplog.set_level(1)
    async with (
        backend.serving() as target,
        sidecar(target) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        await client.get(CALLBACK, params=QUERY)
        await client.get(CALLBACK, params=[*QUERY.items(), *QUERY.items()])

    out, err = capfd.readouterr()
    logged = caplog.text + out + err
    assert logged.count(f"path={CALLBACK}") == 2
    assert "the-code" not in logged
    assert "the-state" not in logged


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"x" * 20_000,
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000,
        b"\x16\x03\x01\x00\x00\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
    ids=["endless-path", "endless-header", "tls", "two-lengths"],
)
async def test_malformed_http_is_rejected_and_the_next_request_served(
    client: httpx.AsyncClient, request_bytes: bytes
) -> None:
    url = client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(request_bytes)
    async with asyncio.timeout(60):
        response = await reader.read()
    writer.close()
    await writer.wait_closed()

    assert response.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    assert (await client.get("/healthz")).status_code == 200


def test_runs_on_uvloop_too() -> None:
    async def scenario() -> int:
        backend = Backend()
        async with (
            backend.serving() as target,
            sidecar(target) as url,
            httpx.AsyncClient(trust_env=False) as client,
        ):
            return (await client.get(url + CALLBACK, params=QUERY, headers=BROWSER)).status_code

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(scenario()) == 303
