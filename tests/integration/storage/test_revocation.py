"""Tests of revocation over the SQL stores of both databases, with the databases' clocks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import func, select, update

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.due_times import Schedule
from integration_server.domain.errors import IntegrationNotFound, ProviderUnavailable
from integration_server.domain.integration import Integration
from integration_server.domain.revocation import RevocationState
from integration_server.service.background.background_worker import BackgroundWorker, DueJob, WorkerLimits
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.background.ports import JobKind
from integration_server.service.connections.account_linking import AccountLinker
from integration_server.service.connections.revocation import RevocationService, RevocationTimes
from integration_server.service.connections.revocation_ports import CallDecision
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.credentials.refresh_commit import RefreshCommitter
from integration_server.service.credentials.refresh_failures import InvalidGrantDetector, RefreshFailurePolicy
from integration_server.service.credentials.refresher import TokenRefresher
from integration_server.storage.due_work import SqlDueWork
from integration_server.storage.engine import Database, DatabaseTime, open_database
from integration_server.storage.refresh_journal import FileRefreshJournal
from integration_server.storage.refresh_leases import SqlRefreshLeases
from integration_server.storage.revocations import SqlRevocationOutbox
from integration_server.storage.tables import revocations
from tests.contracts.integration_rows import SqlRows, account, new_grant, new_integration
from tests.fakes.aead import FakeAead
from tests.fakes.clock import SettableClock
from tests.fakes.oauth_clients import own_clients
from tests.fakes.provider import FakeProvider, FakeProviders
from tests.fakes.random_tokens import CountingTokens
from tests.fakes.system import RecordingAuditTrail

MINUTE = timedelta(minutes=1)
TOKENS = OAuthTokens("access-1", "refresh-1")


@dataclass
class Process:
    """The parts of one process that refresh and revoke."""

    database: Database
    provider: FakeProvider
    account_linker: AccountLinker
    refresher: TokenRefresher
    revocation_service: RevocationService
    worker: BackgroundWorker

    async def connect(self) -> Integration:
        """Connect an integration."""
        return await self.account_linker.commit(new_integration(integration_type="fake"), account("account-1"), TOKENS)

    async def disconnect(self, integration: Integration) -> RevocationState:
        """Disconnect an integration."""
        return await self.revocation_service.disconnect_integration(integration.integration_id, integration.user_id)

    async def run_background_until(self, revocation_count: int) -> None:
        """Poll until the provider has had this number of calls and the outbox is empty."""
        async with asyncio.timeout(60):
            while len(self.provider.revocations) < revocation_count or await self.outbox():
                await self.worker.poll()
                await asyncio.sleep(0.01)

    async def outbox(self) -> int:
        """The number of grants in the outbox that are to be revoked."""
        async with self.database.read_connection() as connection:
            query = select(func.count()).select_from(revocations).where(revocations.c.revoke_time.is_(None))
            return int(await connection.scalar(query) or 0)

    async def make_due(self) -> None:
        """Make all grants in the outbox due."""
        async with self.database.write_transaction() as connection:
            await connection.execute(update(revocations).values(due_time=DatabaseTime()))


def start_process(database: Database, provider: FakeProvider, tasks: DetachedTasks, journal: Path) -> Process:
    """A process with its own stores."""
    clock, cipher, providers = SettableClock(), CredentialCipher(FakeAead()), own_clients(FakeProviders(provider))
    integrations, outbox = SqlRows(database), SqlRevocationOutbox(database)
    schedule = Schedule(timedelta(minutes=5), None, lambda: 0.5)
    account_linker = AccountLinker(integrations, integrations, providers, cipher, clock, schedule, lambda _: None)
    leases = SqlRefreshLeases(database, MINUTE, MINUTE)
    refresher = TokenRefresher(
        integrations,
        leases,
        RefreshCommitter(integrations, FileRefreshJournal(journal), outbox, cipher, clock, schedule),
        RefreshFailurePolicy(integrations, InvalidGrantDetector(leases), clock, lambda: 0.5),
        providers,
        tasks,
        clock,
        CountingTokens(),
        lambda: 0.5,
        lambda _: None,
        RecordingAuditTrail().wait_for_room,
        lease_duration=MINUTE / 2,
    )
    due_work = SqlDueWork(database)
    times = RevocationTimes(first_response=MINUTE)
    revocation_service = RevocationService(
        integrations, outbox, due_work, providers, cipher, tasks, lambda: 0.5, times=times
    )
    job = DueJob(JobKind.REVOCATION, revocation_service.retry, times.claim)
    worker = BackgroundWorker([job], due_work, providers, clock, lambda: 0.5, limits=WorkerLimits(8, 1000))
    return Process(database, provider, account_linker, refresher, revocation_service, worker)


@pytest.fixture
async def tasks() -> AsyncIterator[DetachedTasks]:
    async with DetachedTasks() as tasks:
        yield tasks


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider(SettableClock())


@pytest.fixture
def process(database: Database, provider: FakeProvider, tasks: DetachedTasks, tmp_path: Path) -> Process:
    return start_process(database, provider, tasks, tmp_path)


@pytest.fixture
def other_process(database: Database, provider: FakeProvider, tasks: DetachedTasks, tmp_path: Path) -> Process:
    return start_process(database, provider, tasks, tmp_path)


async def test_a_confirmed_revocation_leaves_the_outbox_empty(process: Process, provider: FakeProvider) -> None:
    assert await process.disconnect(await process.connect()) is RevocationState.REVOKED
    assert provider.revocations == [TOKENS]
    assert await process.outbox() == 0


async def test_a_failed_revocation_is_retried_by_another_process(
    process: Process, other_process: Process, provider: FakeProvider
) -> None:
    provider.revoke_error = ProviderUnavailable()
    assert await process.disconnect(await process.connect()) is RevocationState.PENDING
    provider.revoke_error = None
    await process.make_due()
    await other_process.run_background_until(2)
    assert provider.revocations == [TOKENS, TOKENS]


@pytest.mark.postgres
async def test_a_claim_that_is_replaced_during_the_decision_is_not_sent(postgres_url: str) -> None:
    """Sent without a record of the call, it could end a grant that is connected meanwhile."""
    async with open_database(postgres_url) as database, AsyncExitStack() as stack:
        outbox, due_work = SqlRevocationOutbox(database), SqlDueWork(database)
        await outbox.add(new_grant(token_fingerprint="token"))
        (expired,) = await due_work.claim(JobKind.REVOCATION, "acme", 1, claim_duration=timedelta(0))
        other = await asyncpg.connect(postgres_url)
        stack.push_async_callback(other.close)
        async with other.transaction():
            await other.execute("LOCK TABLE integrations")  # the decision reads them
            decision = asyncio.create_task(outbox.begin_call(expired, [], [], MINUTE))
            async with asyncio.timeout(60):
                while not await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    pass
            (claim,) = await due_work.claim(JobKind.REVOCATION, "acme", 1, claim_duration=MINUTE)
        assert (await decision)[0] is CallDecision.NOT_CLAIMED
        assert (await outbox.begin_call(claim, [], [], MINUTE))[0] is CallDecision.SEND


async def test_a_token_response_for_a_removed_integration_is_revoked(
    process: Process, other_process: Process, provider: FakeProvider
) -> None:
    integration = await process.connect()
    gate = provider.gate = asyncio.Event()
    refresher = asyncio.create_task(process.refresher.refresh(integration))
    async with asyncio.timeout(60):
        while not provider.refreshes:  # noqa: ASYNC110  # the fake has no event for it
            await asyncio.sleep(0.01)
    provider.gate = None
    assert await other_process.disconnect(integration) is RevocationState.PENDING
    assert provider.revocations == [TOKENS]
    gate.set()
    with pytest.raises(IntegrationNotFound):
        await refresher
    await other_process.run_background_until(2)
    (_, new) = provider.revocations
    assert isinstance(new, OAuthTokens)
    assert new.refresh_token == "renewed-refresh-1"


@pytest.mark.slow
async def test_two_processes_make_one_call_per_grant(
    process: Process, other_process: Process, provider: FakeProvider
) -> None:
    integrations = [
        await process.account_linker.commit(
            new_integration(integration_type="fake"), account(f"account-{number}"), TOKENS
        )
        for number in range(30)
    ]
    store = SqlRows(process.database)
    await asyncio.gather(*(store.remove(row.integration_id, row.user_id) for row in integrations))
    await asyncio.gather(process.run_background_until(30), other_process.run_background_until(30))
    assert len(provider.revocations) == 30
