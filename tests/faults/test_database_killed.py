"""A PostgreSQL is killed (SIGKILL, all its processes) while servers write: what was acknowledged is there afterwards.

That holds for answers of the provider too that came while it was gone: they are acknowledged out of the spill.
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
from tests.end_to_end.faults import Held
from tests.end_to_end.nursery import Nursery
from tests.end_to_end.replicas import Replicas, forced, running_replicas
from tests.end_to_end.system import Clients
from tests.faults.conftest import Trial
from tests.faults.crowd import LEASE, Member, connected, lost_of, require_newest
from tests.postgres import PostgresServer, run_postgres

KILLS = 10
SERVERS = 2
NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class Ledger:
    """What one server has acknowledged."""

    clients: Clients
    member: Member
    names: int = 0
    keys: list[int] = field(default_factory=list)
    refreshes: int = 0
    expire_time: datetime = NEVER
    failures: int = 0

    async def rename(self) -> None:
        """Give the integration the next number for a name."""
        request = pb.UpdateIntegrationRequest(
            integration_id=self.member.integration_id, user_id=self.member.user_id, name=str(self.names + 1)
        )
        await self.clients.service.UpdateIntegration(request, timeout=60)
        self.names += 1

    async def add_key(self, api_key: str) -> None:
        """Connect a further user by key."""
        request = pb.ConnectWithApiKeyRequest(
            user_id=f"{self.member.user_id}-key-{len(self.keys)}-{self.failures}",
            integration_type="sandbox_api_key",
            api_key=api_key,
        )
        answer = await self.clients.service.ConnectWithApiKey(request, timeout=60)
        self.keys.append(answer.integration.integration_id)

    async def refresh(self) -> None:
        """Renew the integration's token."""
        answer = await forced(self.clients, self.member.integration_id, self.member.user_id)
        self.refreshes += 1
        self.expire_time = answer.access_token_expire_time.ToDatetime(UTC)

    async def go_on(self, write: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
        """Write again and again, until told to stop and acknowledged once more."""
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
    """A server to be killed, with a database in it. It flushes what it commits."""
    with run_postgres() as server, server.new_database() as url:
        asyncio.run(migrate(url))
        yield server, url


async def kill_between_answer_and_commit(replicas: Replicas, postgres: PostgresServer) -> None:
    """Kill it while a refresh of every server waits for its answer, and let the answers come then."""
    held = Held()
    replicas.behave(faults={"token": held})
    await held.reached_by(SERVERS)
    await asyncio.to_thread(postgres.kill)
    replicas.behave(faults={})
    held.released.set()


async def require_acknowledged(url: str, ledgers: list[Ledger]) -> None:
    """Nothing that was acknowledged is missing."""
    rows = {row.integration_id: row for row in await fetch(url, select(integrations))}
    for ledger in ledgers:
        row = rows[ledger.member.integration_id]
        assert row.name == str(ledger.names)
        assert row.access_token_expire_time >= ledger.expire_time
        assert set(ledger.keys) <= rows.keys()


@pytest.mark.postgres
async def test_what_was_acknowledged_survives_a_crash_of_the_database(
    trial: Trial, nursery: Nursery, tmp_path: Path, own_postgres: tuple[PostgresServer, str]
) -> None:
    postgres, url = own_postgres
    async with running_replicas(tmp_path, url, SERVERS, lease=LEASE, start=nursery.serving) as replicas:
        members = await connected(replicas.clients[0], SERVERS)
        ledgers = [Ledger(clients, member) for clients, member in zip(replicas.clients, members, strict=True)]
        api_key = replicas.sandbox.api_key.key
        spills = 0
        for number in trial.rounds(KILLS):
            chance = trial.chance(number)
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as streams:
                for ledger in ledgers:
                    streams.create_task(ledger.go_on(ledger.rename, stop))
                    streams.create_task(ledger.go_on(partial(ledger.add_key, api_key), stop))
                    streams.create_task(ledger.go_on(ledger.refresh, stop))
                await asyncio.sleep(chance.uniform(0.2, 1))
                if chance.random() < 0.5:
                    await kill_between_answer_and_commit(replicas, postgres)
                    spills += SERVERS
                else:
                    await asyncio.to_thread(postgres.kill)
                await asyncio.sleep(chance.uniform(0, 1))
                await asyncio.to_thread(postgres.start)
                stop.set()
            await require_acknowledged(url, ledgers)
            assert not await lost_of(replicas, members), f"round {number}"
            await require_newest(replicas, members)
            assert set(replicas.refreshes()) == {"ok"}, f"round {number}: a refresh token was sent twice"
            names, keys, refreshes, failures = (
                sum(ledger.names for ledger in ledgers),
                sum(len(ledger.keys) for ledger in ledgers),
                sum(ledger.refreshes for ledger in ledgers),
                sum(ledger.failures for ledger in ledgers),
            )
            trial.say(
                f"{number} crashes: {names} changes, {keys} keys and {refreshes} refreshes acknowledged, all there; "
                f"{spills} answers came while it was gone; {failures} calls refused"
            )
        said = "".join(command.output for command in replicas.commands)
        assert said.count("refresh_spilled") >= spills
