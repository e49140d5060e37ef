"""A change at one server is visible at the others within a second, although each has a cache."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.replicas import Replicas, force_refresh, run_replicas
from tests.end_to_end.system import Clients
from tests.pgbouncer import requires_pgbouncer

pytestmark = pytest.mark.slow

POSTGRES = pytest.mark.postgres
DATABASES = [
    "sqlite_url",
    pytest.param("postgres_url", marks=POSTGRES),
    pytest.param("pooled_url", marks=[POSTGRES, requires_pgbouncer]),
]
MAX_STALENESS = 1.0


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database: SQLite, PostgreSQL, and PostgreSQL behind PgBouncer in transaction mode."""
    return str(request.getfixturevalue(request.param))


async def disconnect(clients: Clients, integration_id: int) -> None:
    request = pb.DisconnectIntegrationRequest(integration_id=integration_id, user_id="ada")
    await clients.service.DisconnectIntegration(request)


async def switch_off(clients: Clients, integration_id: int) -> None:
    request = pb.UpdateIntegrationRequest(integration_id=integration_id, user_id="ada", is_active=False)
    await clients.service.UpdateIntegration(request)


async def token_or_none(clients: Clients, integration_id: int) -> str | None:
    """The access token that a backend receives, None without one."""
    try:
        return await clients.bearer_token(integration_id)
    except grpc.aio.AioRpcError as error:
        if error.code() not in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION}:
            raise
        return None


async def measure_staleness(
    pair: Replicas, integration_id: int, change: Callable[[Clients, int], Awaitable[None]]
) -> float:
    """The seconds after a change at one server during which calls to the other still returned the old token."""
    one, other = pair.clients
    await asyncio.sleep(MAX_STALENESS)  # both have read earlier changes
    before = await token_or_none(other, integration_id)
    assert before
    assert await token_or_none(other, integration_id) == before  # cached
    await change(one, integration_id)
    assert await token_or_none(one, integration_id) != before  # the server that made the change serves it at once
    changed = last = time.monotonic()
    async with asyncio.timeout(30):
        while True:
            start_time = time.monotonic()
            if await token_or_none(other, integration_id) != before:
                return last - changed
            last = start_time
            await asyncio.sleep(0.01)


async def force(clients: Clients, integration_id: int) -> None:
    await force_refresh(clients, integration_id)


async def test_a_replica_serves_a_change_of_another_within_a_second(tmp_path: Path, url: str) -> None:
    async with run_replicas(tmp_path, url, servers=2, lease=10) as pair:
        for change in (disconnect, switch_off, force):
            integration_id = await pair.clients[0].connect()
            served = await measure_staleness(pair, integration_id, change)
            print(f"\n{change.__name__}: served for {served:.2f} s more")
            assert served < MAX_STALENESS


async def test_both_replicas_serve_the_token_of_one_refresh(tmp_path: Path, url: str) -> None:
    async with run_replicas(tmp_path, url, servers=2, lease=10) as pair:
        integration_id = await pair.clients[0].connect()
        callers = [pair.clients[number % 2] for number in range(20)]
        await asyncio.gather(*(force_refresh(clients, integration_id) for clients in callers))
        assert set(pair.refreshes()) == {"ok"}
        tokens = {await clients.bearer_token(integration_id, min_ttl={"seconds": 3000}) for clients in callers}
        assert len(tokens) <= 2
        await asyncio.sleep(MAX_STALENESS)
        assert len({await clients.bearer_token(integration_id) for clients in callers}) == 1
