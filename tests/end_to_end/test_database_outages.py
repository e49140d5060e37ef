"""The database stops, hangs, is busy, and recovers: what callers and probes receive, and when."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from sqlalchemy import make_url

from integration_server.storage.schema import migrate
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.processes import ProcessSystem, run_server_process
from tests.end_to_end.rpc_errors import RpcError, expect_rpc_error, parse_rpc_error
from tests.end_to_end.system import Clients
from tests.postgres import PostgresServer, run_postgres

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
RECOVERY_SECONDS = 60.0  # after the database is back: two on an idle machine


@pytest.fixture
def postgres() -> Iterator[tuple[PostgresServer, str]]:
    """A PostgreSQL server for this test only, with a migrated database."""
    with run_postgres() as server, server.new_database() as url:
        asyncio.run(migrate(url))
        yield server, url


def process_tree(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


@contextmanager
def freeze_server(server: PostgresServer) -> Iterator[None]:
    """PostgreSQL hangs: it accepts connections and sends no response."""
    processes = process_tree(server.process.get_pid())
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


def kill_server(server: PostgresServer) -> None:
    """PostgreSQL is killed."""
    url = make_url(server.url("postgres"))
    for pid in process_tree(server.process.get_pid()):
        os.kill(pid, signal.SIGKILL)
    # A killed process that nobody reaps looks alive, and a new server would not start beside it.
    for left in (server.process.pgdata / "postmaster.pid", *Path(str(url.query["host"])).glob(".s.PGSQL.*")):
        left.unlink()


async def health(clients: Clients, service: str = "") -> int:
    """The response of a health probe."""
    return int((await clients.health.Check(HealthCheckRequest(service=service), timeout=10)).status)


async def wait_for_readiness(clients: Clients, status: int) -> None:
    """Wait until the readiness has this status."""
    watch = clients.health.Watch(HealthCheckRequest())
    while (await watch.read()).status != status:
        pass
    watch.cancel()


def get(clients: Clients, integration_id: int, timeout: float | None = None) -> Awaitable[Any]:
    """A call that reads."""
    request = pb.GetIntegrationRequest(integration_id=integration_id, user_id="ada")
    return clients.service.GetIntegration(request, timeout=timeout)


def get_credentials(clients: Clients, integration_id: int, timeout: float | None = None) -> Awaitable[Any]:
    """A call that the cache may serve."""
    request = pb.GetCredentialsRequest(integration_id=integration_id, user_id="ada")
    return clients.service.GetCredentials(request, timeout=timeout)


def rename(clients: Clients, integration_id: int, timeout: float | None = None) -> Awaitable[Any]:
    """A call that writes."""
    request = pb.UpdateIntegrationRequest(integration_id=integration_id, user_id="ada", name="new")
    return clients.service.UpdateIntegration(request, timeout=timeout)


def refresh(clients: Clients, integration_id: int, timeout: float | None = None) -> Awaitable[Any]:
    """A call that waits for a detached task."""
    request = pb.RefreshTokenRequest(integration_id=integration_id, user_id="ada", force=True)
    return clients.service.RefreshToken(request, timeout=timeout)


def disconnect(clients: Clients, integration_id: int, timeout: float | None = None) -> Awaitable[Any]:
    """A call that waits for a detached task."""
    request = pb.DisconnectIntegrationRequest(integration_id=integration_id, user_id="ada")
    return clients.service.DisconnectIntegration(request, timeout=timeout)


async def wait_for_recovery(clients: Clients, integration_id: int) -> None:
    """Wait until a call succeeds and the server is ready."""
    async with asyncio.timeout(RECOVERY_SECONDS):
        while True:
            try:
                await get(clients, integration_id, timeout=10)
                if await health(clients) == SERVING:
                    return
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(0.02)


async def wait_for_refusal(system: Clients, integration_id: int) -> RpcError:
    """The error of `GetCredentials`, once the cache may not be served any more: less than a second after the outage."""
    async with asyncio.timeout(RECOVERY_SECONDS):
        while True:
            try:
                await get_credentials(system, integration_id, timeout=30)
            except grpc.aio.AioRpcError as error:
                return parse_rpc_error(error)
            await asyncio.sleep(0.05)


def stop_server(server: PostgresServer) -> None:
    """Stop PostgreSQL as an operator does."""
    server.stop()


@pytest.mark.parametrize("stop_database", [stop_server, kill_server])
async def test_the_server_reports_a_stopped_database_and_recovers(
    tmp_path: Path, postgres: tuple[PostgresServer, str], stop_database: Callable[[PostgresServer], None]
) -> None:
    server, url = postgres
    async with run_server_process(tmp_path, url) as system:
        integration_id = await system.connect()
        await wait_for_readiness(system, SERVING)
        assert await system.bearer_token(integration_id)

        await asyncio.to_thread(stop_database, server)
        for call in (get, rename, refresh, disconnect):
            refusal = await expect_rpc_error(call(system, integration_id, timeout=30))
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert refusal.retry_delay == timedelta(seconds=1)
        await wait_for_readiness(system, NOT_SERVING)
        assert await health(system, "liveness") == SERVING
        refusal = await wait_for_refusal(system, integration_id)
        assert refusal.reason == "STORE_UNAVAILABLE"

        await asyncio.to_thread(server.start)
        await wait_for_recovery(system, integration_id)
        assert await system.bearer_token(integration_id)


async def test_the_server_reports_a_frozen_database_and_recovers(
    tmp_path: Path, postgres: tuple[PostgresServer, str]
) -> None:
    server, url = postgres
    async with run_server_process(tmp_path, url) as system:
        integration_id, other_id = await system.connect(account="ada"), await system.connect(account="grace")
        await wait_for_readiness(system, SERVING)
        with freeze_server(server):
            for deadline in (3, 10):
                refusals = await asyncio.gather(
                    *(
                        expect_rpc_error(call(system, target, timeout=deadline))
                        for call, target in (
                            (get, integration_id),
                            (get_credentials, integration_id),
                            (rename, integration_id),
                            (refresh, integration_id),
                            (disconnect, other_id),  # its outcome is unknown
                        )
                        for _ in range(3)  # more than there are connections
                    )
                )
                assert {(refusal.code, refusal.reason) for refusal in refusals} == {
                    (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
                }
            await wait_for_readiness(system, NOT_SERVING)
            assert await health(system, "liveness") == SERVING
        await wait_for_recovery(system, integration_id)


@asynccontextmanager
async def lock_row(url: str, integration_id: int) -> AsyncIterator[None]:
    """Another transaction holds a lock on the row."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM integrations WHERE integration_id = $1 FOR UPDATE", integration_id)
            yield
    finally:
        await connection.close()


async def exhaust_pool(system: ProcessSystem, url: str, integration_id: int) -> list["asyncio.Task[Any]"]:
    """Start writers that wait for a locked row, until they use every connection of the pool."""
    writers = [asyncio.ensure_future(rename(system, integration_id, timeout=60)) for _ in range(10)]
    connection = await asyncpg.connect(url)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    try:
        async with asyncio.timeout(30):
            while await connection.fetchval(waiting) < 5:  # noqa: ASYNC110  # the database sets no event of ours
                await asyncio.sleep(0.02)
    finally:
        await connection.close()
    return writers


async def test_health_and_cached_credentials_work_with_an_exhausted_pool(
    tmp_path: Path, postgres: tuple[PostgresServer, str]
) -> None:
    _, url = postgres
    async with run_server_process(tmp_path, url) as system:
        used, locked = await system.connect(account="ada"), await system.connect(account="grace")
        await wait_for_readiness(system, SERVING)

        async def read_and_check() -> None:
            await get_credentials(system, used, timeout=30)
            assert await health(system) == SERVING

        await read_and_check()
        async with lock_row(url, locked):
            writers = await exhaust_pool(system, url, locked)
            for _ in range(15):
                await read_and_check()
            refused = await expect_rpc_error(get(system, used, timeout=5))  # the pool is exhausted
            assert refused.reason == "STORE_UNAVAILABLE"
        assert "not_ready" not in system.command.output
        await asyncio.gather(*writers, return_exceptions=True)


async def test_negative_control_without_the_cache_credentials_need_the_exhausted_pool(
    tmp_path: Path, postgres: tuple[PostgresServer, str]
) -> None:
    _, url = postgres
    async with run_server_process(tmp_path, url, CREDENTIALS_CACHE_SIZE="0") as system:
        used, locked = await system.connect(account="ada"), await system.connect(account="grace")
        await get_credentials(system, used)
        async with lock_row(url, locked):
            writers = await exhaust_pool(system, url, locked)
            assert (await expect_rpc_error(get_credentials(system, used, timeout=5))).reason == "STORE_UNAVAILABLE"
            await wait_for_readiness(system, SERVING)
        await asyncio.gather(*writers, return_exceptions=True)
