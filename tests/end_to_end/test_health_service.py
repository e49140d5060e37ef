"""The standard health service and reflection, on a running server."""

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest
from grpc_reflection.v1alpha import reflection_pb2
from sqlalchemy import text

from integration_server.bootstrap import running_server
from integration_server.storage.schema import migrate
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.databases import execute
from tests.end_to_end.faults import HeldResponse
from tests.end_to_end.replicas import wait_until
from tests.end_to_end.rpc_errors import RpcError, expect_rpc_error
from tests.end_to_end.system import Clients, System, clients_of, run_system, settings_for
from tests.postgres import PostgresServer, run_postgres

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SERVICE = "integrations.v1.IntegrationService"
CALENDARS = "integrations.v1.GoogleCalendarService"
OPERATOR = "integrations.v1.OperatorService"


async def status_of(clients: Clients, service: str = "") -> int:
    """The status that `Check` returns."""
    return int((await clients.health.Check(HealthCheckRequest(service=service))).status)


async def test_each_service_and_liveness_have_a_status(sqlite_url: str) -> None:
    async with run_system(sqlite_url) as system:
        watch = system.health.Watch(HealthCheckRequest())
        while (await watch.read()).status != SERVING:
            pass
        for service in ("", SERVICE, CALENDARS, OPERATOR, "liveness"):
            assert await status_of(system, service) == SERVING
        listed = await system.health.List(HealthListRequest())
        assert {name: response.status for name, response in listed.statuses.items()} == {
            "": SERVING,
            SERVICE: SERVING,
            CALENDARS: SERVING,
            OPERATOR: SERVING,
            "liveness": SERVING,
        }
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await status_of(system, "no.such.Service")
        assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
        unknown_watch = system.health.Watch(HealthCheckRequest(service="no.such.Service"))
        assert (await unknown_watch.read()).status == HealthCheckResponse.SERVICE_UNKNOWN
        ready = await system.browser.get(f"{system.sidecar_url}/readyz")
        assert ready.status_code == 200


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for this test only."""
    with run_postgres() as server:
        yield server


@pytest.mark.slow
@pytest.mark.postgres
async def test_readiness_follows_the_database_and_liveness_does_not(own_postgres: PostgresServer) -> None:
    url = own_postgres.url("postgres")
    await migrate(url)
    async with run_system(url) as system, asyncio.timeout(60):
        integration_id = await system.connect()
        watch = system.health.Watch(HealthCheckRequest(service=SERVICE))
        await read_until(watch, SERVING)

        await asyncio.to_thread(own_postgres.stop)
        away = await expect_rpc_error(system.get(integration_id))
        assert away == RpcError(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", (), timedelta(seconds=1))
        await read_until(watch, NOT_SERVING)
        assert await status_of(system) == NOT_SERVING
        assert await status_of(system, "liveness") == SERVING
        assert (await system.browser.get(f"{system.sidecar_url}/readyz")).status_code == 503
        assert (await system.browser.get(f"{system.sidecar_url}/healthz")).status_code == 200
        for call in (
            system.begin(),
            system.bearer_token(integration_id),
            system.service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada")),
            system.service.CheckAllHealth(pb.CheckAllHealthRequest(user_id="ada")),
        ):
            assert (await expect_rpc_error(call)).reason == "STORE_UNAVAILABLE"

        await asyncio.to_thread(own_postgres.start)
        await read_until(watch, SERVING)
        assert await status_of(system) == SERVING
        assert (await system.get(integration_id)).is_connected
        assert await system.bearer_token(integration_id)
        await connect_another(system)


@pytest.mark.slow
@pytest.mark.quick_on("sqlite")
async def test_a_server_that_cannot_decrypt_is_not_ready_and_loses_no_refresh(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        run_system(database_url, REFRESH_JOURNAL_DIR=str(tmp_path / "refresh-journal")) as system,
        asyncio.timeout(60),
    ):
        integration_id = await system.connect()
        watch = system.health.Watch(HealthCheckRequest())
        await read_until(watch, SERVING)
        for table in ("data_keys", "integrations"):
            async with rename_table(database_url, table):
                await read_until(watch, NOT_SERVING)
            await read_until(watch, SERVING)

        held = HeldResponse(handle_first=True)
        system.sandbox.behaviour = replace(system.sandbox.behaviour, faults={"token": held})
        renewal = pb.RefreshTokenRequest(integration_id=integration_id, user_id="ada", force=True)
        refreshing = asyncio.ensure_future(system.service.RefreshToken(renewal, timeout=30))
        await held.wait_for_requests(1)
        async with rename_table(database_url, "integrations"):
            held.released.set()
            assert (await refreshing).refreshed
            await read_until(watch, NOT_SERVING)
        system.sandbox.behaviour = replace(system.sandbox.behaviour, faults={})
        await read_until(watch, SERVING)
        await wait_until(partial(wait_until_empty, tmp_path / "refresh-journal"), 30)
        assert (await system.service.RefreshToken(renewal)).refreshed  # with the token that was rotated in the meantime


@asynccontextmanager
async def rename_table(database_url: str, table: str) -> AsyncIterator[None]:
    """Rename a table, as during the restore of a backup."""
    await execute(database_url, text(f"ALTER TABLE {table} RENAME TO {table}_away"))
    try:
        yield
    finally:
        await execute(database_url, text(f"ALTER TABLE {table}_away RENAME TO {table}"))


async def wait_until_empty(directory: Path) -> bool:
    """Wait until the directory is empty."""
    return not await asyncio.to_thread(os.listdir, directory)


async def read_until(watch: Any, status: int) -> None:
    """Read the stream until it reports the status."""
    while (await watch.read()).status != status:
        pass


async def connect_another(system: System) -> None:
    """Connect another account."""
    assert await system.connect(account="grace")


# --- reflection ------------------------------------------------------------------------------------------------------


async def reflected_services(clients: Clients) -> list[str]:
    """The services that the reflection service lists."""
    # A stream of one request is one request on the wire; this way no write is pending when the server rejects it.
    ask = clients.channel.unary_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    responses = [response async for response in ask(reflection_pb2.ServerReflectionRequest(list_services=""))]
    return [service.name for service in responses[0].list_services_response.service]


async def test_services_are_reflected_in_dev_mode(sqlite_url: str) -> None:
    async with run_system(sqlite_url) as system:
        assert {SERVICE, CALENDARS, OPERATOR, "grpc.health.v1.Health"} <= set(await reflected_services(system))


async def test_services_are_not_reflected_outside_dev_mode(sqlite_url: str) -> None:
    async with run_production_system(sqlite_url) as clients:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await reflected_services(clients)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
        types = await clients.service.ListIntegrationTypes(pb.ListIntegrationTypesRequest())
        assert types.integration_types


@asynccontextmanager
async def run_production_system(database_url: str) -> AsyncIterator[Clients]:
    """A server outside dev mode, with the built-in providers."""
    settings = settings_for(database_url, DEV_MODE="false", ENCRYPTION_KEY=base64.b64encode(os.urandom(32)).decode())
    async with (
        running_server(settings, {}) as running,
        clients_of(running.grpc_address, running.sidecar_url) as clients,
    ):
        yield clients
