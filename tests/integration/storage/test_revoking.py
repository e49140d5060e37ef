"""Revoking over SQL stores, on both databases and their own clocks: what is gone is revoked whoever dies on the way."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import IntegrationNotFound, ProviderUnavailable
from integration_server.domain.integration import Integration
from integration_server.domain.revocation import RevocationState
from integration_server.service.connections import Connections
from integration_server.service.refreshing import Patience, Refreshing
from integration_server.service.revoking import RevocationTimes, Revoking
from integration_server.service.schedule import Schedule
from integration_server.service.sealing import Vault
from integration_server.service.tasks import ServerTasks
from integration_server.storage.clock import DatabaseTime
from integration_server.storage.engine import Database
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.leases import SqlRefreshLeases
from integration_server.storage.revocations import SqlRevocations
from integration_server.storage.spill import SpillDirectory
from integration_server.storage.tables import revocations
from tests.contracts.store_contract import account, new_integration
from tests.fakes.clock import SettableClock
from tests.fakes.names import CountingNames
from tests.fakes.provider import FakeProvider, FakeProviders
from tests.fakes.sealer import FakeSealer

MINUTE = timedelta(minutes=1)
TOKENS = OAuthTokens("access-1", "refresh-1")


@dataclass
class Process:
    """What refreshes and revokes in one process."""

    database: Database
    provider: FakeProvider
    connections: Connections
    refreshing: Refreshing
    revoking: Revoking

    async def connect(self) -> Integration:
        """An integration with these tokens."""
        return await self.connections.commit(new_integration(integration_type="fake"), account("account-1"), TOKENS)

    async def disconnect(self, integration: Integration) -> RevocationState:
        """Gone."""
        return await self.revoking.disconnect_integration(integration.integration_id, integration.user_id)

    async def background_until(self, revocations_made: int) -> None:
        """Rounds until the provider has been asked so often, and the outbox is empty."""
        async with asyncio.timeout(30):
            while len(self.provider.revocations) < revocations_made or await self.outbox():
                await self.revoking.revoke_due()
                await asyncio.sleep(0.01)

    async def outbox(self) -> int:
        """How much there is in it."""
        async with self.database.reading() as connection:
            return int(await connection.scalar(select(func.count()).select_from(revocations)) or 0)

    async def time_passes(self) -> None:
        """Until whatever is in the outbox is due."""
        async with self.database.writing() as connection:
            await connection.execute(update(revocations).values(due_time=DatabaseTime()))


def started(database: Database, provider: FakeProvider, tasks: ServerTasks, spill: Path) -> Process:
    """A process with stores of its own."""
    clock, vault, providers = SettableClock(), Vault(FakeSealer()), FakeProviders(provider)
    integrations, outbox = SqlIntegrations(database), SqlRevocations(database)
    schedule = Schedule(timedelta(minutes=5), None, lambda: 0.5)
    connections = Connections(integrations, providers, vault, clock, schedule)
    refreshing = Refreshing(
        integrations,
        SqlRefreshLeases(database, MINUTE),
        SpillDirectory(spill),
        outbox,
        connections,
        providers,
        vault,
        tasks,
        clock,
        CountingNames(),
        lambda: 0.5,
        lambda _: None,
        patience=Patience(),
    )
    revoking = Revoking(
        integrations, outbox, providers, vault, tasks, lambda: 0.5, times=RevocationTimes(first_answer=MINUTE)
    )
    return Process(database, provider, connections, refreshing, revoking)


@pytest.fixture
async def tasks() -> AsyncIterator[ServerTasks]:
    async with ServerTasks() as tasks:
        yield tasks


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider(SettableClock())


@pytest.fixture
def process(database: Database, provider: FakeProvider, tasks: ServerTasks, tmp_path: Path) -> Process:
    return started(database, provider, tasks, tmp_path)


@pytest.fixture
def other_process(database: Database, provider: FakeProvider, tasks: ServerTasks, tmp_path: Path) -> Process:
    return started(database, provider, tasks, tmp_path)


async def test_what_the_provider_confirms_leaves_nothing(process: Process, provider: FakeProvider) -> None:
    assert await process.disconnect(await process.connect()) is RevocationState.REVOKED
    assert provider.revocations == [TOKENS]
    assert await process.outbox() == 0


async def test_what_failed_is_taken_over_by_another_process(
    process: Process, other_process: Process, provider: FakeProvider
) -> None:
    provider.revoke_error = ProviderUnavailable()
    assert await process.disconnect(await process.connect()) is RevocationState.PENDING
    provider.revoke_error = None
    await process.time_passes()
    await other_process.background_until(2)
    assert provider.revocations == [TOKENS, TOKENS]


async def test_an_answer_for_an_integration_that_is_gone_is_revoked(
    process: Process, other_process: Process, provider: FakeProvider
) -> None:
    integration = await process.connect()
    gate = provider.gate = asyncio.Event()
    refreshing = asyncio.create_task(process.refreshing.refresh(integration))
    async with asyncio.timeout(30):
        while not provider.refreshes:  # noqa: ASYNC110  # a fake has no event for it
            await asyncio.sleep(0.01)
    provider.gate = None
    assert await other_process.disconnect(integration) is RevocationState.PENDING
    assert provider.revocations == [TOKENS]
    gate.set()
    with pytest.raises(IntegrationNotFound):
        await refreshing
    await other_process.background_until(2)
    (_, new) = provider.revocations
    assert isinstance(new, OAuthTokens)
    assert new.refresh_token == "renewed-refresh-1"


async def test_many_processes_make_one_call_for_each(
    process: Process, other_process: Process, provider: FakeProvider
) -> None:
    integrations = [
        await process.connections.commit(new_integration(integration_type="fake"), account(f"account-{number}"), TOKENS)
        for number in range(30)
    ]
    store = SqlIntegrations(process.database)
    await asyncio.gather(*(store.remove(row.integration_id, row.user_id) for row in integrations))
    await asyncio.gather(process.background_until(30), other_process.background_until(30))
    assert len(provider.revocations) == 30
