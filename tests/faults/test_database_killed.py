"""PostgreSQL is killed (SIGKILL to all processes) while servers write: every acknowledged write survives.

That includes token responses received during the outage, which are acknowledged from the journal.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import grpc.aio
import pytest
from sqlalchemy import select

from integration_server.storage.schema import migrate
from integration_server.storage.tables import integrations
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.databases import fetch
from tests.end_to_end.faults import HeldResponse
from tests.end_to_end.prefork import PreforkServer
from tests.end_to_end.replicas import Replicas, force_refresh, run_replicas
from tests.end_to_end.system import Clients
from tests.faults.conftest import FaultTrial
from tests.faults.load_fixture import LEASE, LoadedIntegration, assert_newest_token, connect_members, find_lost
from tests.postgres import PostgresServer, run_postgres

KILLS = 10
SERVERS = 2
NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class AcknowledgedWrites:
    """The writes that one server has acknowledged."""

    clients: Clients
    member: LoadedIntegration
    names: int = 0
    keys: list[int] = field(default_factory=list)
    refreshes: int = 0
    expire_time: datetime = NEVER
    failures: int = 0

    async def rename(self) -> None:
        """Rename the integration to the next number."""
        request = pb.UpdateIntegrationRequest(
            integration_id=self.member.integration_id, user_id=self.member.user_id, name=str(self.names + 1)
        )
        await self.clients.service.UpdateIntegration(request, timeout=60)
        self.names += 1

    async def add_key(self, api_key: str) -> None:
        """Connect a further user with an API key."""
        request = pb.ConnectWithApiKeyRequest(
            user_id=f"{self.member.user_id}-key-{len(self.keys)}-{self.failures}",
            integration_type="sandbox_api_key",
            api_key=api_key,
        )
        response = await self.clients.service.ConnectWithApiKey(request, timeout=60)
        self.keys.append(response.integration.integration_id)

    async def refresh(self) -> None:
        """Refresh the integration's token."""
        response = await force_refresh(self.clients, self.member.integration_id, self.member.user_id)
        self.refreshes += 1
        self.expire_time = response.access_token_expire_time.ToDatetime(UTC)

    async def write_until_stopped(self, write: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
        """Write repeatedly until stopped and one more write is acknowledged."""
        while True:
            last = stop.is_set()
            try:
                await write()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                self.failures += 1
                await asyncio.sleep(0.05)
            else:
                if last:
                    return


@pytest.fixture
def own_postgres() -> Iterator[tuple[PostgresServer, str]]:
    """A PostgreSQL server for this test only, with a migrated database and durable commits."""
    with run_postgres() as server, server.new_database() as url:
        asyncio.run(migrate(url))
        yield server, url


async def kill_between_response_and_commit(replicas: Replicas, postgres: PostgresServer) -> None:
    """Kill PostgreSQL while a refresh of every server waits for its token response, and then release the responses."""
    held = HeldResponse()
    replicas.change_behaviour(faults={"token": held})
    await held.wait_for_requests(SERVERS)
    await asyncio.to_thread(postgres.kill)
    replicas.change_behaviour(faults={})
    held.released.set()


async def require_acknowledged(url: str, all_acknowledged: list[AcknowledgedWrites]) -> None:
    """Assert that every acknowledged write is present."""
    rows = {row.integration_id: row for row in await fetch(url, select(integrations))}
    for acknowledged in all_acknowledged:
        row = rows[acknowledged.member.integration_id]
        assert row.name == str(acknowledged.names)
        assert row.access_token_expire_time >= acknowledged.expire_time
        assert set(acknowledged.keys) <= rows.keys()


@pytest.mark.postgres
async def test_acknowledged_writes_survive_a_crash_of_the_database(
    trial: FaultTrial, prefork: PreforkServer, tmp_path: Path, own_postgres: tuple[PostgresServer, str]
) -> None:
    postgres, url = own_postgres
    async with run_replicas(tmp_path, url, SERVERS, lease=LEASE, start=prefork.serving) as replicas:
        members = await connect_members(replicas.clients[0], SERVERS)
        all_acknowledged = [
            AcknowledgedWrites(clients, member) for clients, member in zip(replicas.clients, members, strict=True)
        ]
        api_key = replicas.sandbox.api_key.key
        journals = 0
        for number in trial.rounds(KILLS):
            rng = trial.rng(number)
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as streams:
                for acknowledged in all_acknowledged:
                    streams.create_task(acknowledged.write_until_stopped(acknowledged.rename, stop))
                    streams.create_task(acknowledged.write_until_stopped(partial(acknowledged.add_key, api_key), stop))
                    streams.create_task(acknowledged.write_until_stopped(acknowledged.refresh, stop))
                await asyncio.sleep(rng.uniform(0.2, 1))
                if rng.random() < 0.5:
                    await kill_between_response_and_commit(replicas, postgres)
                    journals += SERVERS
                else:
                    await asyncio.to_thread(postgres.kill)
                await asyncio.sleep(rng.uniform(0, 1))
                await asyncio.to_thread(postgres.start)
                stop.set()
            await require_acknowledged(url, all_acknowledged)
            assert not await find_lost(replicas, members), f"round {number}"
            await assert_newest_token(replicas, members)
            assert set(replicas.refreshes()) == {"ok"}, f"round {number}: a refresh token was sent twice"
            names, keys, refreshes, failures = (
                sum(acknowledged.names for acknowledged in all_acknowledged),
                sum(len(acknowledged.keys) for acknowledged in all_acknowledged),
                sum(acknowledged.refreshes for acknowledged in all_acknowledged),
                sum(acknowledged.failures for acknowledged in all_acknowledged),
            )
            trial.report(
                f"{number} crashes: {names} changes, {keys} keys and {refreshes} refreshes acknowledged, all there; "
                f"{journals} responses received during the outage; {failures} calls failed"
            )
        said = "".join(command.output for command in replicas.commands)
        assert said.count("refresh_journaled") >= journals
