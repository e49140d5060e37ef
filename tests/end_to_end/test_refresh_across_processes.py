"""Servers on one database refresh a token once for all of them, also when one is suspended or killed.

The sandbox rotates refresh tokens and revokes the grant on reuse, so that a single lost race fails the test.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

from integration_server.sandbox.behaviour import Fault
from integration_server.sandbox.faults import Hang
from integration_server.storage.schema import migrate
from integrations.v1 import integration_pb2
from tests.end_to_end.faults import HeldResponse
from tests.end_to_end.prefork import PreforkServer
from tests.end_to_end.replicas import (
    LEASE,
    Replicas,
    expire_access_token,
    force_refresh,
    has_called,
    run_replicas,
    status_of,
    wait_until,
)
from tests.postgres import PostgresServer, run_postgres

pytestmark = pytest.mark.slow

SERVERS = 4
CALLERS = 200
ROUNDS = 3
SLOW = Fault(delay=1)


@pytest.fixture
async def replicas(tmp_path: Path, database_url: str, prefork: PreforkServer) -> AsyncIterator[Replicas]:
    """Four servers, each without a process for its sidecar: those take most of the time of a start."""
    async with run_replicas(tmp_path, database_url, SERVERS, lease=10, start=prefork.serving) as running:
        yield running


@pytest.fixture
async def pair(tmp_path: Path, database_url: str, prefork: PreforkServer) -> AsyncIterator[Replicas]:
    """Two servers."""
    async with run_replicas(tmp_path, database_url, servers=2, start=prefork.serving) as running:
        yield running


@pytest.mark.quick_on("postgres")
async def test_a_token_is_refreshed_once_for_all_callers_of_all_servers(replicas: Replicas) -> None:
    integration_id = await replicas.clients[0].connect()
    for _ in range(ROUNDS):
        await expire_access_token(replicas, integration_id)
        before = len(replicas.refreshes())
        tokens = await asyncio.gather(
            *(replicas.clients[number % SERVERS].bearer_token(integration_id) for number in range(CALLERS))
        )
        assert len(set(tokens)) == 1
        assert replicas.refreshes()[before:] == ["ok"]
    assert await status_of(replicas.clients[0], integration_id) == integration_pb2.STATUS_ACTIVE


@pytest.mark.quick_on("postgres")
async def test_a_server_suspended_past_its_lease_loses_no_token(pair: Replicas) -> None:
    integration_id = await pair.clients[0].connect()
    held = HeldResponse()
    pair.sandbox.behaviour = replace(pair.sandbox.behaviour, faults={"token": held})
    sleeping = asyncio.create_task(force_refresh(pair.clients[0], integration_id))
    await held.wait_for_requests(1)
    pair.commands[0].send(signal.SIGSTOP)
    held.released.set()  # the response arrives at a suspended server, however busy the machine is
    await asyncio.sleep(LEASE + 1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await force_refresh(pair.clients[1], integration_id)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    pair.commands[0].send(signal.SIGCONT)
    assert (await sleeping).refreshed
    pair.sandbox.behaviour = replace(pair.sandbox.behaviour, faults={})
    assert (await force_refresh(pair.clients[1], integration_id)).refreshed
    assert pair.refreshes() == ["ok", "ok"]


@pytest.mark.quick_on("postgres")
async def test_a_refresh_lost_in_a_crash_is_not_repeated_while_the_access_token_works(pair: Replicas) -> None:
    integration_id = await pair.clients[0].connect()
    pair.sandbox.behaviour = replace(pair.sandbox.behaviour, faults={"token": Hang(handle_first=True)})
    lost = asyncio.create_task(force_refresh(pair.clients[0], integration_id))

    async def is_token_used() -> bool:
        return pair.refreshes() == ["ok"]

    await wait_until(is_token_used)
    pair.commands[0].send(signal.SIGKILL)
    await asyncio.gather(lost, return_exceptions=True)
    pair.sandbox.behaviour = replace(pair.sandbox.behaviour, faults={})
    for _ in range(4):  # longer than the wait for the killed process
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await force_refresh(pair.clients[1], integration_id)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert pair.sandbox.find_account(await pair.clients[1].bearer_token(integration_id)) is not None
        await asyncio.sleep(LEASE)
    assert await status_of(pair.clients[1], integration_id) == integration_pb2.STATUS_ACTIVE
    assert pair.refreshes() == ["ok"]


@pytest.fixture
def own_postgres() -> Iterator[tuple[PostgresServer, str]]:
    """A PostgreSQL server for this test only, with a migrated database."""
    with run_postgres() as server, server.new_database() as url:
        asyncio.run(migrate(url))
        yield server, url


async def test_a_response_received_during_a_database_outage_survives_a_crash(
    tmp_path: Path, own_postgres: tuple[PostgresServer, str]
) -> None:
    postgres, url = own_postgres
    async with run_replicas(tmp_path, url, servers=2) as pair:
        integration_id = await pair.clients[0].connect()
        pair.sandbox.behaviour = replace(pair.sandbox.behaviour, faults={"token": SLOW})
        refreshing = asyncio.create_task(force_refresh(pair.clients[0], integration_id))
        await wait_until(has_called(pair))
        await asyncio.to_thread(postgres.stop)
        assert (await refreshing).refreshed
        pair.commands[0].send(signal.SIGKILL)
        await asyncio.to_thread(postgres.start)
        pair.sandbox.behaviour = replace(pair.sandbox.behaviour, faults={})

        async def is_recovered() -> bool:
            try:
                return (await force_refresh(pair.clients[1], integration_id)).refreshed
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:  # in particular not that the user has to reconnect
                    raise
                return False

        await wait_until(is_recovered)
        assert set(pair.refreshes()) == {"ok"}
        assert await status_of(pair.clients[1], integration_id) == integration_pb2.STATUS_ACTIVE
